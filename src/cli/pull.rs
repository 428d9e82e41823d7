//! `larder pull`

use std::io::Read;
use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

use super::client::Client;
use super::failure::Failure;
use super::progress::Watcher;
use super::{Global, output};
use crate::app;
use crate::control::proto::{Credentials, PullRequest, PullResult};
use crate::image::Reference;

/// Pulls an image: resolves it at its registry, fetches what is missing, makes it visible when all of it is durable.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  larder pull busybox\n  larder pull registry.example:5000/app:1 --authfile ~/.docker/config.json\n  \
    larder --root ./store pull 127.0.0.1:5000/app --plain-http"
)]
pub(super) struct Pull {
    /// Image, such as busybox, host:5000/app:1 or name@sha256:...
    #[arg(value_name = "REF")]
    reference: String,
    /// Platform to pull, os/arch[/variant] [default: the agent's]
    #[arg(long, value_name = "PLATFORM")]
    platform: Option<String>,
    /// Speak plain HTTP to the registry
    #[arg(long)]
    plain_http: bool,
    /// Docker config.json with credentials [default: $REGISTRY_AUTH_FILE, else docker's own]
    #[arg(long, value_name = "FILE")]
    authfile: Option<PathBuf>,
    /// User to log in as; the password comes with --password-stdin or from LARDER_PASSWORD
    #[arg(long, short, value_name = "USER")]
    username: Option<String>,
    /// Read the password from standard input
    #[arg(long, requires = "username")]
    password_stdin: bool,
}

/// What `-o json` prints.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    id: String,
    reference: String,
    digest: String,
    size: u64,
    fetched_bytes: u64,
    up_to_date: bool,
    layers: Vec<Layer>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Layer {
    digest: String,
    size: u64,
    fetched: u64,
    inflated: u64,
    deduplicated: u64,
    written: u64,
    source: &'static str,
}

impl Pull {
    pub(super) async fn run(self, global: &Global, mut client: Client) -> Result<(), Failure> {
        let reference: Reference = self
            .reference
            .parse()
            .map_err(|error| Failure::usage(format!("{error}")))?;
        let credentials = self.credentials(reference.domain()).await?;
        let request = PullRequest {
            reference: self.reference,
            platform: self.platform.unwrap_or_default(),
            plain_http: self.plain_http,
            credentials,
        };
        let mut events = client.pull(request).await?.into_inner();
        let table = global.output == output::Format::Table;
        let mut watcher = Watcher::for_terminal(global.quiet || !table, &reference.familiar());
        let mut result = None;
        let mut layers = Vec::new();
        while let Some(event) = events.message().await? {
            watcher.show(&event);
            if !event.layers.is_empty() {
                layers.clone_from(&event.layers);
            }
            result = event.result.or(result);
        }
        watcher.finish();
        let Some(PullResult {
            image: Some(image),
            digest,
            fetched_bytes,
            up_to_date,
        }) = result
        else {
            return Err(Failure::failed("the agent ended the pull without a result"));
        };
        let report = Report {
            id: image.id,
            reference: reference.to_string(),
            digest,
            size: image.size,
            fetched_bytes,
            up_to_date,
            layers: layers
                .into_iter()
                .map(|layer| Layer {
                    source: super::progress::source(&layer),
                    digest: layer.digest,
                    size: layer.size,
                    fetched: layer.fetched,
                    inflated: layer.inflated,
                    deduplicated: layer.deduplicated,
                    written: layer.written,
                })
                .collect(),
        };
        if output::structured(global.output, &report)? {
            return Ok(());
        }
        if !global.quiet {
            let known: u64 = report.layers.iter().map(|layer| layer.deduplicated).sum();
            let what = if up_to_date {
                "is up to date".to_owned()
            } else {
                format!(
                    "pulled: {} fetched, {} of {} were here already",
                    output::bytes(fetched_bytes),
                    output::bytes(known),
                    output::bytes(report.size),
                )
            };
            eprintln!("{} {what}", reference.familiar());
        }
        output::line(&report.id)
    }

    async fn credentials(&self, domain: &str) -> Result<Option<Credentials>, Failure> {
        if let Some(username) = &self.username {
            let password = if self.password_stdin {
                let mut text = String::new();
                std::io::stdin().take(64 << 10).read_to_string(&mut text)?;
                text.trim_end_matches(['\n', '\r']).to_owned()
            } else {
                std::env::var("LARDER_PASSWORD").map_err(|_| {
                    Failure::usage(
                        "a password is missing: give --password-stdin, or set LARDER_PASSWORD",
                    )
                })?
            };
            return Ok(Some(Credentials {
                username: username.clone(),
                password,
                ..Credentials::default()
            }));
        }
        if let Some(file) = &self.authfile
            && !file.exists()
        {
            return Err(Failure::usage(format!("{}: no such file", file.display())));
        }
        let found = app::credentials_for(self.authfile.as_deref(), domain)
            .await
            .map_err(|error| Failure::failed(error.to_string()))?;
        Ok(found)
    }
}
