//! `larder pull`.

use std::io::Read;
use std::path::PathBuf;
use std::time::Instant;

use serde::Serialize;

use super::Done;
use super::client::Client;
use super::failure::Failure;
use super::images::View as ImageView;
use super::output::{familiar, say};
use super::progress::Progress;
use super::run::Terminal;
use crate::app;
use crate::control::proto::{Credentials, LayerProgress, LayerSource, PullRequest};
use crate::image::{Platform, Reference};

pub(super) const AFTER: &str = "\
REF is what docker takes: busybox, nginx:1.27, ghcr.io/org/app@sha256:...,
localhost:5000/app. The image's id goes to standard output, progress to standard
error.

Credentials are those of --creds, else those that docker login or podman login
left in --authfile, $REGISTRY_AUTH_FILE, $DOCKER_CONFIG/config.json or
~/.docker/config.json, else those the agent has.

An agent goes on with a pull whose caller went away (Ctrl-C) for 30 s, so that a
second try finds what is there; without an agent the pull ends at once.

Examples:
  larder pull busybox
  larder pull --platform linux/arm64 nginx:1.27
  larder pull --plain-http registry.lan:5000/app:v1
  pass registry | larder pull --creds ann --password-stdin ghcr.io/org/app
  id=$(larder pull -q busybox)";

/// Longest password that is read.
const MAX_PASSWORD: u64 = 64 << 10;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The image
    #[arg(value_name = "REF")]
    reference: String,
    /// os/arch[/variant] [default: the agent's]
    #[arg(long)]
    platform: Option<String>,
    /// Speak HTTP, not HTTPS, to the registry of REF
    #[arg(long)]
    plain_http: bool,
    /// A docker config.json with credentials
    #[arg(long, value_name = "FILE")]
    authfile: Option<PathBuf>,
    /// Account at the registry. Others on this machine can see a password given here: better --password-stdin, or
    /// LARDER_PASSWORD in the environment
    #[arg(
        short = 'u',
        long,
        visible_alias = "username",
        value_name = "USER[:PASS]"
    )]
    creds: Option<Account>,
    /// Read the password from standard input
    #[arg(long, requires = "creds")]
    password_stdin: bool,
}

/// A user and perhaps a password, which is never printed.
#[derive(Clone)]
struct Account {
    username: String,
    password: Option<String>,
}

impl std::fmt::Debug for Account {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Account").finish_non_exhaustive()
    }
}

impl std::str::FromStr for Account {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (username, password) = match text.split_once(':') {
            Some((username, password)) => (username, Some(password.to_owned())),
            None => (text, None),
        };
        if username.is_empty() {
            return Err("there is no user name in it");
        }
        Ok(Account {
            username: username.to_owned(),
            password,
        })
    }
}

/// The outcome for programs: the image as in a list, and what the pull did.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct View {
    #[serde(flatten)]
    image: ImageView,
    reference: String,
    digest: String,
    fetched_bytes: u64,
    up_to_date: bool,
    layers: Vec<LayerView>,
}

#[derive(Debug, Serialize)]
struct LayerView {
    digest: String,
    size: u64,
    fetched: u64,
    inflated: u64,
    deduplicated: u64,
    written: u64,
    source: &'static str,
}

impl From<LayerProgress> for LayerView {
    fn from(layer: LayerProgress) -> Self {
        LayerView {
            source: match layer.source() {
                LayerSource::Unspecified => "unknown",
                LayerSource::Present => "present",
                LayerSource::Registry => "registry",
                LayerSource::Shared => "shared",
            },
            digest: layer.digest,
            size: layer.size,
            fetched: layer.fetched,
            inflated: layer.inflated,
            deduplicated: layer.deduplicated,
            written: layer.written,
        }
    }
}

impl Args {
    /// What is wrong with the command line, before anybody is asked.
    pub(super) fn check(&self) -> Done {
        self.parsed()?;
        match &self.creds {
            Some(account) if account.password.is_some() && self.password_stdin => {
                Err(Failure::usage(
                    "--creds has a password already: leave it out, or leave out --password-stdin",
                ))
            }
            Some(account) if account.password.is_none() && !self.password_stdin => {
                password_of_environment().map(drop)
            }
            _ => Ok(()),
        }
    }

    fn parsed(&self) -> Result<Reference, Failure> {
        if let Some(platform) = &self.platform {
            platform.parse::<Platform>().map_err(Failure::usage)?;
        }
        self.reference.parse::<Reference>().map_err(Failure::usage)
    }

