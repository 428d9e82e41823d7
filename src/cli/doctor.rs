//! `larder doctor`.

use std::path::PathBuf;

use super::failure::{FAILED, Failure};
use super::output::{printable, say};
use super::run::Terminal;
use super::{Done, Globals};
use crate::app::config::AgentArgs;
use crate::app::doctor::{self, Finding, Options, Verdict};

pub(super) const AFTER: &str = "\
Nothing is changed. It looks at this machine as the agent would be started, so
give it the agent's --root, --socket and --config, or its variables. With -q
only what is not ok is printed.

Examples:
  larder doctor
  larder doctor --containerd-config /etc/containerd/config.toml
  larder doctor -o json | jq -r '.[] | select(.verdict == \"bad\").remedy'

Exit codes: 0 nothing is bad, 1 something is.";

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The agent's configuration file
    #[arg(
        long,
        value_name = "FILE",
        env = "LARDER_CONFIG",
        hide_env_values = true
    )]
    config: Option<PathBuf>,
    /// Configuration of containerd [default: that of the one that runs, else /etc/containerd/config.toml]
    #[arg(long, value_name = "FILE")]
    containerd_config: Option<PathBuf>,
    /// Configuration of the kubelet [default: that of the one that runs, else /var/lib/kubelet/config.yaml]
    #[arg(long, value_name = "FILE")]
    kubelet_config: Option<PathBuf>,
}

pub(super) async fn run(args: Args, globals: &Globals, terminal: &Terminal) -> Done {
    let agent = AgentArgs {
        config: args.config,
        root: globals.root.clone(),
        socket: globals.socket.clone(),
        hosts_dir: globals.hosts_dir.clone(),
        ..AgentArgs::default()
    };
    let options = Options {
        agent,
        containerd_config: args.containerd_config,
        kubelet_config: args.kubelet_config,
    };
    let mut findings = doctor::examine(&doctor::gather(options).await);
    let worst = findings.iter().map(|finding| finding.verdict).max();
    if terminal.quiet {
        findings.retain(|finding| finding.verdict != Verdict::Ok);
    }
    if !terminal.format().print(&findings)? && !findings.is_empty() {
        say(text(&findings))?;
    }
    match worst {
        Some(Verdict::Bad) => Err(Failure::silent(FAILED)),
        _ => Ok(()),
    }
}

fn text(findings: &[Finding]) -> String {
    let width = findings
        .iter()
        .map(|finding| finding.check.len())
        .max()
        .unwrap_or(0);
    let lines: Vec<_> = findings
        .iter()
        .map(|finding| {
            let verdict = match finding.verdict {
                Verdict::Ok => "ok",
                Verdict::Warn => "warn",
                Verdict::Bad => "bad",
            };
            let (check, message) = (finding.check, printable(&finding.message));
            let line = format!("{verdict:4}  {check:width$}  {message}");
            match &finding.remedy {
                Some(remedy) => format!(
                    "{line}\n{:indent$}{}",
                    "",
                    printable(remedy),
                    indent = width + 8
                ),
                None => line,
            }
        })
        .collect();
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remedies_stand_below() {
        let finding = |check, verdict, remedy: Option<&str>| Finding {
            check,
            verdict,
            message: "as it is".to_owned(),
            remedy: remedy.map(str::to_owned),
        };
        let findings = [
            finding("disk", Verdict::Ok, None),
            finding("kubelet", Verdict::Bad, Some("change it")),
        ];
        assert_eq!(
            text(&findings),
            "\
ok    disk     as it is
bad   kubelet  as it is
               change it"
        );
    }
}
