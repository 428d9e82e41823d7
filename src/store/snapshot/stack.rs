//! What a snapshot stands on, mounted, and the mounts that the runtime is told to make.

use std::path::{Path, PathBuf};

use super::{SnapshotError, SnapshotKind, SnapshotMount};
use crate::image::DiffId;
use crate::store::mount::Stack;
use crate::store::{Error, Inner};

/// What a snapshot stands on.
#[derive(Debug, Default)]
pub(super) struct Below {
    /// Lower directories, the topmost first.
    lowers: Vec<PathBuf>,
    /// All of it is one folder.
    folder: bool,
    pub(super) fixup: Option<String>,
}

impl Inner {
    /// Mounts what is below a snapshot. The caller holds the commit lock.
    pub(super) fn snapshot_stack(&self, parent: Option<&str>) -> Result<Below, SnapshotError> {
        let mut lowers = Vec::new();
        let mut layers: Vec<DiffId> = Vec::new();
        {
            let state = self.state();
            let mut next = parent;
            while let Some(name) = next {
                let row = state.records.snapshots.get(name);
                let row = row.ok_or_else(|| SnapshotError::NotFound(name.to_owned()))?;
                match &row.layer {
                    Some(layer) => layers.push(layer.diff_id.clone()),
                    None => lowers.push(self.layout.snapshot_fs(row.id)),
                }
                next = row.parent.as_deref();
            }
            for layer in &layers {
                let cause = match state.records.layers.get(layer) {
                    Some(row) => row.damaged.clone(),
                    None => Some("it is gone".to_owned()),
                };
                if let Some(cause) = cause {
                    let subject = format!("layer {layer}");
                    return Err(Error::Damaged { subject, cause }.into());
                }
            }
        }
        // Layers of the store never stand on folders.
        layers.reverse();
        let Stack {
            lowers: mounted,
            fixup,
        } = if layers.is_empty() {
            Stack::default()
        } else {
            self.mount_stack(&layers)?
        };
        let folder = mounted.is_empty() && lowers.len() == 1;
        lowers.extend(mounted);
        Ok(Below {
            lowers,
            folder,
            fixup,
        })
    }

    /// The mounts of a snapshot that is not committed.
    ///
    /// The root of what a container sees has the attributes of its own folder, as with containerd's snapshotters: those
    /// that the tar of a layer gives to `./` are not looked at.
    pub(super) fn snapshot_mount_options(
        &self,
        kind: SnapshotKind,
        id: u64,
        below: &Below,
    ) -> Result<Vec<SnapshotMount>, SnapshotError> {
        let own = text(&self.layout.snapshot_fs(id))?;
        let bind = |source: String, how: &str| SnapshotMount {
            kind: "bind",
            source,
            options: vec![how.to_owned(), "rbind".to_owned()],
        };
        let writable = kind == SnapshotKind::Active;
        let Some(top) = below.lowers.first() else {
            return Ok(vec![bind(own, if writable { "rw" } else { "ro" })]);
        };
        if !writable && below.folder {
            return Ok(vec![bind(text(top)?, "ro")]);
        }
        let mut lowers = Vec::new();
        if !writable {
            lowers.push(text(&self.empty_folder()?)?);
        }
        for lower in &below.lowers {
            lowers.push(text(lower)?);
        }
        let mut options = Vec::new();
        // Where the kernel's default is on, an upper directory could be mounted once only.
        if Path::new("/sys/module/overlay/parameters/index").exists() {
            options.push("index=off".to_owned());
        }
        if writable {
            let work = text(&self.layout.snapshot_work(id))?;
            options.push(format!("workdir={work}"));
            options.push(format!("upperdir={own}"));
        }
        options.push(format!("lowerdir={}", lowers.join(":")));
        Ok(vec![SnapshotMount {
            kind: "overlay",
            source: "overlay".to_owned(),
            options,
        }])
    }
}

/// A path as an option of a mount.
fn text(path: &Path) -> Result<String, SnapshotError> {
    match path.to_str() {
        Some(text) if !text.contains([',', ':', '\\', '"']) => Ok(text.to_owned()),
        _ => Err(Error::MountUnsupported {
            cause: format!(
                "{} cannot stand among the options of an overlay: give a --root without comma, colon, quote and backslash",
                path.display()
            ),
        }
        .into()),
    }
}
