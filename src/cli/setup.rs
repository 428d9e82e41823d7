//! `larder setup`.

use std::io::{self, BufRead, IsTerminal, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;

use super::failure::{Failure, coloured};
use super::interrupt::Interrupts;
use super::output::{printable, say};
use super::run::Terminal;
use super::{Done, Globals};
use crate::app::config::AgentArgs;
use crate::app::setup::{self, Change, Options, Plan, Wanted};

/// A mirror on this machine that takes longer is none.
const PATIENCE: Duration = Duration::from_millis(500);

pub(super) const AFTER: &str = "\
Examples:
  larder setup containerd --dry-run
  larder setup containerd
  larder setup containerd --undo";

const AFTER_CONTAINERD: &str = "\
Two parts, each of which can be skipped:
  mirror       hosts.toml files, so that containerd pulls through the agent's
               mirror and asks the registries themselves when it is away
  snapshotter  proxy_plugins.larder, so that containers start on larder's
               layers; the agent has to run before containerd then

The difference is shown first, and nothing is written without a yes. What you
wrote stays as it is: larder's lines stand in marked blocks or in files of
their own. A second run changes nothing, and what an earlier one wrote and this
one does not ask for goes. What is not understood is refused. Give it the
agent's --root and --socket, or its variables, if they are not the usual ones.

Examples:
  larder setup containerd --dry-run
  larder setup containerd --yes && systemctl restart containerd
  larder setup containerd --skip snapshotter --registry docker.io
  larder setup containerd --undo

Exit codes: 0 done or nothing to do, 1 refused or not confirmed.";

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// Let containerd pull through larder and start containers on its layers
    #[command(after_help = AFTER_CONTAINERD)]
    Containerd(ContainerdArgs),
}

/// A part of the setup.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    Mirror,
    Snapshotter,
}

#[derive(Debug, clap::Args)]
struct ContainerdArgs {
    /// Take out again what setup put in
    #[arg(long, conflicts_with_all = ["skip", "registry", "mirror"])]
    undo: bool,
    /// Show what would change, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Do not ask
    #[arg(short, long)]
    yes: bool,
    /// Leave a part out
    #[arg(long, value_enum, value_name = "PART")]
    skip: Option<Part>,
    /// Pull from this registry through larder, such as docker.io; may be repeated [default: all without a hosts.toml]
    #[arg(long, value_name = "HOST")]
    registry: Vec<String>,
    /// Address of the agent's mirror [default: that of its configuration, else 127.0.0.1:9641]
    #[arg(long, value_name = "ADDR")]
    mirror: Option<SocketAddr>,
    /// Configuration of containerd [default: that of the one that runs, else /etc/containerd/config.toml]
    #[arg(long, visible_alias = "containerd-config", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Folder with HOST/hosts.toml [default: what that configuration has, else /etc/containerd/certs.d]
    #[arg(long, value_name = "DIR")]
    certs_dir: Option<PathBuf>,
}

/// What programs read.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct View<'a> {
    changes: Vec<ChangeView<'a>>,
    restart_containerd: bool,
    notes: &'a [String],
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct ChangeView<'a> {
    path: &'a Path,
    action: &'static str,
    diff: String,
}

pub(super) async fn run(
    args: Args,
    globals: &Globals,
    terminal: &Terminal,
    interrupts: &Interrupts,
) -> Done {
    let What::Containerd(args) = args.what;
    if let Some(mirror) = args.mirror.filter(|mirror| !mirror.ip().is_loopback()) {
        return Err(Failure::usage(format!(
            "--mirror {mirror}: an agent's mirror is on this machine, such as 127.0.0.1:9641"
        )));
    }
    let wanted = setup::wanted(Options {
        agent: AgentArgs {
            config: std::env::var_os("LARDER_CONFIG").map(PathBuf::from),
            root: globals.root.clone(),
            socket: globals.socket.clone(),
            ..AgentArgs::default()
        },
        config: args.config,
        certs_dir: args.certs_dir,
        mirror: args.mirror,
        registries: args.registry,
        skip_mirror: args.skip == Some(Part::Mirror),
        skip_snapshots: args.skip == Some(Part::Snapshotter),
    });
    let wanted = wanted.await.map_err(Failure::new)?;
    let files = setup::gather(&wanted);
    let plan = match args.undo {
        true => setup::undo(&files, &wanted),
        false => setup::plan(&files, &wanted),
    };
    let plan = plan.map_err(|refusal| Failure::new(format!("nothing was changed: {refusal}")))?;
    show(&plan, terminal)?;
    if plan.changes.is_empty() || args.dry_run {
        return Ok(());
    }
    if !args.yes {
        tokio::select! {
            answer = confirmed(plan.changes.len()) => answer?,
            failure = interrupts.first() => return Err(failure),
        }
    }
    for (at, change) in plan.changes.iter().enumerate() {
        setup::write(change).map_err(|error| {
            let done = plan.changes.iter().take(at);
            let done: Vec<_> = done.map(|done| done.path.display().to_string()).collect();
            let done = match done.is_empty() {
                true => "nothing was changed".to_owned(),
                false => format!("changed before that: {}; run it again", done.join(", ")),
            };
            Failure::new(format!("{error:#}; {done}"))
        })?;
    }
    setup::remove_folders(&plan.folders);
    if !terminal.quiet && terminal.format.is_none() {
        say(ending(&plan, &wanted, args.undo))?;
    }
    Ok(())
}

