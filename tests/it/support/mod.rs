//! Fakes at the process edges, builders, and what a machine can do.

pub(crate) mod build;
pub(crate) mod cluster;
pub(crate) mod containerd;
pub(crate) mod containers;
pub(crate) mod disk;
pub(crate) mod fleet;
pub(crate) mod hub;
pub(crate) mod node;
pub(crate) mod process;
pub(crate) mod proxy;

use std::path::PathBuf;

/// Says why a test did not run; the caller then returns. It never passes silently: the runner (`tests/run.sh`) counts
/// these lines and repeats them at the end.
pub(crate) fn skip(name: &str, reason: &str) {
    eprintln!("skipped: {name}: {reason}");
}

/// True where the test runs as root.
#[allow(dead_code)]
pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// True where `name` is on `PATH`.
pub(crate) fn has_program(name: &str) -> bool {
    program(name).is_some()
}

/// Where a program is: in the folder of `tests/bed/tools.sh`, or on `PATH`.
pub(crate) fn program(name: &str) -> Option<PathBuf> {
    let bed = std::env::var_os("LARDER_BED")
        .map(PathBuf::from)
        .or_else(|| {
            let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
            let cache = cache.or_else(|| Some(std::env::home_dir()?.join(".cache")));
            Some(cache?.join("larder-bed"))
        });
    let path = std::env::var_os("PATH").unwrap_or_default();
    bed.into_iter()
        .map(|bed| bed.join("bin"))
        .chain(std::env::split_paths(&path))
        .map(|folder| folder.join(name))
        .find(|file| {
            rustix::fs::access(file, rustix::fs::Access::EXEC_OK).is_ok() && file.is_file()
        })
}

/// All of these programs, or a notice that the test was skipped.
pub(crate) fn need<const N: usize>(test: &str, names: [&str; N]) -> Option<[PathBuf; N]> {
    let found = names.map(|name| (name, program(name)));
    if let Some((name, _)) = found.iter().find(|(_, path)| path.is_none()) {
        skip(test, &format!("{name} is not installed"));
        return None;
    }
    Some(found.map(|(_, path)| path.unwrap_or_default()))
}

/// Why this machine cannot mount EROFS images backed by plain files; `Ok` where it can.
#[allow(dead_code)]
pub(crate) fn can_mount_erofs() -> Result<(), String> {
    if !is_root() {
        return Err("mounting needs root".to_owned());
    }
    let known = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
    let module = || {
        std::process::Command::new("modprobe")
            .arg("erofs")
            .output()
            .is_ok_and(|output| output.status.success())
    };
    if !known.lines().any(|line| line.ends_with("\terofs")) && !module() {
        return Err("this kernel has no EROFS".to_owned());
    }
    let release = rustix::system::uname()
        .release()
        .to_string_lossy()
        .into_owned();
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map(|number| number.parse::<u32>().unwrap_or(0));
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if version < (6, 12) {
        return Err(format!(
            "kernel {release} mounts EROFS from block devices only, 6.12 is needed"
        ));
    }
    Ok(())
}
