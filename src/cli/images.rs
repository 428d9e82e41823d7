//! `larder images`

use clap::Args;
use serde::Serialize;

use super::client::Client;
use super::failure::Failure;
use super::{Global, output};
use crate::control::proto::{self, ListRequest};

/// Lists the images that are complete and verified.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  larder images\n  larder images 'registry.example/*' -o json")]
pub(super) struct Images {
    /// Repository or reference, with * and ?
    #[arg(value_name = "PATTERN")]
    pattern: Option<String>,
    /// Show digests
    #[arg(long)]
    digests: bool,
    /// Show whole ids and digests
    #[arg(long)]
    no_trunc: bool,
}

/// One image, as `-o json` prints it.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Shown {
    pub(super) id: String,
    pub(super) repo_tags: Vec<String>,
    pub(super) repo_digests: Vec<String>,
    pub(super) size: u64,
    pub(super) created: String,
    pub(super) pinned: bool,
    pub(super) platform: String,
    pub(super) manifest: String,
    pub(super) pulled_at: String,
}

impl From<proto::Image> for Shown {
    fn from(image: proto::Image) -> Self {
        Shown {
            id: image.id,
            repo_tags: image.repo_tags,
            repo_digests: image.repo_digests,
            size: image.size,
            created: image.created,
            pinned: image.pinned,
            platform: image.platform,
            manifest: image.manifest,
            pulled_at: image.pulled_at,
        }
    }
}

impl Images {
    pub(super) async fn run(self, global: &Global, mut client: Client) -> Result<(), Failure> {
        let request = ListRequest {
            pattern: self.pattern.clone().unwrap_or_default(),
        };
        let answer = client.list(request).await?.into_inner();
        let images: Vec<Shown> = answer.images.into_iter().map(Shown::from).collect();
        if global.quiet {
            for image in &images {
                output::line(&image.id)?;
            }
            return Ok(());
        }
        if output::structured(global.output, &images)? {
            return Ok(());
        }
        output::line(&self.table(&images, jiff::Timestamp::now()))
    }

    fn table(&self, images: &[Shown], now: jiff::Timestamp) -> String {
        let mut header = vec!["REPOSITORY", "TAG"];
        if self.digests {
            header.push("DIGEST");
        }
        header.extend(["IMAGE ID", "CREATED", "SIZE"]);
        let mut rows = Vec::new();
        for image in images {
            for (repository, tag, digest) in names(image) {
                let mut row = vec![repository, tag];
                if self.digests {
                    row.push(match digest.get(..19) {
                        Some(short) if !self.no_trunc => short.to_owned(),
                        _ => digest,
                    });
                }
                row.push(if self.no_trunc {
                    image.id.clone()
                } else {
                    output::short(&image.id).to_owned()
                });
                row.push(output::ago(&image.created, now));
                row.push(output::bytes(image.size));
                rows.push(row);
            }
        }
        let size = header.len() - 1;
        output::table(&header, &[size], rows)
    }
}

/// One line a tag; an image without tags has one line a repository.
fn names(image: &Shown) -> Vec<(String, String, String)> {
    let none = || "<none>".to_owned();
    let split = |name: &str| -> (String, String) {
        name.split_once('@')
            .map_or((name.to_owned(), none()), |(repository, digest)| {
                (repository.to_owned(), digest.to_owned())
            })
    };
    let digests: Vec<(String, String)> =
        image.repo_digests.iter().map(|name| split(name)).collect();
    let repository_of = |full: &str| {
        let familiar = output::familiar(full);
        familiar
            .strip_suffix(":latest")
            .unwrap_or(&familiar)
            .to_owned()
    };
    if image.repo_tags.is_empty() {
        if digests.is_empty() {
            return vec![(none(), none(), none())];
        }
        return digests
            .into_iter()
            .map(|(repository, digest)| (repository_of(&repository), none(), digest))
            .collect();
    }
    image
        .repo_tags
        .iter()
        .map(|name| {
            let (repository, tag) = name.rsplit_once(':').unwrap_or((name, "<none>"));
            let digest = digests
                .iter()
                .find(|(known, _)| known == repository)
                .map_or_else(none, |(_, digest)| digest.clone());
            (repository_of(repository), tag.to_owned(), digest)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fits_a_terminal() {
        let image = |tags: &[&str], digests: &[&str]| Shown {
            id: format!("sha256:{}", "0123456789abcdef".repeat(4)),
            repo_tags: tags.iter().map(ToString::to_string).collect(),
            repo_digests: digests.iter().map(ToString::to_string).collect(),
            size: 4_260_000,
            created: "2026-01-01T00:00:00Z".into(),
            pinned: false,
            platform: "linux/amd64".into(),
            manifest: String::new(),
            pulled_at: String::new(),
        };
        let list = Images {
            pattern: None,
            digests: false,
            no_trunc: false,
        };
        let shown = list.table(
            &[
                image(
                    &["docker.io/library/busybox:1.36", "r.io:5000/a/b:latest"],
                    &["r.io:5000/a/b@sha256:11"],
                ),
                image(&[], &["docker.io/library/x@sha256:22"]),
                image(&[], &[]),
            ],
            "2026-01-03T00:00:00Z".parse().unwrap(),
        );
        assert_eq!(
            shown,
            "\
REPOSITORY      TAG      IMAGE ID        CREATED        SIZE
busybox         1.36     0123456789abc   2 days ago   4.26MB
r.io:5000/a/b   latest   0123456789abc   2 days ago   4.26MB
x               <none>   0123456789abc   2 days ago   4.26MB
<none>          <none>   0123456789abc   2 days ago   4.26MB"
        );
        assert!(shown.lines().all(|line| line.len() <= 80));
    }
}
