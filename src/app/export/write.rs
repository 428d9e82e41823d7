//! Carries out what is planned, and reads what is there. Blocking.

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, File};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use rustix::fs::{FlockOperation, fcntl_lock};
use serde_json::Value;

use super::Store;
use crate::image::Digest;
use crate::store::unescaped;

/// Folder of mounts, below that of the store.
pub const MOUNTS: &str = "larder";
const LOCKS: [&str; 2] = ["overlay-layers/layers.lock", "overlay-images/images.lock"];
/// Written last to first: who reads an image finds its layers.
const INDEXES: [&str; 2] = ["overlay-layers/layers.json", "overlay-images/images.json"];
/// Of its files, and of lists of mounts.
const MAX_TEXT: u64 = 64 << 20;

/// Takes a folder for a store of larder's: one that is absent, empty, or taken already.
///
/// # Errors
/// Something else is in it.
pub fn claim(dir: &Path) -> anyhow::Result<()> {
    let subject = || dir.display().to_string();
    fs::create_dir_all(dir).with_context(subject)?;
    let mounts = dir.join(MOUNTS);
    if !mounts.is_dir() {
        if fs::read_dir(dir).with_context(subject)?.next().is_some() {
            bail!(
                "{}: something else is in it; give an empty folder",
                subject()
            );
        }
        // Nobody but root has to look into what is mounted there.
        DirBuilder::new()
            .mode(0o700)
            .create(&mounts)
            .with_context(subject)?;
    }
    Ok(())
}

/// Ids of the images that a store has.
pub fn images(dir: &Path) -> anyhow::Result<Vec<String>> {
    let path = dir.join("overlay-images/images.json");
    let text = match fs::read(&path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        text => text.with_context(|| path.display().to_string())?,
    };
    let list: Vec<Value> = serde_json::from_slice(&text)
        .with_context(|| format!("{}: this is no image store of larder's", path.display()))?;
    let ids = list.iter().filter_map(|image| image.get("id")?.as_str());
    Ok(ids.map(str::to_owned).collect())
}

/// What the overlay that is mounted at a place is made of, the topmost first; `None` where there is none.
pub fn lowers(at: &Path) -> anyhow::Result<Option<Vec<PathBuf>>> {
    use std::io::Read;
    let path = "/proc/self/mountinfo";
    let mut table = String::new();
    let file = File::open(path).context(path)?;
    file.take(MAX_TEXT)
        .read_to_string(&mut table)
        .context(path)?;
    Ok(lowers_in(&table, at))
}

fn lowers_in(table: &str, at: &Path) -> Option<Vec<PathBuf>> {
    // The last one is on top.
    let found = table.lines().rev().find(|line| {
        let point = line.split(' ').nth(4);
        point.is_some_and(|point| unescaped(point.as_bytes()) == at.as_os_str())
    });
    let (_, after) = found?.split_once(" - ")?;
    let mut fields = after.split(' ');
    if fields.next() != Some("overlay") {
        return None;
    }
    let options = fields.nth(1)?;
    let mut lowers = Vec::new();
    for option in options.split(',') {
        if let Some(one) = option.strip_prefix("lowerdir+=") {
            lowers.push(PathBuf::from(unescaped(one.as_bytes())));
        } else if let Some(list) = option.strip_prefix("lowerdir=") {
            lowers.extend(
                list.split(':')
                    .map(|one| PathBuf::from(unescaped(one.as_bytes()))),
            );
        }
    }
    Some(lowers)
}

/// Makes a folder what is planned. What is not planned any more goes, the mounts below [`MOUNTS`] apart.
pub fn write(dir: &Path, store: &Store) -> anyhow::Result<()> {
    let subject = |path: &Path| path.display().to_string();
    let mut locks = Vec::new();
    for lock in LOCKS {
        let path = dir.join(lock);
        make_above(&path)?;
        let mut options = File::options();
        let file = options.read(true).write(true).create(true).truncate(false);
        let file = file.open(&path).with_context(|| subject(&path))?;
        // As containers/storage does it: readers wait for a writer, and the other way round.
        fcntl_lock(&file, FlockOperation::LockExclusive).with_context(|| subject(&path))?;
        locks.push((path, file));
    }
    for (path, target) in &store.links {
        link(&dir.join(path), target)?;
    }
    for (path, bytes) in &store.files {
        if !INDEXES.iter().any(|index| path == Path::new(index)) {
            replace(&dir.join(path), bytes)?;
        }
    }
    for index in INDEXES {
        if let Some(bytes) = store.files.get(Path::new(index)) {
            replace(&dir.join(index), bytes)?;
        }
    }
    // A reader that looked before compares this with what it remembers, and looks again.
    let state: Vec<&[u8]> = store.files.values().map(Vec::as_slice).collect();
    let token = Digest::sha256(&state.concat());
    for (path, file) in &mut locks {
        let stamp = jiff::Timestamp::now().as_nanosecond();
        let token = format!("{:64.64}", format!("{stamp:x}{}", token.hex()));
        rustix::io::pwrite(&*file, token.as_bytes(), 0).with_context(|| subject(path))?;
    }
    sweep(dir, store)
}

