//! What the kernel knows of this process, under the names all Prometheus clients use.

use std::fs;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Unit;

/// Clock ticks a second in /proc: `USER_HZ`, 100 on every Linux that Rust runs on.
const TICKS: f64 = 100.0;

/// Reads /proc/self at each scrape.
#[derive(Debug)]
pub(super) struct Process {
    started: Option<f64>,
}

impl Process {
    pub(super) fn new() -> Self {
        let boot = fs::read_to_string("/proc/stat")
            .ok()
            .and_then(|text| boot_time(&text));
        let ticks = fs::read_to_string("/proc/self/stat")
            .ok()
            .and_then(|text| ticks(&text));
        Process {
            started: boot
                .zip(ticks)
                .map(|(boot, (_, start))| boot + start / TICKS),
        }
    }
}

/// Seconds since the epoch when the machine started, of /proc/stat.
fn boot_time(stat: &str) -> Option<f64> {
    stat.lines()
        .find_map(|line| line.strip_prefix("btime "))?
        .trim()
        .parse()
        .ok()
}

/// Ticks this process computed, and ticks between boot and its start, of /proc/self/stat (proc(5): fields 14, 15, 22).
fn ticks(stat: &str) -> Option<(f64, f64)> {
    // The name of the program may hold blanks and brackets: fields are counted after its last bracket.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_ascii_whitespace().collect();
    let field = |number: usize| fields.get(number - 3)?.parse::<f64>().ok();
    Some((field(14)? + field(15)?, field(22)?))
}

/// Bytes of a line such as `VmRSS:  1234 kB` of /proc/self/status.
fn kibibytes(status: &str, key: &str) -> Option<i64> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
    line.trim()
        .strip_suffix("kB")?
        .trim()
        .parse::<i64>()
        .ok()?
        .checked_mul(1024)
}

/// The soft limit on open files, of /proc/self/limits.
fn max_fds(limits: &str) -> Option<i64> {
    let line = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), std::fmt::Error> {
        let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
        if let Some((computed, _)) = ticks(&stat) {
            let metric = ConstCounter::new(computed / TICKS);
            let descriptor = encoder.encode_descriptor(
                "process_cpu",
                "Processor time used, user and system",
                Some(&Unit::Seconds),
                metric.metric_type(),
            )?;
            metric.encode(descriptor)?;
        }
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let limits = fs::read_to_string("/proc/self/limits").unwrap_or_default();
        let open = fs::read_dir("/proc/self/fd")
            .ok()
            .and_then(|dir| i64::try_from(dir.count()).ok());
        let bytes = Some(Unit::Bytes);
        let seconds = Some(Unit::Seconds);
        let gauges = [
            (
                "process_resident_memory",
                "Memory in RAM",
                &bytes,
                kibibytes(&status, "VmRSS").map(|n| n as f64),
            ),
            (
                "process_virtual_memory",
                "Address space in use",
                &bytes,
                kibibytes(&status, "VmSize").map(|n| n as f64),
            ),
            (
                "process_open_fds",
                "Open file descriptors",
                &None,
                open.map(|n| n as f64),
            ),
            (
                "process_max_fds",
                "Limit on open file descriptors",
                &None,
                max_fds(&limits).map(|n| n as f64),
            ),
            (
                "process_start_time",
                "Start of the process since the epoch",
                &seconds,
                self.started,
            ),
        ];
        for (name, help, unit, value) in gauges {
            let Some(value) = value else { continue };
            let metric = ConstGauge::new(value);
            let descriptor =
                encoder.encode_descriptor(name, help, unit.as_ref(), metric.metric_type())?;
            metric.encode(descriptor)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_proc_as_the_kernel_writes_it() {
        let stat = "42 (a) b (c) S 1 2 3 0 -1 4194560 10 0 0 0 250 50 0 0 20 0 8 0 12345 1000 200 18446744073709551615";
        assert_eq!(ticks(stat), Some((300.0, 12345.0)));
        assert_eq!(ticks("nonsense"), None);
        assert_eq!(
            boot_time("cpu 1 2\nbtime 1700000000\n"),
            Some(1_700_000_000.0)
        );
        assert_eq!(
            kibibytes("VmSize:\t   2048 kB\nVmRSS:\t    12 kB\n", "VmRSS"),
            Some(12288)
        );
        assert_eq!(kibibytes("VmRSS: many kB", "VmRSS"), None);
        assert_eq!(
            max_fds(
                "Limit\nMax open files            1024                 4096                 files\n"
            ),
            Some(1024)
        );
    }
}
