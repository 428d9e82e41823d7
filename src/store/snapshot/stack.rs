//! What a snapshot stands on, mounted, and the mounts that the runtime is told to make.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::owners::Owners;
use super::{SnapshotError, SnapshotKind, SnapshotMount};
use crate::image::DiffId;
use crate::store::mount::Stack;
use crate::store::{Error, Inner};

/// What a snapshot stands on.
#[derive(Debug, Default)]
pub(super) struct Below {
    /// Lower directories, the topmost first.
    lowers: Vec<PathBuf>,
    /// How many of them are folders of snapshots; the rest are mounts, below those.
    folders: usize,
    pub(super) fixup: Option<String>,
    /// Of the store, base first.
    pub(super) layers: Vec<DiffId>,
    /// Of the layers.
    pub(super) trees: Vec<PathBuf>,
}

impl Below {
    /// Lower directories that are mounts.
    pub(super) fn mounted(&self) -> &[PathBuf] {
        self.lowers.get(self.folders..).unwrap_or_default()
    }

    /// Who owns the root of what is written on top: root in the container, or whoever owns the folder below, since a
    /// runtime may have changed the owners of all that is in there. `None` is the process itself.
    pub(super) fn owner(&self, owners: Option<&Owners>) -> Result<Option<(u32, u32)>, Error> {
        if let Some(owners) = owners {
            return Ok(Some(owners.root));
        }
        let Some(folder) = self.lowers.first().filter(|_| self.folders > 0) else {
            return Ok(None);
        };
        let meta = fs::symlink_metadata(folder);
        let meta = meta.map_err(|error| Error::io("look at", folder, error))?;
        Ok(Some((meta.uid(), meta.gid())))
    }
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
            trees,
        } = if layers.is_empty() {
            Stack::default()
        } else {
            self.mount_stack(&layers)?
        };
        let folders = lowers.len();
        lowers.extend(mounted);
        Ok(Below {
            lowers,
            folders,
            fixup,
            layers,
            trees,
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
        owners: Option<&Owners>,
    ) -> Result<Vec<SnapshotMount>, SnapshotError> {
        let own = text(&self.layout.snapshot_fs(id))?;
        let bind = |source: String, how: &str| SnapshotMount {
            kind: "bind",
            source,
            options: vec![how.to_owned(), "rbind".to_owned()],
        };
        let mapped = || owners.iter().flat_map(|owners| owners.options.clone());
        let writable = kind == SnapshotKind::Active;
        let Some(top) = below.lowers.first() else {
            return Ok(vec![bind(own, if writable { "rw" } else { "ro" })]);
        };
        if !writable && below.folders == 1 && below.lowers.len() == 1 {
            let mut mount = bind(text(top)?, "ro");
            mount.options.extend(mapped());
            return Ok(vec![mount]);
        }
        let mut lowers = Vec::new();
        if !writable {
            lowers.push(text(&self.empty_folder()?)?);
        }
        for lower in &below.lowers {
            lowers.push(text(lower)?);
        }
        // Containerd maps the folder that all lower directories are in, with the mounts below it.
        let mut options: Vec<String> = mapped().collect();
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
