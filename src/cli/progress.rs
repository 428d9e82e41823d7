//! How far a pull is: a line for each layer on a terminal, a line for each event elsewhere, nothing with `-q`.
//! What the lines say is decided by pure functions; a line is at most [`WIDTH`] columns wide.

use std::io::{self, Write};
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::failure::coloured;
use super::output::{count, end_of, percent, printable, short, size};
use super::run::Terminal;
use crate::control::proto::{LayerProgress, LayerSource, PullEvent, PullPhase, PullResult};

/// Columns of a line; terminals have 80.
const WIDTH: usize = 79;
/// Columns of a bar between its brackets.
const BAR: usize = 18;
/// Redraws a second.
const RATE: u8 = 10;

/// Shows how far a pull is, on standard error.
pub(super) struct Progress {
    name: String,
    shown: Shown,
    newest: PullEvent,
}

enum Shown {
    Nothing,
    Lines,
    Bars(Bars),
}

struct Bars {
    all: MultiProgress,
    total: ProgressBar,
    layers: Vec<ProgressBar>,
    colours: bool,
}

impl Progress {
    pub(super) fn new(name: &str, terminal: &Terminal) -> Self {
        let shown = match (terminal.quiet, terminal.bars) {
            (true, _) => Shown::Nothing,
            (false, false) => Shown::Lines,
            (false, true) => Shown::Bars(Bars::new()),
        };
        Progress {
            name: printable(name),
            shown,
            newest: PullEvent::default(),
        }
    }

    pub(super) fn update(&mut self, event: &PullEvent, elapsed: Duration) {
        match &mut self.shown {
            Shown::Nothing => {}
            Shown::Lines => print(changes(&self.name, &self.newest, event)),
            Shown::Bars(bars) => bars.update(&self.name, event, elapsed),
        }
        self.newest = event.clone();
    }

    /// The pull came to its end.
    pub(super) fn finish(self, result: &PullResult, elapsed: Duration) {
        let text = summary(&self.name, &self.newest, result, elapsed);
        match self.shown {
            Shown::Nothing => {}
            Shown::Lines => print([text]),
            Shown::Bars(bars) => bars.end(Some(text)),
        }
    }

    /// The pull failed: what was reached stays to be seen.
    pub(super) fn abandon(self) {
        if let Shown::Bars(bars) = self.shown {
            bars.end(None);
        }
    }
}

/// Nobody may be there to read it, which is no reason to stop.
fn print(lines: impl IntoIterator<Item = String>) {
    let mut out = io::stderr().lock();
    for line in lines {
        let _ = writeln!(out, "{line}");
    }
}

impl Bars {
    fn new() -> Self {
        let all = MultiProgress::with_draw_target(ProgressDrawTarget::stderr_with_hz(RATE));
        let total = all.add(line());
        Bars {
            all,
            total,
            layers: Vec::new(),
            colours: coloured(&io::stderr()),
        }
    }

    fn update(&mut self, name: &str, event: &PullEvent, elapsed: Duration) {
        while self.layers.len() < event.layers.len() {
            self.layers.push(self.all.add(line()));
        }
        for (bar, layer) in self.layers.iter().zip(&event.layers) {
            let text = row(layer);
            let text = match (self.colours, State::of(layer)) {
                (true, State::Done) => format!("\x1b[32m{text}\x1b[0m"),
                (true, State::Exists) => format!("\x1b[36m{text}\x1b[0m"),
                _ => text,
            };
            bar.set_message(text);
        }
        self.total.set_message(total(name, event, elapsed));
    }

    fn end(self, text: Option<String>) {
        for bar in &self.layers {
            bar.abandon();
        }
        // Below the layers, where it is seen however many there are.
        self.total.finish_and_clear();
        print(text);
    }
}

/// One line of free text.
fn line() -> ProgressBar {
    let style = ProgressStyle::with_template("{wide_msg}");
    ProgressBar::new_spinner()
        .with_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()))
}

