//! Reads what a plan depends on, and writes what it changes. Blocking.

use std::fs::{self, DirBuilder, File, Permissions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use toml::Table;

use super::{CERTS_DIR, Change, Entry, Files, IMAGES, OLD_IMAGES, Wanted};
use crate::app::machine;

/// Registries' folders that are looked at, and files in each.
const MAX_NAMES: usize = 4096;
/// Of what is made anew: anybody may read it, as the files beside it.
const FILE_MODE: u32 = 0o644;
const FOLDER_MODE: u32 = 0o755;

/// Reads the configuration of containerd, all that it imports, and registries' files.
pub fn gather(wanted: &Wanted) -> Files {
    let mut files = Files::default();
    let mut certs_dirs = vec![PathBuf::from(CERTS_DIR)];
    certs_dirs.extend(wanted.certs_dir.clone());
    files.add_above(&wanted.config);
    for (path, text) in machine::sources(&wanted.config) {
        if !path.exists() && text.is_err() {
            continue;
        }
        let table: Table = text
            .as_ref()
            .ok()
            .and_then(|text| text.parse().ok())
            .unwrap_or_default();
        certs_dirs.extend(config_paths(&table));
        for pattern in table
            .get("imports")
            .and_then(toml::Value::as_array)
            .into_iter()
            .flatten()
        {
            let folder = path.parent().unwrap_or(Path::new("/"));
            files.add_above(&folder.join(pattern.as_str().unwrap_or_default()));
        }
        files.add_read(&path, text);
    }
    for dir in certs_dirs {
        files.add_registries(&dir);
    }
    files
}

/// Folders that a configuration names for registries' files.
pub(in crate::app) fn config_paths(table: &Table) -> Vec<PathBuf> {
    let plugins = table.get("plugins").and_then(toml::Value::as_table);
    let of = |plugin: &str| {
        let registry = plugins?.get(plugin)?.get("registry")?;
        Some(PathBuf::from(registry.get("config_path")?.as_str()?))
    };
    let found = [IMAGES, OLD_IMAGES].into_iter().filter_map(of);
    found.filter(|path| path.is_absolute()).collect()
}

impl Files {
    fn add_read(&mut self, path: &Path, text: Result<String, String>) {
        let entry = match text {
            Ok(text) => Entry::Text(text),
            Err(cause) => Entry::Fault(cause),
        };
        self.add_above(path);
        self.entries.insert(path.to_owned(), entry);
    }

    /// The folders above a path, as far as they exist.
    fn add_above(&mut self, path: &Path) {
        let folders = path.ancestors().skip(1).filter(|folder| folder.is_dir());
        let folders = folders.map(|folder| (folder.to_owned(), Entry::Folder));
        self.entries.extend(folders);
    }

    fn add_registries(&mut self, dir: &Path) {
        self.add_above(&dir.join("_default"));
        for folder in listed(dir) {
            if !folder.is_dir() {
                continue;
            }
            self.entries.insert(folder.clone(), Entry::Folder);
            for file in listed(&folder) {
                if file.file_name().is_some_and(|name| name == "hosts.toml") {
                    let (path, text) = machine::read(&file);
                    self.add_read(&path, text);
                } else {
                    self.entries.insert(file, Entry::Unread);
                }
            }
        }
    }
}

fn listed(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.take(MAX_NAMES).map(|entry| entry.path()).collect()
}

/// Makes one change. A file is there as it was or as it is to be, also after a power cut; its mode and owner stay.
///
/// # Errors
/// It could not be written, or is not as it was when the change was planned.
pub fn write(change: &Change) -> anyhow::Result<()> {
    let subject = || change.path.display().to_string();
    let now = match machine::read(&change.path) {
        (path, Err(_)) if !path.exists() => None,
        (_, Err(cause)) => bail!("{}: {cause}", subject()),
        (_, Ok(text)) => Some(text),
    };
    if now != change.before {
        bail!("{}: somebody changed it meanwhile; begin again", subject());
    }
    match &change.after {
        Some(text) => replace(&change.path, text).with_context(subject),
        None => remove(&change.path).with_context(subject),
    }
}

fn replace(path: &Path, text: &str) -> std::io::Result<()> {
    // What a link points at is changed, and not the link.
    let (path, old) = match fs::canonicalize(path) {
        Ok(path) => {
            let old = fs::metadata(&path)?;
            (path, Some(old))
        }
        Err(error) if error.kind() == ErrorKind::NotFound => (path.to_owned(), None),
        Err(error) => return Err(error),
    };
    let folder = path.parent().unwrap_or(Path::new("/"));
    make(folder)?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    // No pattern for configuration files means this name.
    let temporary = folder.join(format!(".{name}.larder-setup"));
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let written = || {
        let mut file = File::options()
            .write(true)
            .create_new(true)
            .open(&temporary)?;
        file.write_all(text.as_bytes())?;
        let mode = old.as_ref().map_or(FILE_MODE, |old| old.mode() & 0o7777);
        if let Some(old) = &old {
            let own = file.metadata()?;
            if (own.uid(), own.gid()) != (old.uid(), old.gid()) {
                fchown(&file, Some(old.uid()), Some(old.gid()))?;
            }
        }
        // After the owner, whose change may take bits away.
        file.set_permissions(Permissions::from_mode(mode))?;
        // What the name means from the rename on is on disk.
        file.sync_all()?;
        fs::rename(&temporary, &path)?;
        // And so is the name.
        File::open(folder)?.sync_all()
    };
    written().inspect_err(|_| {
        let _ = fs::remove_file(&temporary);
    })
}

/// Makes a folder with those above it; their names are on disk then.
fn make(folder: &Path) -> std::io::Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    let above = folder.parent().unwrap_or(Path::new("/"));
    make(above)?;
    DirBuilder::new().mode(FOLDER_MODE).create(folder)?;
    File::open(above)?.sync_all()
}

