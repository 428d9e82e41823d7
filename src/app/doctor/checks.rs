//! Kernel, mounts, disk, registries' configuration and the agent's socket: pure.

use super::{Agent, Disk, Facts, Finding};
use crate::app::machine::version;

/// The first kernel that mounts EROFS from plain files.
const KERNEL: (u64, u64) = (6, 12);
/// Percent of a disk that should be free, and that must be.
const ROOM: (u64, u64) = (10, 2);
/// On these a store is known to work.
const TYPES: [&str; 4] = ["ext4", "xfs", "btrfs", "f2fs"];

pub(super) fn machine(facts: &Facts) -> Vec<Finding> {
    let mut findings = Vec::new();
    if let Some(fault) = &facts.config {
        findings.push(Finding::bad(
            "configuration",
            fault,
            "mend it; larder agent --check shows what is in force",
        ));
    }
    if !facts.superuser {
        findings.push(Finding::warn(
            "user",
            "not root: some things cannot be seen",
            "run it as root",
        ));
    }
    findings.push(kernel(&facts.kernel));
    for name in ["erofs", "overlay"] {
        findings.push(file_system(facts, name));
    }
    findings.push(propagation(facts));
    findings.push(root_type(facts));
    findings.extend(facts.disk.map(|disk| room(facts, disk)));
    findings.push(agent(facts));
    findings.extend(hosts(facts));
    findings
}

fn kernel(release: &str) -> Finding {
    match version(release) {
        Some(found) if found >= KERNEL => {
            Finding::ok("kernel", format!("{release} mounts layers from files"))
        }
        Some(_) => Finding::warn(
            "kernel",
            format!(
                "{release} cannot mount layers: images are kept, and containers cannot start from them"
            ),
            "Linux 6.12 or newer; or leave images in the runtime: larder agent --images runtime",
        ),
        None => Finding::warn(
            "kernel",
            format!("{release:?} is no version"),
            "Linux 6.12 or newer",
        ),
    }
}

fn file_system(facts: &Facts, name: &'static str) -> Finding {
    let known = facts
        .filesystems
        .lines()
        .any(|line| line.split_whitespace().last() == Some(name));
    if known {
        return Finding::ok(name, "the kernel has it");
    }
    if facts.modules.contains(&name) {
        return Finding::ok(name, "a module of the kernel, loaded when it is needed");
    }
    Finding::bad(
        name,
        "this kernel does not have it",
        format!(
            "modprobe {name}, or a kernel with CONFIG_{}_FS",
            name.to_ascii_uppercase()
        ),
    )
}

fn propagation(facts: &Facts) -> Finding {
    let root = facts.root.display();
    if facts.root_shared {
        return Finding::ok(
            "mounts",
            format!("what is mounted in {root} is seen by all"),
        );
    }
    Finding::warn(
        "mounts",
        format!(
            "what an agent in a pod mounts in {root} is seen by nobody else, and the pod does not start"
        ),
        "mount --make-rshared /, at each boot; an agent that is a service needs nothing",
    )
}

fn root_type(facts: &Facts) -> Finding {
    let (root, kind) = (facts.root.display(), &facts.root_type);
    if TYPES.contains(&kind.as_str()) {
        return Finding::ok("store", format!("{root} is on {kind}"));
    }
    Finding::warn(
        "store",
        format!("{root} is on {kind:?}, on which nobody has tried it"),
        format!("a local disk with one of {}", TYPES.join(", ")),
    )
}

fn room(facts: &Facts, disk: Disk) -> Finding {
    let root = facts.root.display();
    let share = |part: u64, whole: u64| (u128::from(part) * 100).checked_div(u128::from(whole));
    let bytes = share(disk.available, disk.capacity).unwrap_or(0);
    let inodes = share(disk.inodes_available, disk.inodes).unwrap_or(100);
    let message = format!("{bytes}% of the bytes and {inodes}% of the inodes are free for {root}");
    let remedy = "larder df, larder rmi; or a larger disk for it";
    let least = bytes.min(inodes);
    if least < u128::from(ROOM.1) {
        Finding::bad("disk", message, remedy)
    } else if least < u128::from(ROOM.0) {
        Finding::warn("disk", message, remedy)
    } else {
        Finding::ok("disk", message)
    }
}