/// Where a layer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Waiting,
    Exists,
    Downloading,
    /// All is here, not all of it is on the disk.
    Storing,
    Done,
}

impl State {
    fn of(layer: &LayerProgress) -> Self {
        match layer.source() {
            LayerSource::Present => State::Exists,
            _ if layer.done => State::Done,
            LayerSource::Unspecified => State::Waiting,
            _ if layer.fetched == 0 => State::Waiting,
            _ if layer.fetched < layer.size => State::Downloading,
            _ => State::Storing,
        }
    }

    fn word(self) -> &'static str {
        match self {
            State::Waiting => "Waiting",
            State::Exists => "Already exists",
            State::Downloading => "Downloading",
            State::Storing => "Storing",
            State::Done => "Done",
        }
    }
}

/// How much of a layer's contents was in the store already.
fn known(layer: &LayerProgress) -> Option<u64> {
    let whole = layer.deduplicated.checked_add(layer.written)?;
    percent(layer.deduplicated, whole).filter(|percent| *percent > 0)
}

/// A layer on a terminal.
fn row(layer: &LayerProgress) -> String {
    let state = State::of(layer);
    let bar = match state {
        State::Downloading => bar(layer.fetched, layer.size),
        _ => String::new(),
    };
    let bytes = match state {
        State::Downloading => format!("{}/{}", size(layer.fetched), size(layer.size)),
        _ => size(layer.size),
    };
    let known = match (state, known(layer)) {
        (State::Exists, _) | (_, None) => String::new(),
        (_, Some(percent)) => format!("{percent}% known"),
    };
    let frame = BAR + 2;
    format!(
        "{:12} {:14} {bar:frame$} {bytes:>15} {known:>10}",
        short(&layer.digest),
        state.word()
    )
    .trim_end()
    .to_owned()
}

fn bar(part: u64, whole: u64) -> String {
    let percent = percent(part, whole).unwrap_or(100).min(100);
    let full = usize::try_from(percent).unwrap_or(100) * BAR / 100;
    let head = if full < BAR { ">" } else { "" };
    let empty = BAR.saturating_sub(full + head.len());
    format!("[{}{head}{}]", "=".repeat(full), " ".repeat(empty))
}

/// The pull as a whole on a terminal.
fn total(name: &str, event: &PullEvent, elapsed: Duration) -> String {
    let text = match event.phase() {
        PullPhase::Resolving => "Resolving".to_owned(),
        PullPhase::Committing => "Committing".to_owned(),
        PullPhase::Done => "Done".to_owned(),
        PullPhase::Fetching | PullPhase::Unspecified => {
            let numbers = Numbers::of(event);
            let mut text = format!("{} of {} layers", numbers.ready, event.layers.len());
            if numbers.to_fetch > 0 {
                let speed = per_second(numbers.fetched, elapsed);
                text += &format!(
                    ", {} of {}, {}/s",
                    size(numbers.fetched),
                    size(numbers.to_fetch),
                    size(speed)
                );
            }
            text
        }
    };
    fit(name, &text)
}

/// `NAME: TEXT` in [`WIDTH`] columns; of a long name the end is shown.
fn fit(name: &str, text: &str) -> String {
    let room = WIDTH.saturating_sub(text.chars().count() + 2);
    format!("{}: {text}", end_of(name, room))
}

fn per_second(bytes: u64, elapsed: Duration) -> u64 {
    // Faster than that is not measured.
    let milliseconds = elapsed.as_millis().max(10);
    u64::try_from(u128::from(bytes) * 1000 / milliseconds).unwrap_or(u64::MAX)
}

/// Sums over the layers of a pull.
#[derive(Debug, Default, PartialEq, Eq)]
struct Numbers {
    existed: u64,
    ready: u64,
    fetched: u64,
    to_fetch: u64,
    deduplicated: u64,
    contents: u64,
}

