//! containerd's configuration: its version, what it imports and in which order that counts, what of it larder needs, and
//! where that is put. Pure.
//!
//! Where the configuration imports a folder of files, larder has one there. Else its lines go into the main file, into
//! the tables that are there. Version 2 is containerd 1.7's, for which an imported file replaces the table of a whole
//! plugin: there it is always the main file.

use std::path::{Path, PathBuf};

use toml::Value;

use super::lines::{Need, header, lines, set};
use super::sources::{Source, effective, fits, get, imports, sources};
use super::{CERTS_DIR, Files, Refusal, Snapshots, Wanted, quoted};

/// What containerd calls it that pods with user namespaces need no copy of their image.
pub(in crate::app) const MAPS_OWNERS: &str = "remap-ids";
/// Where version 2 of the configuration has images, and where later ones do.
pub(in crate::app) const OLD_IMAGES: &str = "io.containerd.grpc.v1.cri";
/// See [`OLD_IMAGES`].
pub(in crate::app) const IMAGES: &str = "io.containerd.cri.v1.images";
/// What containerd 2 pulls with.
pub(in crate::app) const TRANSFER: &str = "io.containerd.transfer.v1.local";

const DROP_IN: &str = "larder.toml";
pub(super) const BY_HAND: &str = "write larder's lines by hand, see docs/containerd.md";

/// Which tables a version of the configuration has.
pub(super) struct Layout {
    version: i64,
}

impl Layout {
    pub(super) fn is_old(&self) -> bool {
        self.version < 3
    }

    fn plugin(&self) -> &'static str {
        if self.is_old() { OLD_IMAGES } else { IMAGES }
    }

    fn images(&self) -> Vec<&'static str> {
        match self.is_old() {
            true => vec!["plugins", OLD_IMAGES, "containerd"],
            false => vec!["plugins", IMAGES],
        }
    }

    fn registry(&self) -> Vec<&'static str> {
        vec!["plugins", self.plugin(), "registry"]
    }
}

/// Puts what is wanted into the files. The folder where containerd looks for registries' files then.
pub(super) fn plan(files: &mut Files, wanted: &Wanted) -> Result<PathBuf, Refusal> {
    let main = &wanted.config;
    let before = sources(files, main)?;
    let layout = layout(&before, wanted)?;
    refuse_strangers(&before, &layout)?;
    let mut needs = Vec::new();
    let mut certs_dir = wanted.certs_dir.clone().unwrap_or_else(|| CERTS_DIR.into());
    if wanted.mirror.is_some() {
        let (folder, need) = registries(&before, &layout, wanted)?;
        certs_dir = folder;
        needs.extend(need);
    }
    let mut unpack = false;
    if let Some(snapshots) = &wanted.snapshots {
        needs.extend(proxy(&before, &layout, main, snapshots)?);
        needs.extend(snapshotter(&before, &layout)?);
        unpack = lacks_unpack(&before, &layout)?;
    }
    if needs.is_empty() && !unpack {
        return Ok(certs_dir);
    }
    let place = place(&before, &layout, main, unpack)?;
    match place {
        Place::New => {
            let lines = lines(layout.version, &needs, unpack);
            drop(before);
            files.put_new(main, &lines);
        }
        Place::DropIn(path) => {
            let lines = lines(layout.version, &needs, unpack);
            drop(before);
            files.put_new(&path, &lines);
        }
        Place::Main => {
            for need in &needs {
                if let Some((source, _)) = effective(&before, &layout, &need.path())?
                    && source.path != *main
                {
                    return Err(imported(&source.path, &need.name(), main));
                }
            }
            let text = before.first().map_or("", |source| source.text);
            let text = set(main, text, &needs, unpack)?;
            drop(before);
            files.put(main, text);
        }
    }
    // What counts in the end is what containerd makes of all files.
    let after = sources(files, main)?;
    for need in &needs {
        let found = effective(&after, &layout, &need.path())?;
        match found {
            Some((_, value)) if *value == need.value => {}
            Some((source, _)) => return Err(imported(&source.path, &need.name(), main)),
            None => {
                return Err(Refusal::new(
                    main,
                    format!("{} is not seen", need.name()),
                    BY_HAND,
                ));
            }
        }
    }
    if unpack && lacks_unpack(&after, &layout)? {
        let name = header(&["plugins".to_owned(), TRANSFER.to_owned()]);
        return Err(Refusal::new(
            main,
            format!("{name}.unpack_config is not seen"),
            BY_HAND,
        ));
    }
    Ok(certs_dir)
}

