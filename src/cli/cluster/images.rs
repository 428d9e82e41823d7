//! `kubectl larder images`.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::Globals;
use super::agents::{Chosen, answered, ask};
use super::objects::Objects;
use crate::cli::Done;
use crate::cli::client::images_client;
use crate::cli::output::{familiar, say, short_id, size, table};
use crate::control::proto::{Image, ListRequest};

pub(super) const AFTER: &str = "\
Images are held by nodes and listed by no object, so agents are asked, at most
50 unless told.

Examples:
  kubectl larder images
  kubectl larder images '*app*' --node node-1 --node node-2
  kubectl larder images -l pool=gpu -o json | jq -r '.[] | select(.nodes == 1).names[]'";

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Only images with such a name
    #[arg(value_name = "PATTERN", default_value = "", hide_default_value = true)]
    pattern: String,
    #[command(flatten)]
    chosen: Chosen,
}

/// One image, over all nodes that hold it.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Row {
    id: String,
    names: Vec<String>,
    size: u64,
    /// How many hold it.
    nodes: usize,
    node_names: Vec<String>,
    pinned: bool,
    declared_by: Vec<String>,
}

pub(super) async fn run(args: &Args, globals: &Globals, objects: &Objects) -> Done {
    let pattern = args.pattern.clone();
    let answers = ask(objects, globals, &args.chosen, move |channel| {
        let request = ListRequest {
            pattern: pattern.clone(),
        };
        async move {
            let answer = images_client(channel).list(request).await?;
            Ok(answer.into_inner().images)
        }
    })
    .await?;
    let answers = answered(answers)?;
    let asked = answers.len();
    let rows = merge(answers);
    if !globals.output.print(&rows)? {
        say(text(&rows, asked))?;
    }
    Ok(())
}

/// Those on most nodes first.
fn merge(answers: Vec<(String, Vec<Image>)>) -> Vec<Row> {
    #[derive(Default)]
    struct Seen {
        names: BTreeSet<String>,
        size: u64,
        nodes: BTreeSet<String>,
        pinned: bool,
        declared_by: BTreeSet<String>,
    }
    let mut by_id: BTreeMap<String, Seen> = BTreeMap::new();
    for (node, images) in answers {
        for image in images {
            let seen = by_id.entry(image.id).or_default();
            seen.names.extend(image.repo_tags);
            seen.names.extend(image.repo_digests);
            seen.size = seen.size.max(image.size);
            seen.nodes.insert(node.clone());
            seen.pinned |= image.pinned;
            seen.declared_by.extend(image.declared_by);
        }
    }
    let mut rows: Vec<_> = by_id
        .into_iter()
        .map(|(id, seen)| {
            // Tags say more than digests.
            let (digests, tags): (Vec<_>, Vec<_>) =
                seen.names.into_iter().partition(|name| name.contains('@'));
            Row {
                id,
                names: tags.into_iter().chain(digests).collect(),
                size: seen.size,
                nodes: seen.nodes.len(),
                node_names: seen.nodes.into_iter().collect(),
                pinned: seen.pinned,
                declared_by: seen.declared_by.into_iter().collect(),
            }
        })
        .collect();
    rows.sort_by(|a, b| {
        b.nodes
            .cmp(&a.nodes)
            .then_with(|| a.names.cmp(&b.names))
            .then_with(|| a.id.cmp(&b.id))
    });
    rows
}

fn text(rows: &[Row], asked: usize) -> String {
    table(
        ["IMAGE", "IMAGE ID", "SIZE", "NODES", "DECLARED BY"],
        rows.iter().map(|row| {
            let name = row.names.first().map_or("<none>", String::as_str);
            let by = match row.declared_by.as_slice() {
                [] => String::new(),
                [one] => one.clone(),
                [one, more @ ..] => format!("{one} and {} more", more.len()),
            };
            [
                familiar(name),
                short_id(&row.id).to_owned(),
                size(row.size),
                format!("{}/{asked}", row.nodes),
                by,
            ]
        }),
        &[2, 3],
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(id: &str, tag: &str) -> Image {
        Image {
            id: id.to_owned(),
            repo_tags: vec![tag.to_owned()],
            repo_digests: vec![format!("{}@sha256:00", tag.split(':').next().unwrap())],
            size: 5,
            ..Image::default()
        }
    }

    #[test]
    fn an_image_of_several_nodes_is_one_row() {
        let rows = merge(vec![
            (
                "n1".to_owned(),
                vec![image("a", "r/x:1"), image("b", "r/y:1")],
            ),
            ("n2".to_owned(), vec![image("b", "r/y:2")]),
        ]);
        let seen: Vec<_> = rows
            .iter()
            .map(|row| (row.id.as_str(), row.nodes, row.names.join(" ")))
            .collect();
        assert_eq!(
            seen,
            [
                ("b", 2, "r/y:1 r/y:2 r/y@sha256:00".to_owned()),
                ("a", 1, "r/x:1 r/x@sha256:00".to_owned()),
            ]
        );
        assert!(text(&rows, 2).contains("2/2"));
    }
}
