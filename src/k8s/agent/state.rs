//! What outlives a restart: holds with their retention, and what pulls ended with; in a file of its own what was pruned.
//! Files are replaced as a whole.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use serde::de::DeserializeOwned;

use super::assign::Hold;
use super::inventory::{PulledUnit, Pulls};
use super::prepull::Unit;

/// Changed when a reader of the old would misunderstand the new.
const VERSION: u32 = 1;
/// Far more than 10,000 prepulls of 256 images would be is no state of ours.
const MAX_BYTES: u64 = 1 << 30;

/// A file: what it says, and in which words.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
struct Versioned<T> {
    version: u32,
    #[serde(flatten)]
    contents: T,
}

/// Contents of the file of holds.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
struct Contents {
    #[serde(default)]
    holds: Vec<Hold>,
    #[serde(default)]
    pulls: Vec<Pulled>,
}

#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
struct Pulled {
    unit: Unit,
    #[serde(flatten)]
    pulled: PulledUnit,
}

/// The state could not be read or written.
#[derive(Debug, thiserror::Error)]
#[error("{}: {cause}", path.display())]
pub(super) struct StateError {
    path: PathBuf,
    cause: String,
}

/// Where the state is.
#[derive(Clone, Debug)]
pub(super) struct StateFile {
    path: PathBuf,
}

impl StateFile {
    /// The file need not exist, its folder must.
    pub(super) fn new(path: PathBuf) -> Self {
        StateFile { path }
    }

    /// Blocking. Without a file there is nothing held. Images that a file which cannot be understood protected are
    /// protected again once the API server was read.
    pub(super) fn load(&self) -> Result<(Vec<Hold>, Pulls), StateError> {
        let contents: Contents = self.read()?.unwrap_or_default();
        let pulls = contents.pulls.into_iter();
        let pulls = pulls.map(|pulled| (pulled.unit, pulled.pulled)).collect();
        Ok((contents.holds, pulls))
    }

    /// Blocking. `None` without a file. One that cannot be understood is put aside as `NAME.unreadable` and said to be an
    /// error.
    pub(super) fn read<T: DeserializeOwned>(&self) -> Result<Option<T>, StateError> {
        let mut text = Vec::new();
        match File::open(&self.path) {
            Ok(file) => file
                .take(MAX_BYTES)
                .read_to_end(&mut text)
                .map_err(|error| self.error(error))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(self.error(error)),
        };
        let file: Result<Versioned<T>, _> = serde_json::from_slice(&text);
        match file {
            Ok(file) if file.version == VERSION => Ok(Some(file.contents)),
            other => {
                let cause = match other {
                    Ok(file) => format!("it is of version {}, not {VERSION}", file.version),
                    Err(error) => error.to_string(),
                };
                let mut aside = self.path.clone().into_os_string();
                aside.push(".unreadable");
                fs::rename(&self.path, &aside).map_err(|error| self.error(error))?;
                Err(self.error(format!(
                    "{cause}; it was put aside as {}",
                    Path::new(&aside).display()
                )))
            }
        }
    }

    /// Blocking. See [`StateFile::write`].
    pub(super) fn save(&self, holds: &[Hold], pulls: &Pulls) -> Result<(), StateError> {
        let contents = Contents {
            holds: holds.to_vec(),
            pulls: pulls
                .iter()
                .map(|(unit, pulled)| Pulled {
                    unit: unit.clone(),
                    pulled: pulled.clone(),
                })
                .collect(),
        };
        self.write(&contents)
    }

    /// Blocking. After it returned the state survives a power cut: the new file is synced before it takes the name,
    /// the folder after.
    pub(super) fn write<T: Serialize>(&self, contents: &T) -> Result<(), StateError> {
        let file = Versioned {
            version: VERSION,
            contents,
        };
        let text = serde_json::to_vec(&file).map_err(|error| self.error(error))?;
        self.replace(&text).map_err(|error| self.error(error))
    }

    fn replace(&self, text: &[u8]) -> io::Result<()> {
        let mut temporary = self.path.clone().into_os_string();
        temporary.push(".new");
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .open(&temporary)?;
        file.write_all(text)?;
        file.sync_all()?;
        fs::rename(&temporary, &self.path)?;
        match self.path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => File::open(folder)?.sync_all(),
            _ => File::open(".")?.sync_all(),
        }
    }

    fn error(&self, cause: impl std::fmt::Display) -> StateError {
        StateError {
            path: self.path.clone(),
            cause: cause.to_string(),
        }
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::super::assign::{HeldRevision, Released, Why};
    use super::super::prepull::{Identity, Kind, Origin};
    use super::*;

    #[test]
    fn what_is_saved_is_loaded() {
        let dir = tempfile::tempdir().unwrap();
        let file = StateFile::new(dir.path().join("prepulls.json"));
        assert_eq!(file.load().unwrap(), (Vec::new(), Pulls::new()));
        let unit = Unit {
            image: "r.io/app:1".to_owned(),
            digest: "sha256:1".to_owned(),
            platform: String::new(),
        };
        let hold = Hold {
            identity: Identity {
                uid: "u".to_owned(),
                kind: Kind::ImagePrepull,
                namespace: "team-a".to_owned(),
                name: "app".to_owned(),
                origin: Origin::File("a.yaml".to_owned()),
            },
            held: Some(HeldRevision {
                id: "0123456789abcdef".to_owned(),
                since: "2026-11-21T10:00:00Z".parse().unwrap(),
                units: vec![unit.clone()],
            }),
            released: Some(Released {
                since: Timestamp::UNIX_EPOCH,
                why: Why::Deselected,
            }),
            ..Hold::default()
        };
        let pulls = Pulls::from([(
            unit,
            PulledUnit {
                id: "sha256:2".to_owned(),
                at: Timestamp::UNIX_EPOCH,
            },
        )]);
        file.save(std::slice::from_ref(&hold), &pulls).unwrap();
        assert_eq!(file.load().unwrap(), (vec![hold.clone()], pulls.clone()));
        // A save that was cut off leaves the old state.
        std::fs::write(dir.path().join("prepulls.json.new"), "{\"vers").unwrap();
        assert_eq!(file.load().unwrap(), (vec![hold], pulls));
    }

    #[test]
    fn what_cannot_be_understood_is_put_aside() {
        for text in ["{", "{\"version\": 99}", "[]", "\0\0\0"] {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("prepulls.json");
            std::fs::write(&path, text).unwrap();
            let file = StateFile::new(path);
            let error = file.load().unwrap_err().to_string();
            assert!(error.contains("prepulls.json.unreadable"), "{error}");
            assert_eq!(
                std::fs::read_to_string(dir.path().join("prepulls.json.unreadable")).unwrap(),
                text
            );
            assert_eq!(file.load().unwrap(), (Vec::new(), Pulls::new()));
        }
    }
}