/// The folder of registries' files that a configuration names, where it names a usable one.
pub(super) fn certs_dir(files: &Files, wanted: &Wanted) -> Option<PathBuf> {
    let sources = sources(files, &wanted.config).ok()?;
    let layout = layout(&sources, wanted).ok()?;
    let table = layout.registry();
    let path: Vec<&str> = table.iter().copied().chain(["config_path"]).collect();
    let (_, found) = effective(&sources, &layout, &path).ok()??;
    let folder = found.as_str().filter(|folder| !folder.contains(':'))?;
    Path::new(folder).is_absolute().then(|| folder.into())
}

/// An error where the configuration cannot be read.
pub(super) fn check(files: &Files, main: &Path) -> Result<(), Refusal> {
    sources(files, main).map(drop)
}

fn imported(path: &Path, name: &str, main: &Path) -> Refusal {
    Refusal::new(
        path,
        format!("it sets {name}, and counts more than larder's lines would"),
        format!("move that key to {}, or {BY_HAND}", main.display()),
    )
}

fn layout(sources: &[Source<'_>], wanted: &Wanted) -> Result<Layout, Refusal> {
    let Some(main) = sources.first() else {
        let version = match wanted.containerd {
            Some((1, _)) => 2,
            Some(_) => 3,
            None => {
                return Err(Refusal::new(
                    &wanted.config,
                    "it is not there, and no containerd runs that would tell its version",
                    "start containerd, or make the file: containerd config default",
                ));
            }
        };
        return Ok(Layout { version });
    };
    let remedy = "bring it to the newest version: containerd config migrate";
    let version = match main.table.get("version").map(Value::as_integer) {
        Some(Some(version @ 2..=4)) => version,
        Some(Some(version)) => {
            let cause = format!("version = {version} is not known: there are 2, 3 and 4");
            return Err(Refusal::new(&main.path, cause, remedy));
        }
        Some(None) => return Err(Refusal::new(&main.path, "version is no number", remedy)),
        None => {
            let cause = "version is missing, which means 1";
            return Err(Refusal::new(&main.path, cause, remedy));
        }
    };
    Ok(Layout { version })
}

/// What would make larder's lines mean something else, or nothing.
fn refuse_strangers(sources: &[Source<'_>], layout: &Layout) -> Result<(), Refusal> {
    for source in sources {
        let disabled = source
            .table
            .get("disabled_plugins")
            .and_then(Value::as_array);
        let mut disabled = disabled.into_iter().flatten().filter_map(Value::as_str);
        if let Some(name) = disabled.find(|name| [OLD_IMAGES, IMAGES, "cri"].contains(name)) {
            return Err(Refusal::new(
                &source.path,
                format!("disabled_plugins has {name:?}: this containerd serves no kubelet"),
                "take it out of the list",
            ));
        }
        let version = source.table.get("version").and_then(Value::as_integer);
        let version = version.unwrap_or(layout.version);
        let speaks = |plugin| get(&source.table, &["plugins", plugin]).is_some();
        if version != layout.version && (speaks(OLD_IMAGES) || speaks(IMAGES)) {
            return Err(Refusal::new(
                &source.path,
                format!(
                    "version = {version}, and that of the file that imports it is {}",
                    layout.version
                ),
                "bring all files to one version: containerd config migrate",
            ));
        }
    }
    Ok(())
}

/// The folder of registries' files, and what has to be set for it.
fn registries(
    sources: &[Source<'_>],
    layout: &Layout,
    wanted: &Wanted,
) -> Result<(PathBuf, Option<Need>), Refusal> {
    let table = layout.registry();
    let under = |key: &str| {
        let path: Vec<&str> = table.iter().copied().chain([key]).collect();
        effective(sources, layout, &path)
    };
    let filled = |value: &Value| value.as_table().is_none_or(|table| !table.is_empty());
    if let Some((source, mirrors)) = under("mirrors")?
        && filled(mirrors)
    {
        return Err(Refusal::new(
            &source.path,
            "registry.mirrors is set, and containerd does not start with config_path beside it",
            "bring each mirror into a hosts.toml first",
        ));
    }
    if let Some((source, Value::Table(configs))) = under("configs")?
        && configs.values().any(|config| config.get("tls").is_some())
    {
        return Err(Refusal::new(
            &source.path,
            "registry.configs has tls, and containerd does not start with config_path beside it",
            "bring the certificates into a hosts.toml first",
        ));
    }
    let need = |folder: &Path| Need::new(&table, "config_path", quoted(&folder.to_string_lossy()));
    let default = wanted.certs_dir.clone().unwrap_or_else(|| CERTS_DIR.into());
    let Some((source, found)) = under("config_path")? else {
        return Ok((default.clone(), need(&default)));
    };
    let refused = |cause: String, remedy: String| Err(Refusal::new(&source.path, cause, remedy));
    match found.as_str() {
        Some("") => Ok((default.clone(), need(&default))),
        Some(list) if list.contains(':') => refused(
            format!(
                "registry.config_path = {}: containerd 2 takes such a list for one folder, and finds nothing",
                quoted(list)
            ),
            format!("name one folder, such as {}", quoted(CERTS_DIR)),
        ),
        Some(folder) => match &wanted.certs_dir {
            Some(other) if other.as_path() != Path::new(folder) => refused(
                format!(
                    "registry.config_path = {}, and not {}",
                    quoted(folder),
                    other.display()
                ),
                "leave --certs-dir out, or change config_path".to_owned(),
            ),
            _ if !Path::new(folder).is_absolute() => refused(
                format!(
                    "registry.config_path = {}: it does not begin at the root",
                    quoted(folder)
                ),
                "write the whole path".to_owned(),
            ),
            _ => Ok((folder.into(), None)),
        },
        None => refused(
            "registry.config_path is no string".to_owned(),
            format!("config_path = {}", quoted(CERTS_DIR)),
        ),
    }
}

fn proxy(
    sources: &[Source<'_>],
    layout: &Layout,
    main: &Path,
    snapshots: &Snapshots,
) -> Result<Vec<Need>, Refusal> {
    let path = ["proxy_plugins", "larder"];
    let text = |path: &Path| {
        path.to_str().map(str::to_owned).ok_or_else(|| {
            let cause = format!(
                "{} is not UTF-8, and cannot be written into it",
                path.display()
            );
            Refusal::new(main, cause, "give larder another path")
        })
    };
    let (socket, root) = (text(&snapshots.socket)?, text(&snapshots.root)?);
    let Some((source, found)) = effective(sources, layout, &path)? else {
        let root = format!("{{ root = {} }}", quoted(&root));
        let needs = [
            ("type", quoted("snapshot")),
            ("address", quoted(&socket)),
            ("exports", root),
            ("capabilities", format!("[{}]", quoted(MAPS_OWNERS))),
        ];
        let needs = needs.map(|(key, literal)| Need::new(&path, key, literal));
        return Ok(needs.into_iter().flatten().collect());
    };
    // Somebody wrote it by hand: it is as it must be, or his to change.
    let string = |keys: &[&str]| {
        let table = found.as_table();
        let value = table.and_then(|table| get(table, keys)?.as_str());
        value.unwrap_or_default().to_owned()
    };
    let told = |key: &str, value: &str, wanted: &str| {
        Err(Refusal::new(
            &source.path,
            format!("proxy_plugins.larder: {key} is {}", quoted(value)),
            format!("{key} = {}, or take the table out", quoted(wanted)),
        ))
    };
    let kind = string(&["type"]);
    if kind != "snapshot" {
        return told("type", &kind, "snapshot");
    }
    let address = string(&["address"]);
    if address.trim_start_matches("unix://") != socket {
        return told("address", &address, &socket);
    }
    let exported = string(&["exports", "root"]);
    if exported != root {
        return told("exports.root", &exported, &root);
    }
    let capabilities = found.get("capabilities").and_then(Value::as_array);
    let other = |list: &Vec<Value>| {
        let mut list = list.iter();
        list.any(|item| item.as_str() != Some(MAPS_OWNERS))
    };
    if capabilities.is_some_and(other) {
        return Err(Refusal::new(
            &source.path,
            "proxy_plugins.larder: capabilities has some that larder has not",
            format!("capabilities = [{}]", quoted(MAPS_OWNERS)),
        ));
    }
    Ok(Vec::new())
}

/// In version 2 of the configuration the newer table is written too: containerd 2 takes over the older one's snapshotter
/// only where runtimes stand beside it, and containerd 1.7 does not look at the newer one.
fn snapshotter(sources: &[Source<'_>], layout: &Layout) -> Result<Vec<Need>, Refusal> {
    let newer = layout.is_old().then(|| vec!["plugins", IMAGES]);
    let tables = [layout.images()].into_iter().chain(newer);
    let mut needs = Vec::new();
    for table in tables {
        needs.extend(snapshotter_in(sources, layout, &table)?);
    }
    Ok(needs)
}

fn snapshotter_in(
    sources: &[Source<'_>],
    layout: &Layout,
    table: &[&str],
) -> Result<Option<Need>, Refusal> {
    let path: Vec<&str> = table.iter().copied().chain(["snapshotter"]).collect();
    let found = effective(sources, layout, &path)?;
    if found.is_some_and(|(_, value)| value.as_str() == Some("larder")) {
        return Ok(None);
    }
    Ok(Need::new(table, "snapshotter", quoted("larder")))
}

/// True where nothing tells containerd to unpack for larder what it pulls.
fn lacks_unpack(sources: &[Source<'_>], layout: &Layout) -> Result<bool, Refusal> {
    let path = ["plugins", TRANSFER, "unpack_config"];
    let Some((source, found)) = effective(sources, layout, &path)? else {
        return Ok(true);
    };
    let Some(list) = found.as_array() else {
        let cause = "unpack_config is no list of tables";
        return Err(Refusal::new(&source.path, cause, "mend it"));
    };
    let mut named = list
        .iter()
        .filter_map(|one| one.get("snapshotter")?.as_str());
    Ok(!named.any(|name| name == "larder"))
}

/// Where larder's lines go.
enum Place {
    New,
    DropIn(PathBuf),
    Main,
}

fn place(
    sources: &[Source<'_>],
    layout: &Layout,
    main: &Path,
    unpack: bool,
) -> Result<Place, Refusal> {
    let Some(first) = sources.first() else {
        return Ok(Place::New);
    };
    if layout.is_old() {
        return Ok(Place::Main);
    }
    // A later file replaces a list as a whole: what others have in it must not be lost.
    let path = ["plugins", TRANSFER, "unpack_config"];
    if let (true, Some((source, list))) = (unpack, effective(sources, layout, &path)?)
        && list.as_array().is_some_and(|list| !list.is_empty())
    {
        return match source.path == *main {
            true => Ok(Place::Main),
            false => Err(imported(&source.path, "unpack_config", main)),
        };
    }
    let folders = imports(&first.path, &first.table)?;
    let drop_in = folders.iter().find_map(|pattern| {
        let name = pattern.file_name()?.to_str()?;
        let (beginning, end) = name.split_once('*')?;
        fits(DROP_IN, beginning, end).then(|| pattern.with_file_name(DROP_IN))
    });
    let Some(path) = drop_in else {
        return Ok(Place::Main);
    };
    if sources.iter().any(|source| source.path == path) {
        return Err(Refusal::new(
            &path,
            "somebody else wrote it, and it is where larder's own lines would go",
            "move it away, or write the rest by hand, see docs/containerd.md",
        ));
    }
    Ok(Place::DropIn(path))
}
