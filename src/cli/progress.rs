//! Progress of a pull: bars on a terminal, a line an event elsewhere.

use std::collections::BTreeMap;
use std::io::{self, IsTerminal, Write};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::output;
use crate::control::proto::{LayerProgress, LayerSource, PullEvent, PullPhase};

/// Whoever watches a pull.
pub(super) enum Watcher {
    Nothing,
    Bars(Bars),
    Lines(Lines),
}

impl Watcher {
    /// Bars on a terminal, lines elsewhere, nothing where quiet is wanted.
    pub(super) fn for_terminal(quiet: bool, reference: &str) -> Self {
        if quiet {
            Watcher::Nothing
        } else if io::stderr().is_terminal() {
            Watcher::Bars(Bars::new(reference))
        } else {
            Watcher::Lines(Lines::default())
        }
    }

    pub(super) fn show(&mut self, event: &PullEvent) {
        match self {
            Watcher::Nothing => {}
            Watcher::Bars(bars) => bars.show(event),
            Watcher::Lines(lines) => {
                for line in lines.next(event) {
                    let _ = writeln!(io::stderr(), "{line}");
                }
            }
        }
    }

    pub(super) fn finish(&mut self) {
        if let Watcher::Bars(bars) = self {
            bars.finish();
        }
    }
}

/// Where a layer comes from, in a word.
pub(super) fn source(layer: &LayerProgress) -> &'static str {
    match layer.source() {
        LayerSource::Unspecified => "unknown",
        LayerSource::Present => "present",
        LayerSource::Registry => "registry",
        LayerSource::Shared => "shared",
    }
}

/// 12 digits of a digest, as docker shows layers.
fn short(digest: &str) -> &str {
    let hex = digest.split_once(':').map_or(digest, |(_, hex)| hex);
    hex.get(..12).unwrap_or(hex)
}

/// What became of a layer.
fn outcome(layer: &LayerProgress) -> String {
    if layer.source() == LayerSource::Present {
        return "Already exists".to_owned();
    }
    let what = format!("Done, {} fetched", output::bytes(layer.fetched));
    match layer.deduplicated {
        0 => what,
        known => format!("{what}, {} were here", output::bytes(known)),
    }
}

/// One bar a layer, at most 80 columns wide.
pub(super) struct Bars {
    all: MultiProgress,
    head: ProgressBar,
    layers: BTreeMap<usize, ProgressBar>,
    reference: String,
}

impl Bars {
    pub(super) fn new(reference: &str) -> Self {
        let all = MultiProgress::with_draw_target(ProgressDrawTarget::stderr_with_hz(10));
        let head = all.add(ProgressBar::new_spinner());
        head.set_style(
            ProgressStyle::with_template("{msg}")
                .unwrap_or_else(|_| ProgressStyle::default_spinner()),
        );
        head.set_message(format!("{reference}: resolving"));
        Bars {
            all,
            head,
            layers: BTreeMap::new(),
            reference: reference.to_owned(),
        }
    }

    fn show(&mut self, event: &PullEvent) {
        let what = match event.phase() {
            PullPhase::Unspecified | PullPhase::Resolving => "resolving".to_owned(),
            PullPhase::Fetching => format!("pulling from {}", event.host),
            PullPhase::Committing => "committing".to_owned(),
            PullPhase::Done => "done".to_owned(),
        };
        self.head.set_message(format!("{}: {what}", self.reference));
        for (at, layer) in event.layers.iter().enumerate() {
            let bar = self.layers.entry(at).or_insert_with(|| {
                let bar = self.all.add(ProgressBar::new(layer.size));
                bar.set_prefix(short(&layer.digest).to_owned());
                bar
            });
            if bar.is_finished() {
                continue;
            }
            if layer.done {
                bar.set_style(style("{prefix} {msg}"));
                bar.finish_with_message(outcome(layer));
            } else if layer.fetched == 0 {
                bar.set_style(style("{prefix} {msg}"));
                bar.set_message("Waiting");
            } else {
                bar.set_style(style("{prefix} [{bar:30}] {msg}"));
                bar.set_position(layer.fetched.min(layer.size));
                let state = if layer.fetched >= layer.size {
                    "unpacking".to_owned()
                } else {
                    format!(
                        "{} of {}",
                        output::bytes(layer.fetched),
                        output::bytes(layer.size)
                    )
                };
                bar.set_message(state);
            }
        }
    }

    fn finish(&mut self) {
        self.head.finish_and_clear();
        for bar in self.layers.values() {
            if !bar.is_finished() {
                bar.abandon();
            }
        }
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template)
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("=> ")
}

/// Remembers what was said, so that each thing is said once.
#[derive(Default)]
pub(super) struct Lines {
    resolved: bool,
    told: BTreeMap<usize, &'static str>,
}

impl Lines {
    fn next(&mut self, event: &PullEvent) -> Vec<String> {
        let mut lines = Vec::new();
        if !self.resolved && !event.digest.is_empty() {
            self.resolved = true;
            lines.push(format!("Resolved {} at {}", event.digest, event.host));
        }
        for (at, layer) in event.layers.iter().enumerate() {
            let state = if layer.done {
                "done"
            } else if layer.fetched > 0 {
                "fetching"
            } else {
                continue;
            };
            if self.told.insert(at, state) == Some(state) {
                continue;
            }
            let what = match state {
                "done" => outcome(layer),
                _ => format!("Fetching {}", output::bytes(layer.size)),
            };
            lines.push(format!("{}: {what}", short(&layer.digest)));
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer(fetched: u64, done: bool, source: LayerSource) -> LayerProgress {
        LayerProgress {
            digest: format!("sha256:{}", "ab".repeat(32)),
            size: 2000,
            fetched,
            deduplicated: 0,
            source: source.into(),
            done,
            ..LayerProgress::default()
        }
    }

    #[test]
    fn says_each_thing_once() {
        let mut lines = Lines::default();
        let event = |layer| PullEvent {
            digest: "sha256:1".into(),
            host: "r.io".into(),
            layers: vec![layer],
            ..PullEvent::default()
        };
        let waiting = event(layer(0, false, LayerSource::Unspecified));
        assert_eq!(lines.next(&waiting), ["Resolved sha256:1 at r.io"]);
        let some = event(layer(10, false, LayerSource::Registry));
        assert_eq!(lines.next(&some), ["abababababab: Fetching 2.00kB"]);
        assert!(lines.next(&some).is_empty());
        let done = event(layer(2000, true, LayerSource::Registry));
        assert_eq!(lines.next(&done), ["abababababab: Done, 2.00kB fetched"]);
        assert!(lines.next(&done).is_empty());
        let mut lines = Lines::default();
        let there = event(layer(0, true, LayerSource::Present));
        assert_eq!(lines.next(&there)[1], "abababababab: Already exists");
    }
}
