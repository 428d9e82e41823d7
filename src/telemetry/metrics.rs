//! The metric registry: rooms register into it, the admin door prints it.

use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

use super::process::Process;

/// Content type of [`encode`]'s text (OpenMetrics 1.0).
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

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
pub fn encode(registry: &Registry) -> Result<String, std::fmt::Error> {
    let mut text = String::with_capacity(16 << 10);
    prometheus_client::encoding::text::encode(&mut text, registry)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn build_and_process_are_in_the_text() {
        let text = encode(&registry("1.2.3")).unwrap();
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
}
