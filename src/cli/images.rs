//! `larder images`.

use jiff::Timestamp;
use serde::Serialize;

use super::Done;
use super::client::Client;
use super::output::{self, ago, end_of, familiar, say, short_id, size, split_tag};
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
/// Bytes of a shortened digest: its algorithm and 12 digits.
const DIGEST: usize = "sha256:".len() + 12;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Only images with such a name
    #[arg(default_value = "", hide_default_value = true)]
    pattern: String,
    /// Show the digests that were pulled
    #[arg(long)]
    digests: bool,
    /// Show whole names, ids and digests
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
    staged: bool,
    declared_by: Vec<String>,
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
            staged: image.staged,
            declared_by: image.declared_by,
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
    let options = Options {
        digests: args.digests,
        whole: args.no_trunc,
        width: output::terminal_width().filter(|_| !args.no_trunc),
    };
    say(text(&images, options, Timestamp::now()))?;
    Ok(())
}

/// How the table looks.
#[derive(Clone, Copy, Debug, Default)]
struct Options {
    digests: bool,
    /// Whole ids and digests.
    whole: bool,
    /// Columns to fit into.
    width: Option<usize>,
}

/// One row a name, as docker has it.
fn text(images: &[Image], options: Options, now: Timestamp) -> String {
    let mut rows = Vec::new();
    for image in images {
        for [repository, tag, digest] in names(image) {
            let (id, digest) = if options.whole {
                (image.id.clone(), digest)
            } else {
                let begin = digest.get(..DIGEST).unwrap_or(&digest);
                (short_id(&image.id).to_owned(), begin.to_owned())
            };
            let created = ago(&image.created, now);
            let mut size = size(image.size);
            if image.staged {
                // Pulled ahead with somebody's secret: pods do not see it before they prove access.
                size.push_str(" (staged)");
            }
            rows.push([repository, tag, digest, id, created, size]);
        }
    }
    // What has no name comes last.
    rows.sort_by(|a, b| (a[0] == NONE, a).cmp(&(b[0] == NONE, b)));
    let mut table = layout(&rows, options.digests);
    let Some(width) = options.width else {
        return table;
    };
    // Wrapped lines are no columns: names give way, the repository first.
    for (column, least) in [(0, 24), (1, 12)] {
        let over = widest(&table).saturating_sub(width);
        let longest = rows.iter().map(|row| row[column].chars().count()).max();
        let room = longest.unwrap_or(0).saturating_sub(over).max(least);
        for row in &mut rows {
            row[column] = end_of(&row[column], room);
        }
        table = layout(&rows, options.digests);
    }
    table
}

fn widest(table: &str) -> usize {
    let lines = table.lines().map(|line| line.chars().count());
    lines.max().unwrap_or(0)
}

fn layout(rows: &[[String; 6]], digests: bool) -> String {
    let rows = rows.iter().cloned();
    if digests {
        let header = ["REPOSITORY", "TAG", "DIGEST", "IMAGE ID", "CREATED", "SIZE"];
        return output::table(header, rows, &[]);
    }
    let header = ["REPOSITORY", "TAG", "IMAGE ID", "CREATED", "SIZE"];
    let rows =
        rows.map(|[repository, tag, _, id, created, size]| [repository, tag, id, created, size]);
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
        let table = text(&images, Options::default(), now);
        assert_eq!(
            table,
            "\
REPOSITORY              TAG      IMAGE ID        CREATED      SIZE
busybox                 1.36     aaaaaaaaaaaaa   5 days ago   4.26MB
busybox                 latest   aaaaaaaaaaaaa   5 days ago   4.26MB
registry.k8s.io/pause   <none>   bbbbbbbbbbbbb   5 days ago   4.26MB
<none>                  <none>   ccccccccccccc   5 days ago   4.26MB"
        );
        assert!(widest(&table) < 80);
        let staged = Image {
            staged: true,
            ..images[2].clone()
        };
        assert!(text(&[staged], Options::default(), now).ends_with(" 4.26MB (staged)"));
        let options = Options {
            digests: true,
            whole: true,
            width: None,
        };
        let table = text(&images, options, now);
        assert!(table.contains("sha256:aa   sha256:aaaaaaaa"), "{table}");
    }

    #[test]
    fn long_names_give_way_on_a_terminal() {
        let name = "registry.example.com/a-team/some-product/component-api-server:2026.11.21-rc1";
        let images = [image("a", &[name], &[]), image("b", &["r.io/x:1"], &[])];
        let now = "2026-05-06T00:00:00Z".parse().unwrap();
        let whole = text(&images, Options::default(), now);
        assert!(whole.contains("registry.example.com/a-team/some-product/component-api-server "));
        for (width, holds) in [
            (80, "/component-api-server   2026.11.21-rc1 "),
            (60, ".../component-api-server   ...11.21-rc1 "),
        ] {
            let options = Options {
                width: Some(width),
                ..Options::default()
            };
            let table = text(&images, options, now);
            assert!(table.contains(holds), "{table}");
            assert!(table.contains("r.io/x "), "{table}");
            assert!(width < 80 || widest(&table) <= width, "{table}");
        }
    }

    #[test]
    fn programs_get_every_key() {
        let json = serde_json::to_value(View::from(Image::default())).unwrap();
        for key in ["id", "repoTags", "repoDigests", "size", "created", "pinned"] {
            assert!(!json[key].is_null(), "{key}");
        }
    }
}