fn show(plan: &Plan, terminal: &Terminal) -> Done {
    let view = View {
        changes: plan.changes.iter().map(change).collect(),
        restart_containerd: plan.restart,
        notes: &plan.notes,
    };
    if terminal.format().print(&view)? || terminal.quiet {
        return Ok(());
    }
    let colours = coloured(&io::stdout());
    for change in &plan.changes {
        say(painted(&change.diff(), colours))?;
    }
    if plan.changes.is_empty() {
        say("Nothing to change.")?;
    }
    for note in &plan.notes {
        say(format!("Note: {}", printable(note)))?;
    }
    Ok(())
}

fn action(change: &Change) -> &'static str {
    match (&change.before, &change.after) {
        (None, _) => "create",
        (_, None) => "remove",
        _ => "change",
    }
}

fn change(change: &Change) -> ChangeView<'_> {
    ChangeView {
        path: &change.path,
        action: action(change),
        diff: change.diff(),
    }
}

/// Lines as git colours them. What is in files must not speak to the terminal.
fn painted(diff: &str, colours: bool) -> String {
    let line = |line: &str| {
        let text: String = line
            .chars()
            .map(|c| {
                if c.is_control() && c != '\t' {
                    '\u{fffd}'
                } else {
                    c
                }
            })
            .collect();
        let colour = match text.chars().next() {
            _ if !colours => return text,
            _ if text.starts_with("---") || text.starts_with("+++") => "1",
            Some('-') => "31",
            Some('+') => "32",
            Some('@') => "36",
            _ => return text,
        };
        format!("\x1b[{colour}m{text}\x1b[0m")
    };
    diff.lines().map(line).collect::<Vec<_>>().join("\n")
}

/// An error where nobody says yes.
async fn confirmed(files: usize) -> Done {
    if !io::stdin().is_terminal() {
        return Err(Failure::new(
            "nothing was changed: this is no terminal on which to ask; look at the difference, and give --yes",
        ));
    }
    let what = if files == 1 {
        "this file"
    } else {
        "these files"
    };
    {
        let mut out = io::stderr().lock();
        write!(out, "\nChange {what}? [y/N] ")?;
        out.flush()?;
    }
    let answer = tokio::task::spawn_blocking(|| {
        let mut line = String::new();
        io::stdin().lock().read_line(&mut line).map(|_| line)
    });
    let answer = answer.await.map_err(Failure::new)??;
    match answer.trim().to_ascii_lowercase().as_str() {
        "y" | "yes" => Ok(()),
        _ => Err(Failure::new("nothing was changed")),
    }
}

/// What was done, and what is left to do.
fn ending(plan: &Plan, wanted: &Wanted, undone: bool) -> String {
    let mut lines = vec![String::new()];
    for change in &plan.changes {
        let done = match action(change) {
            "create" => "Made",
            "remove" => "Removed",
            _ => "Changed",
        };
        lines.push(format!("{done} {}", change.path.display()));
    }
    lines.push(String::new());
    let snapshots = wanted.snapshots.as_ref().filter(|_| !undone);
    if let Some(snapshots) = snapshots
        && UnixStream::connect(&snapshots.socket).is_err()
    {
        lines.push(format!(
            "No agent answers at {}. Start one before containerd.",
            snapshots.socket.display()
        ));
    }
    let mirror = wanted.mirror.filter(|_| !undone);
    if let Some(mirror) = mirror
        && TcpStream::connect_timeout(&mirror, PATIENCE).is_err()
    {
        lines.push(format!(
            "Nobody listens at {mirror}. Until the agent does (larder agent --mirror),\n\
             containerd asks the registries themselves."
        ));
    }
    lines.push(match plan.restart {
        true => "Restart containerd: systemctl restart containerd\n\
                 It reads hosts.toml at each pull, and its configuration only then."
            .to_owned(),
        false => "Nothing needs a restart: containerd reads hosts.toml at each pull.".to_owned(),
    });
    if !undone {
        lines.push("Then check the whole: larder doctor".to_owned());
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_files_hold_does_not_speak_to_the_terminal() {
        assert_eq!(painted("-a\x1b[2J\n+\tb\n", false), "-a\u{fffd}[2J\n+\tb");
        assert_eq!(
            painted("--- a\n-a\n b\n", true),
            "\x1b[1m--- a\x1b[0m\n\x1b[31m-a\x1b[0m\n b"
        );
    }
}