/// Takes away what is below the folders that are the store's own and is not planned.
fn sweep(dir: &Path, store: &Store) -> anyhow::Result<()> {
    let planned = store.files.keys().chain(store.links.keys());
    let mut wanted: BTreeSet<PathBuf> = BTreeSet::new();
    for path in planned {
        wanted.extend(path.ancestors().map(|path| dir.join(path)));
    }
    for folder in ["overlay", "overlay/l", "overlay-images"] {
        let folder = dir.join(folder);
        let entries = fs::read_dir(&folder).into_iter().flatten().flatten();
        for path in entries.map(|entry| entry.path()) {
            let lock = LOCKS.iter().any(|lock| path == dir.join(lock));
            if lock || wanted.contains(&path) || path == dir.join("overlay/l") {
                continue;
            }
            // A link is removed itself, and never followed.
            let gone = match fs::symlink_metadata(&path).is_ok_and(|found| found.is_dir()) {
                true => fs::remove_dir_all(&path),
                false => fs::remove_file(&path),
            };
            gone.with_context(|| path.display().to_string())?;
        }
    }
    Ok(())
}

fn make_above(path: &Path) -> anyhow::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(folder).with_context(|| folder.display().to_string())
}

fn link(path: &Path, target: &Path) -> anyhow::Result<()> {
    if fs::read_link(path).is_ok_and(|now| now == target) {
        return Ok(());
    }
    make_above(path)?;
    let temporary = beside(path);
    let linked = || {
        remove_if_there(&temporary)?;
        symlink(target, &temporary)?;
        fs::rename(&temporary, path)
    };
    linked().with_context(|| path.display().to_string())
}

/// Nothing here is synced: after a power cut it is made again from what larder has.
fn replace(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    if fs::read(path).is_ok_and(|now| now == bytes) {
        return Ok(());
    }
    make_above(path)?;
    let temporary = beside(path);
    let written = || {
        remove_if_there(&temporary)?;
        let mut file = File::options()
            .write(true)
            .create_new(true)
            .open(&temporary)?;
        file.write_all(bytes)?;
        fs::rename(&temporary, path)
    };
    written().with_context(|| path.display().to_string())
}

fn beside(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.larder"))
}

fn remove_if_there(path: &Path) -> std::io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Exported, plan};
    use super::*;

    #[test]
    fn lowers_as_the_kernel_tells_them() {
        let table = "\
1 0 8:1 / / rw shared:1 - ext4 /dev/vda1 rw
2 1 0:43 / /srv/a\\040b ro,nosuid - overlay larder ro,lowerdir+=/m/B\\040x,lowerdir+=/m/A
3 1 0:44 / /srv/c ro - overlay overlay ro,lowerdir=/m/B:/m/A,redirect_dir=nofollow
4 1 0:45 / /srv/d ro - tmpfs x ro
";
        let paths = |list: &[&str]| Some(list.iter().map(PathBuf::from).collect::<Vec<_>>());
        assert_eq!(
            lowers_in(table, Path::new("/srv/a b")),
            paths(&["/m/B x", "/m/A"])
        );
        assert_eq!(
            lowers_in(table, Path::new("/srv/c")),
            paths(&["/m/B", "/m/A"])
        );
        for none in ["/srv/d", "/srv", "/"] {
            assert_eq!(lowers_in(table, Path::new(none)), None);
        }
    }

    #[test]
    fn what_is_not_planned_any_more_goes() {
        let dir = tempfile::tempdir().unwrap();
        let image = |id: &str| Exported {
            id: id.to_owned(),
            lowers: vec![dir.path().join("mounts").join(id)],
            ..Exported::default()
        };
        for folder in ["one", "two"] {
            fs::create_dir_all(dir.path().join("mounts").join(folder)).unwrap();
        }
        let store = dir.path().join("store");
        claim(&store).unwrap();
        claim(&store).unwrap();
        assert!(claim(dir.path()).is_err());
        assert_eq!(images(&store).unwrap(), Vec::<String>::new());
        write(&store, &plan(&[image("one"), image("two")])).unwrap();
        assert_eq!(images(&store).unwrap(), ["one", "two"]);
        assert_eq!(fs::read_dir(store.join("overlay/l")).unwrap().count(), 2);
        write(&store, &plan(&[image("two")])).unwrap();
        assert_eq!(images(&store).unwrap(), ["two"]);
        assert_eq!(fs::read_dir(store.join("overlay/l")).unwrap().count(), 1);
        assert_eq!(fs::read_dir(store.join("overlay")).unwrap().count(), 2);
        assert_eq!(fs::metadata(store.join(LOCKS[0])).unwrap().len(), 64);
        // What links lead to is never touched.
        assert!(dir.path().join("mounts/one").is_dir());
    }
}
