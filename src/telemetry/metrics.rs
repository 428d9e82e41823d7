//! The metric registry: rooms register into it, the admin door prints it.

use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

use super::process::Process;

/// A text form of metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TextForm {
    /// OpenMetrics 1.0, for whoever asks for it.
    OpenMetrics,
    /// The older form, which everything reads.
    Prometheus,
}

impl TextForm {
    /// What a scraper's `Accept` header asks for.
    pub fn accepted(accept: &str) -> Self {
        if accept.contains("application/openmetrics-text") {
            TextForm::OpenMetrics
        } else {
            TextForm::Prometheus
        }
    }
    /// Its content type.
    pub fn content_type(self) -> &'static str {
        match self {
            TextForm::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            TextForm::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
        }
    }
}

/// A registry that knows the build (`larder_build_info`) and the process (`process_*`).
pub fn registry(version: &'static str) -> Registry {
    let mut registry = Registry::default();
    registry.register(
        "larder_build",
        "Version of this program",
        Info::new([("version", version)]),
    );
    registry.register_collector(Box::new(Process::new()));
    registry
}

/// The text that Prometheus scrapes.
pub fn encode(registry: &Registry, form: TextForm) -> Result<String, std::fmt::Error> {
    let mut text = String::with_capacity(16 << 10);
    prometheus_client::encoding::text::encode(&mut text, registry)?;
    Ok(match form {
        TextForm::OpenMetrics => text,
        TextForm::Prometheus => older(&text),
    })
}

/// OpenMetrics in the older form: there a counter's family has the name of its sample, there are no units, no end, and
/// an info is a gauge.
fn older(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut help = None;
    for line in text.lines() {
        if let Some(about) = line.strip_prefix("# HELP ") {
            help = about.split_once(' ');
            continue;
        }
        if let Some(family) = line.strip_prefix("# TYPE ") {
            let (name, kind) = family.split_once(' ').unwrap_or((family, "untyped"));
            let (suffix, kind) = match kind {
                "counter" => ("_total", "counter"),
                "info" => ("_info", "gauge"),
                "unknown" => ("", "untyped"),
                kind => ("", kind),
            };
            if let Some((_, about)) = help.take().filter(|(of, _)| *of == name) {
                out.push_str(&format!("# HELP {name}{suffix} {about}\n"));
            }
            out.push_str(&format!("# TYPE {name}{suffix} {kind}\n"));
        } else if !line.starts_with('#') {
            out.push_str(line);
            out.push('\n');
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn build_and_process_are_in_the_text() {
        let text = encode(&registry("1.2.3"), TextForm::OpenMetrics).unwrap();
        for line in [
            "larder_build_info{version=\"1.2.3\"} 1\n",
            "# TYPE process_resident_memory_bytes gauge\n",
            "# TYPE process_cpu_seconds counter\n",
            "process_cpu_seconds_total ",
            "process_open_fds ",
            "process_start_time_seconds ",
            "# EOF\n",
        ] {
            assert!(text.contains(line), "{line:?} is not in\n{text}");
        }
    }

    #[test]
    fn the_older_form_is_what_everything_reads() {
        let text = encode(&registry("1.2.3"), TextForm::Prometheus).unwrap();
        for line in [
            "# HELP larder_build_info Version of this program.\n# TYPE larder_build_info gauge\n",
            "larder_build_info{version=\"1.2.3\"} 1\n",
            "# TYPE process_resident_memory_bytes gauge\n",
            "# TYPE process_cpu_seconds_total counter\nprocess_cpu_seconds_total ",
        ] {
            assert!(text.contains(line), "{line:?} is not in\n{text}");
        }
        assert!(
            !text.contains("# EOF") && !text.contains("# UNIT"),
            "{text}"
        );
        for (accept, form) in [
            (
                "application/openmetrics-text;version=1.0.0;q=0.6,text/plain;version=0.0.4;q=0.5",
                TextForm::OpenMetrics,
            ),
            ("*/*", TextForm::Prometheus),
            ("", TextForm::Prometheus),
        ] {
            assert_eq!(TextForm::accepted(accept), form, "{accept}");
        }
    }
}