impl Numbers {
    fn of(event: &PullEvent) -> Self {
        let mut numbers = Numbers::default();
        let add = |sum: &mut u64, more: u64| *sum = sum.saturating_add(more);
        for layer in &event.layers {
            match State::of(layer) {
                State::Exists => {
                    add(&mut numbers.existed, 1);
                    add(&mut numbers.ready, 1);
                    continue;
                }
                State::Done => add(&mut numbers.ready, 1),
                _ => {}
            }
            add(&mut numbers.fetched, layer.fetched);
            add(&mut numbers.to_fetch, layer.size);
            add(&mut numbers.deduplicated, layer.deduplicated);
            add(&mut numbers.contents, layer.deduplicated);
            add(&mut numbers.contents, layer.written);
        }
        numbers
    }
}

/// The last line.
fn summary(name: &str, event: &PullEvent, result: &PullResult, elapsed: Duration) -> String {
    let seconds = elapsed.as_secs_f64();
    if result.up_to_date {
        return fit(name, &format!("up to date, nothing fetched, {seconds:.1}s"));
    }
    let numbers = Numbers::of(event);
    let layers = u64::try_from(event.layers.len()).unwrap_or(u64::MAX);
    let mut text = count(layers, "layer");
    if numbers.existed > 0 {
        text += &format!(", {} existed", numbers.existed);
    }
    text += &format!(", {} fetched", size(result.fetched_bytes));
    if let Some(known) = percent(numbers.deduplicated, numbers.contents).filter(|known| *known > 0)
    {
        text += &format!(", {known}% known");
    }
    text += &format!(", {seconds:.1}s");
    fit(name, &text)
}

