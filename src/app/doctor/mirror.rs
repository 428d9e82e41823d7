//! Whether containerd comes through the agent's mirror where somebody wanted it to: pure.

use toml::Table;

use super::{Facts, Finding};
use crate::app::setup::{Mirrored, mirrored};

const NAME: &str = "mirror";
const HOW: &str = "larder setup containerd";

/// `folder`: what containerd's configuration has as `config_path`; `old`: whether that is of containerd 1.7.
pub(super) fn check(facts: &Facts, folder: Option<&str>, old: bool) -> Vec<Finding> {
    let Some(mirror) = &facts.mirror else {
        return Vec::new();
    };
    let mut through = 0usize;
    let mut findings = Vec::new();
    for (path, text) in &facts.registries {
        let Ok(text) = text else { continue };
        let (place, found) = (path.display(), mirrored(text, mirror.address));
        let fault = match &found {
            Mirrored::No => continue,
            Mirrored::Broken(cause) => {
                findings.push(Finding::bad(
                    NAME,
                    format!("{place}: {cause}: containerd loses its mirrors without a word"),
                    "mend the file; it is read at each pull",
                ));
                continue;
            }
            Mirrored::First => None,
            Mirrored::After(host) => Some(format!("{host} is asked before it")),
            Mirrored::Narrow => Some("its capabilities lack pull or resolve".to_owned()),
            Mirrored::Elsewhere(url) => Some(format!(
                "it names {url}, and the mirror is at {}",
                mirror.address
            )),
        };
        through = through.saturating_add(1);
        findings.extend(fault.map(|fault| Finding::warn(NAME, format!("{place}: {fault}"), HOW)));
    }
    if through == 0 {
        // Who asked for a mirror has one; that nobody uses it is worth a word.
        if mirror.wanted {
            findings.push(Finding::warn(
                NAME,
                format!("no hosts.toml sends containerd to {}", mirror.address),
                HOW,
            ));
        }
        return findings;
    }
    match folder.filter(|folder| !folder.is_empty()) {
        None => findings.push(Finding::bad(
            NAME,
            "hosts.toml files are not read: containerd's config_path is not set",
            HOW,
        )),
        Some(list) if list.contains(':') && !old => findings.push(Finding::bad(
            NAME,
            format!("hosts.toml files are not read: containerd 2 takes {list:?} for one folder"),
            "name one folder as config_path, and restart containerd",
        )),
        Some(_) => {}
    }
    if !mirror.answers {
        findings.push(Finding::warn(
            NAME,
            format!(
                "nobody listens at {}: containerd asks the registries themselves",
                mirror.address
            ),
            format!("larder agent --mirror {}", mirror.address),
        ));
    }
    if findings.is_empty() {
        findings.push(Finding::ok(
            NAME,
            format!(
                "containerd pulls through {} by {through} hosts.toml",
                mirror.address
            ),
        ));
    }
    findings
}

/// What a configuration has as `config_path`.
pub(super) fn folder<'a>(config: &'a Table, plugin: &str) -> Option<&'a str> {
    let plugin = config.get("plugins")?.get(plugin)?;
    plugin.get("registry")?.get("config_path")?.as_str()
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::super::Mirror;
    use super::super::Verdict::{self, Bad, Ok as Good, Warn};
    use super::*;

    fn verdicts(texts: &[&str], folder: Option<&str>, answers: bool) -> Vec<Verdict> {
        let read = |text: &&str| (PathBuf::from("x/hosts.toml"), Ok((*text).to_owned()));
        let facts = Facts {
            registries: texts.iter().map(read).collect(),
            mirror: Some(Mirror {
                address: "127.0.0.1:9641".parse().unwrap(),
                wanted: true,
                answers,
            }),
            ..Facts::default()
        };
        let findings = check(&facts, folder, false);
        findings.iter().map(|finding| finding.verdict).collect()
    }

    #[test]
    fn a_mirror_is_worth_what_its_files_say() {
        let good = "[host.\"http://127.0.0.1:9641\"]\ncapabilities = [\"pull\", \"resolve\"]\n";
        let narrow = "[host.\"http://127.0.0.1:9641\"]\ncapabilities = [\"pull\"]\n";
        let second = format!("[host.\"https://a.example\"]\n{good}");
        let moved = "# BEGIN larder setup containerd\n[host.\"http://127.0.0.1:1\"]\n# END larder setup containerd\n";
        let one = Some("/etc/containerd/certs.d");
        for (texts, folder, answers, expected) in [
            (&[][..], one, true, &[Warn][..]),
            (&["server = 'https://x'\n"], one, true, &[Warn]),
            (&[good], one, true, &[Good]),
            (&[good], one, false, &[Warn]),
            (&[good], None, true, &[Bad]),
            (&[good], Some(""), true, &[Bad]),
            (&[good], Some("/a:/b"), true, &[Bad]),
            (&[narrow, good], one, true, &[Warn]),
            (&[&second], one, true, &[Warn]),
            (&[moved], one, true, &[Warn]),
            (
                &["host = 1\n# BEGIN larder setup containerd\n", good],
                one,
                true,
                &[Bad],
            ),
        ] {
            assert_eq!(verdicts(texts, folder, answers), expected, "{texts:?}");
        }
        assert_eq!(check(&Facts::default(), None, false), []);
    }
}
