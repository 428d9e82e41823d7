//! `larder images`.

use jiff::Timestamp;
use serde::Serialize;

use super::Done;
use super::client::Client;
use super::output::{self, ago, familiar, say, short_id, size, split_tag};
use super::run::Terminal;
use crate::control::proto::{Image, ListRequest};

pub(super) const AFTER: &str = "\
PATTERN is a repository or a name with a tag; * is any text, ? any one character.

Examples:
  larder images
  larder images 'registry.k8s.io/*'
  larder images -q busybox
  larder images -o json | jq -r '.[] | select(.pinned | not) | .id'";

/// What a table has where there is nothing, in docker's word.
const NONE: &str = "<none>";

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Only images with such a name
    #[arg(default_value = "", hide_default_value = true)]
    pattern: String,
    /// Show the digests that were pulled
    #[arg(long)]
    digests: bool,
    /// Show whole ids
    #[arg(long)]
    no_trunc: bool,
}

/// An image for programs.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct View {
    pub(super) id: String,
    repo_tags: Vec<String>,
    repo_digests: Vec<String>,
    size: u64,
    created: String,
    pinned: bool,
    platform: String,
    manifest: String,
    pulled_at: String,
}

impl From<Image> for View {
    fn from(image: Image) -> Self {
        View {
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

pub(super) async fn run(args: Args, client: &mut Client, terminal: &Terminal) -> Done {
    let request = ListRequest {
        pattern: args.pattern,
    };
    let answer = client.images.list(request).await;
    let images = client.answer(answer)?.images;
    if terminal.quiet {
        for image in images {
            say(image.id)?;
        }
        return Ok(());
    }
    let format = terminal.format();
    if format != output::Format::Table {
        let views: Vec<View> = images.into_iter().map(View::from).collect();
        format.print(&views)?;
        return Ok(());
    }
    say(text(&images, args.digests, args.no_trunc, Timestamp::now()))?;
    Ok(())
}

/// One row a name, as docker has it.
fn text(images: &[Image], digests: bool, no_trunc: bool, now: Timestamp) -> String {
    let mut rows = Vec::new();
    for image in images {
        for [repository, tag, digest] in names(image) {
            let id = if no_trunc {
                image.id.clone()
            } else {
                short_id(&image.id).to_owned()
            };
            let created = ago(&image.created, now);
            rows.push([repository, tag, digest, id, created, size(image.size)]);
        }
    }
    // What has no name comes last.
    rows.sort_by(|a, b| (a[0] == NONE, a).cmp(&(b[0] == NONE, b)));
    if digests {
        let header = ["REPOSITORY", "TAG", "DIGEST", "IMAGE ID", "CREATED", "SIZE"];
        return output::table(header, rows, &[]);
    }
    let header = ["REPOSITORY", "TAG", "IMAGE ID", "CREATED", "SIZE"];
    let rows = rows
        .into_iter()
        .map(|[repository, tag, _, id, created, size]| [repository, tag, id, created, size]);
    output::table(header, rows, &[])
}

/// Repository, tag and digest of each row: one for each tag, and one for each repository that is known by digest only.
fn names(image: &Image) -> Vec<[String; 3]> {
    let digests: Vec<(String, &str)> = image
        .repo_digests
        .iter()
        .filter_map(|name| name.rsplit_once('@'))
        .map(|(repository, digest)| (repository.to_owned(), digest))
        .collect();
    let mut rows = Vec::new();
    let mut tagged = Vec::new();
    for name in &image.repo_tags {
        let (repository, _) = split_tag(name);
        tagged.push(repository.to_owned());
        let digest = digests
            .iter()
            .find(|(of, _)| of == repository)
            .map_or(NONE, |(_, digest)| digest);
        let shown = familiar(name);
        let (repository, tag) = split_tag(&shown);
        rows.push([repository, tag, digest].map(str::to_owned));
    }
    for (repository, digest) in &digests {
        if !tagged.contains(repository) {
            let shown = familiar(&format!("{repository}:x"));
            let (repository, _) = split_tag(&shown);
            rows.push([repository, NONE, digest].map(str::to_owned));
        }
    }
    if rows.is_empty() {
        rows.push([NONE, NONE, NONE].map(str::to_owned));
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(id: &str, tags: &[&str], digests: &[&str]) -> Image {
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        Image {
            id: format!("sha256:{}", id.repeat(64)),
            repo_tags: owned(tags),
            repo_digests: owned(digests),
            size: 4_260_000,
            created: "2026-05-01T00:00:00Z".to_owned(),
            ..Image::default()
        }
    }

    #[test]
    fn a_row_for_each_name_in_eighty_columns() {
        let images = [
            image(
                "a",
                &[
                    "docker.io/library/busybox:1.36",
                    "docker.io/library/busybox:latest",
                ],
                &["docker.io/library/busybox@sha256:aa"],
            ),
            image("b", &[], &["registry.k8s.io/pause@sha256:bb"]),
            image("c", &[], &[]),
        ];
        let now = "2026-05-06T00:00:00Z".parse().unwrap();
        let table = text(&images, false, false, now);
        assert_eq!(
            table,
            "\
REPOSITORY              TAG      IMAGE ID        CREATED      SIZE
busybox                 1.36     aaaaaaaaaaaaa   5 days ago   4.26MB
busybox                 latest   aaaaaaaaaaaaa   5 days ago   4.26MB
registry.k8s.io/pause   <none>   bbbbbbbbbbbbb   5 days ago   4.26MB
<none>                  <none>   ccccccccccccc   5 days ago   4.26MB"
        );
        assert!(table.lines().all(|line| line.len() < 80));
        let table = text(&images, true, true, now);
        assert!(table.contains("sha256:aa   sha256:aaaaaaaa"), "{table}");
    }

    #[test]
    fn programs_get_every_key() {
        let json = serde_json::to_value(View::from(Image::default())).unwrap();
        for key in ["id", "repoTags", "repoDigests", "size", "created", "pinned"] {
            assert!(!json[key].is_null(), "{key}");
        }
    }
}