fn remove(path: &Path) -> std::io::Result<()> {
    fs::remove_file(path)?;
    File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
}

/// Removes the folders of a plan that nobody uses for something else.
pub fn remove_folders(folders: &[PathBuf]) {
    for folder in folders {
        // One that is left behind, be it after a power cut, does no harm.
        let _ = fs::remove_dir(folder);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(path: &Path, before: Option<&str>, after: Option<&str>) -> Change {
        Change {
            path: path.to_owned(),
            before: before.map(str::to_owned),
            after: after.map(str::to_owned),
        }
    }

    #[test]
    fn files_keep_their_mode_and_links_stay() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("config.toml");
        fs::write(&file, "a = 1\n").unwrap();
        fs::set_permissions(&file, Permissions::from_mode(0o600)).unwrap();
        let link = dir.path().join("link.toml");
        std::os::unix::fs::symlink(&file, &link).unwrap();
        write(&change(&link, Some("a = 1\n"), Some("b = 2\n"))).unwrap();
        assert!(link.is_symlink());
        assert_eq!(fs::read_to_string(&file).unwrap(), "b = 2\n");
        assert_eq!(fs::metadata(&file).unwrap().mode() & 0o7777, 0o600);
        let error = write(&change(&file, Some("a = 1\n"), Some("c\n"))).unwrap_err();
        assert!(error.to_string().contains("meanwhile"), "{error}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }

    #[test]
    fn new_folders_go_with_the_file_unless_somebody_uses_them() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("certs.d/_default/hosts.toml");
        for kept in [false, true] {
            write(&change(&file, None, Some("x"))).unwrap();
            assert_eq!(fs::metadata(&file).unwrap().mode() & 0o7777, FILE_MODE);
            if kept {
                fs::write(dir.path().join("certs.d/other"), "").unwrap();
            }
            write(&change(&file, Some("x"), None)).unwrap();
            remove_folders(&[
                file.parent().unwrap().to_owned(),
                dir.path().join("certs.d"),
            ]);
            assert!(!file.parent().unwrap().exists());
            assert_eq!(dir.path().join("certs.d").exists(), kept);
        }
    }
}