    async fn credentials(&self, repository: &str) -> Result<Option<Credentials>, Failure> {
        let Some(Account { username, password }) = self.creds.clone() else {
            let found = app::credentials_for(self.authfile.as_deref(), repository).await?;
            if let Some(warning) = found.warning {
                eprintln!("larder: {warning}; pulling without credentials");
            }
            return Ok(found.credentials);
        };
        let password = match password {
            Some(password) => password,
            None if !self.password_stdin => password_of_environment()?,
            None => tokio::task::spawn_blocking(|| password_from(std::io::stdin().lock()))
                .await
                .map_err(Failure::new)??,
        };
        Ok(Some(Credentials {
            username,
            password,
            ..Credentials::default()
        }))
    }
}

fn password_of_environment() -> Result<String, Failure> {
    std::env::var("LARDER_PASSWORD").map_err(|_| {
        Failure::usage(
            "--creds has no password: add --password-stdin and give it on standard input, or set LARDER_PASSWORD",
        )
    })
}

/// One line, without its end.
fn password_from(input: impl Read) -> Result<String, Failure> {
    let mut text = String::new();
    input
        .take(MAX_PASSWORD)
        .read_to_string(&mut text)
        .map_err(|error| Failure::new(format!("password on standard input: {error}")))?;
    let password = text.trim_end_matches(['\r', '\n']);
    if password.is_empty() {
        return Err(Failure::usage("there is no password on standard input"));
    }
    Ok(password.to_owned())
}

pub(super) async fn run(args: &Args, client: &mut Client, terminal: &Terminal) -> Done {
    let reference = args.parsed()?;
    let request = PullRequest {
        reference: args.reference.clone(),
        platform: args.platform.clone().unwrap_or_default(),
        plain_http: args.plain_http,
        credentials: args.credentials(&reference.repository()).await?,
    };
    let started = Instant::now();
    let mut progress = Progress::new(&familiar(&args.reference), terminal);
    let answer = client.images.pull(request).await;
    let mut events = client.answer(answer)?;
    let mut result = None;
    let mut layers = Vec::new();
    loop {
        match events.message().await {
            Ok(Some(event)) => {
                progress.update(&event, started.elapsed());
                if !event.layers.is_empty() {
                    layers = event.layers;
                }
                result = event.result.or(result);
            }
            Ok(None) => break,
            Err(status) => {
                progress.abandon();
                return Err(client.failure(&status));
            }
        }
    }
    let result = result.ok_or_else(|| Failure::new("the pull ended without a result"))?;
    progress.finish(&result, started.elapsed());
    let view = View {
        image: ImageView::from(result.image.unwrap_or_default()),
        reference: reference.to_string(),
        digest: result.digest,
        fetched_bytes: result.fetched_bytes,
        up_to_date: result.up_to_date,
        layers: layers.into_iter().map(LayerView::from).collect(),
    };
    if terminal.quiet || !terminal.format().print(&view)? {
        say(&view.image.id)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(change: impl FnOnce(&mut Args)) -> Args {
        let mut args = Args {
            reference: "busybox".to_owned(),
            platform: None,
            plain_http: false,
            authfile: None,
            creds: None,
            password_stdin: false,
        };
        change(&mut args);
        args
    }

    #[test]
    fn usage_errors_come_first() {
        assert!(args(|_| ()).check().is_ok());
        let code = |change: fn(&mut Args)| args(change).check().unwrap_err().code();
        assert_eq!(code(|args| args.reference = "A B".to_owned()), 2);
        assert_eq!(code(|args| args.platform = Some("a/b/c/d".to_owned())), 2);
        assert_eq!(code(|args| args.creds = "ann".parse().ok()), 2);
        assert_eq!(
            code(|args| {
                args.creds = "ann:secret".parse().ok();
                args.password_stdin = true;
            }),
            2
        );
    }

    #[tokio::test]
    async fn accounts() {
        let given = args(|args| args.creds = "ann:se:cret".parse().ok());
        assert!(!format!("{given:?}").contains("cret"));
        let found = given.credentials("r.io").await.unwrap().unwrap();
        assert_eq!(
            (found.username.as_str(), found.password.as_str()),
            ("ann", "se:cret")
        );
        assert!(":secret".parse::<Account>().is_err());
        assert_eq!(password_from(&b"secret\r\n"[..]).unwrap(), "secret");
        assert_eq!(password_from(&b"\n"[..]).unwrap_err().code(), 2);
    }
}
