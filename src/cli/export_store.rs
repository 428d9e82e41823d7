//! `larder export-store`.

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::Done;
use super::client::Client;
use super::failure::{Failure, Failures};
use super::mount::full_path;
use super::output::{familiar, say, short_id, table};
use super::run::Terminal;
use crate::app::export::{self, Exported, ExportedLayer};
use crate::control::proto::{InspectRequest, InspectResponse, MountRequest, UmountRequest};

pub(super) const AFTER: &str = "\
DIR becomes an additional image store of containers/storage. podman, buildah
and CRI-O then start containers from its images without a pull and without a
copy, once their storage.conf names it:

  [storage.options]
  additionalimagestores = [\"/var/lib/larder-store\"]

Its images stay mounted, so they are not pruned, and their layers stay after a
larder rmi. After a reboot they have to be mounted again: larder export-store
DIR does that, and shows tags that moved meanwhile. Needs root and Linux 6.12.

Examples:
  larder export-store /var/lib/larder-store busybox nginx:1.27
  larder export-store /var/lib/larder-store
  larder export-store /var/lib/larder-store --remove busybox
  podman --storage-opt additionalimagestore=/var/lib/larder-store images";

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Folder of the store, on this machine
    #[arg(value_name = "DIR")]
    directory: PathBuf,
    /// Images to add: names, ids or first digits of ids
    #[arg(value_name = "NAME")]
    names: Vec<String>,
    /// Take these images away instead
    #[arg(long, requires = "names")]
    remove: bool,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct View {
    id: String,
    names: Vec<String>,
    layers: usize,
}

pub(super) async fn run(args: Args, client: &mut Client, terminal: &Terminal) -> Done {
    let dir = PathBuf::from(full_path(&args.directory)?);
    export::claim(&dir)?;
    let mut failures = Failures::default();
    let mut wanted = export::images(&dir)?;
    for name in &args.names {
        let request = InspectRequest { name: name.clone() };
        let id = match client.images.inspect(request).await {
            Ok(found) => hex(&found.into_inner().image.unwrap_or_default().id),
            // One that larder does not have any more can still be taken away.
            Err(_) if args.remove => hex(name),
            Err(status) => {
                failures.note(&client.failure(&status));
                continue;
            }
        };
        wanted.retain(|known| *known != id);
        if !args.remove {
            wanted.push(id);
        }
    }
    let mut images = Vec::new();
    for id in &wanted {
        let name = format!("sha256:{id}");
        match client.images.inspect(InspectRequest { name }).await {
            Ok(found) => {
                let lowers = mounted(client, &dir, id).await?;
                images.push(exported(found.into_inner(), lowers));
            }
            Err(status) => failures.note(&client.failure(&status)),
        }
    }
    export::write(&dir, &export::plan(&images))?;
    // What nobody reads any more may go.
    for id in left_over(&dir, &images)? {
        let at = at(&dir, &id);
        if export::lowers(&at)?.is_some() {
            let directory = full_path(&at)?;
            let answer = client.images.umount(UmountRequest { directory }).await;
            client.answer(answer)?;
        }
        std::fs::remove_dir(&at)
            .map_err(|error| Failure::new(format!("{}: {error}", at.display())))?;
    }
    show(&images, terminal)?;
    failures.end()
}

fn hex(id: &str) -> String {
    id.trim_start_matches("sha256:").to_owned()
}

fn at(dir: &Path, id: &str) -> PathBuf {
    dir.join(export::MOUNTS).join(id)
}

/// Mounts an image, and tells what it is made of.
async fn mounted(client: &mut Client, dir: &Path, id: &str) -> Result<Vec<PathBuf>, Failure> {
    let at = at(dir, id);
    if let Some(lowers) = export::lowers(&at)? {
        return Ok(lowers);
    }
    let request = MountRequest {
        name: format!("sha256:{id}"),
        directory: full_path(&at)?,
    };
    let answer = client.images.mount(request).await;
    client.answer(answer)?;
    export::lowers(&at)?.ok_or_else(|| {
        Failure::new(format!(
            "{}: what the agent mounts is not seen here; run it on the agent's machine, where its mounts are shared",
            at.display()
        ))
    })
}

fn exported(found: InspectResponse, lowers: Vec<PathBuf>) -> Exported {
    let image = found.image.unwrap_or_default();
    let layers = found.layers.into_iter().map(|layer| ExportedLayer {
        diff_id: layer.diff_id,
        digest: layer.digest,
        size: layer.size,
        tar_bytes: layer.tar_bytes,
    });
    Exported {
        id: hex(&image.id),
        names: image.repo_tags,
        created: image.created,
        config: found.config,
        manifest: found.manifest,
        layers: layers.collect(),
        lowers,
    }
}

/// Mounts of images that the store does not have any more.
fn left_over(dir: &Path, images: &[Exported]) -> Result<Vec<String>, Failure> {
    let folder = dir.join(export::MOUNTS);
    let failed = |error| Failure::new(format!("{}: {error}", folder.display()));
    let mut found = Vec::new();
    for entry in std::fs::read_dir(&folder).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        let name = name.to_string_lossy().into_owned();
        if !images.iter().any(|image| image.id == name) {
            found.push(name);
        }
    }
    Ok(found)
}

fn show(images: &[Exported], terminal: &Terminal) -> Done {
    let views: Vec<View> = images
        .iter()
        .map(|image| View {
            id: format!("sha256:{}", image.id),
            names: image.names.clone(),
            layers: image.layers.len(),
        })
        .collect();
    if terminal.quiet || terminal.format().print(&views)? {
        return Ok(());
    }
    let rows = images.iter().map(|image| {
        let name = image
            .names
            .first()
            .map_or_else(|| "<none>".to_owned(), |name| familiar(name));
        [short_id(&image.id).to_owned(), name]
    });
    say(table(["IMAGE ID", "NAME"], rows, &[]))?;
    Ok(())
}