fn agent(facts: &Facts) -> Finding {
    let socket = facts.socket.display();
    match &facts.agent {
        Agent::Absent => Finding::warn(
            "agent",
            format!("there is no {socket}"),
            "larder agent, or systemctl start larder",
        ),
        Agent::Unknown(cause) => {
            Finding::warn("agent", format!("{socket}: {cause}"), "run it as root")
        }
        Agent::Socket { answers: false, .. } => Finding::bad(
            "agent",
            format!("nobody answers at {socket}"),
            "start the agent; its log says why it ended",
        ),
        Agent::Socket { mode, .. } if mode & 0o007 != 0 => Finding::bad(
            "agent",
            format!(
                "everybody may use {socket}, whose mode is {mode:o}: that is, pull and remove images"
            ),
            format!("chmod 0660 {socket}"),
        ),
        Agent::Socket { mode, .. } => {
            Finding::ok("agent", format!("it answers at {socket}, mode {mode:o}"))
        }
    }
}

fn hosts(facts: &Facts) -> Vec<Finding> {
    let wrong: Vec<Finding> = facts
        .hosts
        .iter()
        .filter_map(|(folder, fault)| {
            let fault = fault.as_ref()?;
            let message = format!("{}: {fault}", folder.display());
            Some(Finding::bad(
                "registries",
                message,
                "mend the file; it is read at each pull",
            ))
        })
        .collect();
    if wrong.is_empty() {
        let count = facts.hosts.len();
        return vec![Finding::ok(
            "registries",
            format!("{count} with a hosts.toml of their own"),
        )];
    }
    wrong
}

#[cfg(test)]
mod tests {
    use super::super::Verdict::{Bad, Ok, Warn};
    use super::*;

    #[test]
    fn kernels_by_version() {
        for (release, verdict) in [
            ("6.12.0-amd64", Ok),
            ("7.0", Ok),
            ("6.11.9", Warn),
            ("5.4.0-1", Warn),
            ("6", Warn),
            ("", Warn),
            ("99999999999999999999.1", Warn),
        ] {
            assert_eq!(kernel(release).verdict, verdict, "{release}");
        }
    }

    #[test]
    fn file_systems_are_there_or_can_be_loaded() {
        let mut facts = Facts {
            filesystems: "nodev\toverlay\n\text4\n\tnot-erofs\n".to_owned(),
            ..Facts::default()
        };
        assert_eq!(file_system(&facts, "overlay").verdict, Ok);
        assert_eq!(file_system(&facts, "erofs").verdict, Bad);
        facts.modules.push("erofs");
        assert_eq!(file_system(&facts, "erofs").verdict, Ok);
    }

    #[test]
    fn disks_by_their_scarcest_part() {
        let disk = |available, inodes, inodes_available| Disk {
            capacity: 1000,
            available,
            inodes,
            inodes_available,
        };
        for (disk, verdict) in [
            (disk(500, 0, 0), Ok),
            (disk(99, 0, 0), Warn),
            (disk(19, 0, 0), Bad),
            (disk(500, 100, 1), Bad),
        ] {
            assert_eq!(room(&Facts::default(), disk).verdict, verdict, "{disk:?}");
        }
    }

    #[test]
    fn sockets_are_for_root_and_its_group() {
        let of = |agent| {
            let facts = Facts {
                agent,
                ..Facts::default()
            };
            super::agent(&facts).verdict
        };
        let socket = |mode, answers| Agent::Socket { mode, answers };
        assert_eq!(of(socket(0o660, true)), Ok);
        assert_eq!(of(socket(0o666, true)), Bad);
        assert_eq!(of(socket(0o660, false)), Bad);
        assert_eq!(of(Agent::Absent), Warn);
    }
}