/// What is new since the last event, where there is no terminal.
fn changes(name: &str, before: &PullEvent, now: &PullEvent) -> Vec<String> {
    let mut lines = Vec::new();
    if before.layers.is_empty() && !now.layers.is_empty() {
        let layers = u64::try_from(now.layers.len()).unwrap_or(u64::MAX);
        let from = match now.host.as_str() {
            "" => String::new(),
            host => format!(" from {}", printable(host)),
        };
        lines.push(format!(
            "{name}: {}{from}, {}",
            now.digest,
            count(layers, "layer")
        ));
    }
    for (at, layer) in now.layers.iter().enumerate() {
        let state = State::of(layer);
        let was = before.layers.get(at).map_or(State::Waiting, State::of);
        if state == was {
            continue;
        }
        let digest = short(&layer.digest);
        let bytes = size(layer.size);
        match state {
            State::Waiting | State::Storing => {}
            State::Exists => lines.push(format!("{digest}: Already exists, {bytes}")),
            State::Downloading if layer.source() == LayerSource::Shared => {
                lines.push(format!(
                    "{digest}: Downloading for another pull too, {bytes}"
                ));
            }
            State::Downloading => lines.push(format!("{digest}: Downloading, {bytes}")),
            State::Done => {
                let known = known(layer).map(|percent| format!(", {percent}% known"));
                lines.push(format!(
                    "{digest}: Done, {bytes}{}",
                    known.unwrap_or_default()
                ));
            }
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer(source: LayerSource, fetched: u64, done: bool) -> LayerProgress {
        LayerProgress {
            digest: "sha256:0123456789abcdef".to_owned(),
            size: 45_600_000,
            fetched,
            inflated: 0,
            deduplicated: 0,
            written: 0,
            source: source.into(),
            done,
        }
    }

    fn event(phase: PullPhase, layers: &[LayerProgress]) -> PullEvent {
        PullEvent {
            phase: phase.into(),
            digest: "sha256:aa".to_owned(),
            host: "registry.lan".to_owned(),
            layers: layers.to_vec(),
            result: None,
        }
    }

    #[test]
    fn rows() {
        use LayerSource::{Present, Registry, Unspecified};
        let mut busy = layer(Registry, 12_300_000, false);
        busy.deduplicated = 1;
        busy.written = 3;
        for (layer, text) in [
            (
                layer(Unspecified, 0, false),
                "0123456789ab Waiting                                      45.6MB",
            ),
            (
                layer(Present, 0, true),
                "0123456789ab Already exists                               45.6MB",
            ),
            (
                busy,
                "0123456789ab Downloading    [====>             ]   12.3MB/45.6MB  25% known",
            ),
            (
                layer(Registry, 45_600_000, false),
                "0123456789ab Storing                                      45.6MB",
            ),
            (
                layer(Registry, 45_600_000, true),
                "0123456789ab Done                                         45.6MB",
            ),
        ] {
            assert_eq!(row(&layer), text);
        }
    }

    #[test]
    fn no_line_is_wider_than_a_terminal() {
        let widest = LayerProgress {
            digest: "x".repeat(200),
            size: u64::MAX,
            fetched: u64::MAX - 1,
            deduplicated: 100,
            source: LayerSource::Registry.into(),
            ..LayerProgress::default()
        };
        assert!(row(&widest).chars().count() <= WIDTH, "{}", row(&widest));
        let event = event(PullPhase::Fetching, &vec![widest; 100]);
        let name = "registry.example.com/ä".repeat(20);
        let line = total(&name, &event, Duration::ZERO);
        assert!(line.chars().count() <= WIDTH, "{line}");
        let result = PullResult {
            fetched_bytes: u64::MAX,
            ..PullResult::default()
        };
        let line = summary(&name, &event, &result, Duration::from_secs(86_400));
        assert!(line.chars().count() <= WIDTH, "{line}");
    }

    #[test]
    fn bars() {
        assert_eq!(bar(0, 10), "[>                 ]");
        assert_eq!(bar(5, 10), "[=========>        ]");
        assert_eq!(bar(10, 10), "[==================]");
        assert_eq!(bar(11, 10), "[==================]");
        assert_eq!(bar(0, 0), "[==================]");
    }

    #[test]
    fn totals() {
        use LayerSource::{Present, Registry};
        let layers = [
            layer(Present, 0, true),
            layer(Registry, 45_600_000, true),
            layer(Registry, 10_000_000, false),
        ];
        let event = event(PullPhase::Fetching, &layers);
        assert_eq!(
            total("busybox:1", &event, Duration::from_secs(2)),
            "busybox:1: 2 of 3 layers, 55.6MB of 91.2MB, 27.8MB/s"
        );
        let result = PullResult {
            fetched_bytes: 91_200_000,
            ..PullResult::default()
        };
        assert_eq!(
            summary("busybox:1", &event, &result, Duration::from_millis(1540)),
            "busybox:1: 3 layers, 1 existed, 91.2MB fetched, 1.5s"
        );
        let result = PullResult {
            up_to_date: true,
            ..result
        };
        assert_eq!(
            summary("busybox:1", &event, &result, Duration::ZERO),
            "busybox:1: up to date, nothing fetched, 0.0s"
        );
    }

    #[test]
    fn each_event_is_told_once() {
        use LayerSource::{Present, Registry, Shared, Unspecified};
        let steps = [
            event(PullPhase::Resolving, &[]),
            event(
                PullPhase::Fetching,
                &[layer(Present, 0, true), layer(Unspecified, 0, false)],
            ),
            event(
                PullPhase::Fetching,
                &[layer(Present, 0, true), layer(Registry, 1, false)],
            ),
            event(
                PullPhase::Fetching,
                &[layer(Present, 0, true), layer(Registry, 2, false)],
            ),
            event(
                PullPhase::Committing,
                &[layer(Present, 0, true), layer(Registry, 45_600_000, true)],
            ),
        ];
        let mut before = PullEvent::default();
        let mut lines = Vec::new();
        for step in steps {
            lines.extend(changes("app", &before, &step));
            before = step;
        }
        assert_eq!(
            lines,
            [
                "app: sha256:aa from registry.lan, 2 layers",
                "0123456789ab: Already exists, 45.6MB",
                "0123456789ab: Downloading, 45.6MB",
                "0123456789ab: Done, 45.6MB",
            ]
        );
        let shared = event(PullPhase::Fetching, &[layer(Shared, 1, false)]);
        assert!(changes("app", &PullEvent::default(), &shared)[1].contains("another pull"));
    }
}
