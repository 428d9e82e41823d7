//! Plans: what is written for which files, what is refused, and that all of it comes out again.

use proptest::prelude::*;

use super::*;

fn files(texts: &[(&str, &str)]) -> Files {
    let mut files = Files::default();
    files.put(Path::new("/etc/containerd/x"), String::new());
    files.entries.remove(Path::new("/etc/containerd/x"));
    for (path, text) in texts {
        files.put(Path::new(path), (*text).to_owned());
    }
    files
}

fn wanted() -> Wanted {
    Wanted {
        config: PathBuf::from(CONFIG),
        certs_dir: None,
        mirror: Some("127.0.0.1:9641".parse().unwrap()),
        registries: Vec::new(),
        snapshots: Some(Snapshots {
            socket: PathBuf::from("/run/larder/larder.sock"),
            root: PathBuf::from("/var/lib/larder"),
        }),
        containerd: None,
    }
}

fn mirror_of(registries: &[&str]) -> Wanted {
    Wanted {
        registries: registries.iter().map(|host| (*host).to_owned()).collect(),
        snapshots: None,
        ..wanted()
    }
}

fn applied(files: &Files, plan: &Plan) -> Files {
    let mut files = files.clone();
    for change in &plan.changes {
        assert_eq!(files.text(&change.path).unwrap(), change.before.as_deref());
        match &change.after {
            Some(text) => drop(files.put(&change.path, text.clone())),
            None => drop(files.entries.remove(&change.path)),
        }
    }
    files.remove_empty(&plan.folders);
    files
}

/// What a plan makes of one file, after all that holds for any plan was looked at.
fn made(before: &Files, wanted: &Wanted) -> Files {
    let plan = plan(before, wanted).unwrap();
    let after = applied(before, &plan);
    let again = super::plan(&after, wanted).unwrap();
    assert_eq!(again.changes, [], "a second run changes something");
    let undo = undo(&after, wanted).unwrap();
    assert_eq!(
        &applied(&after, &undo),
        before,
        "it does not come out again"
    );
    assert_eq!(undo.restart, plan.restart);
    after
}

fn text(files: &Files, path: &str) -> String {
    files
        .text(Path::new(path))
        .unwrap()
        .unwrap_or("(none)")
        .to_owned()
}

const DROP_IN: &str = "/etc/containerd/conf.d/larder.toml";
const DEFAULT: &str = "/etc/containerd/certs.d/_default/hosts.toml";

#[test]
fn a_configuration_that_imports_a_folder_gets_a_file_there() {
    let main = "version = 3\nimports = ['/etc/containerd/conf.d/*.toml']\n[plugins.'io.containerd.cri.v1.images']\nsnapshotter = 'overlayfs'\n";
    let after = made(&files(&[(CONFIG, main)]), &wanted());
    assert_eq!(text(&after, CONFIG), main);
    assert_eq!(
        text(&after, DROP_IN),
        r#"# BEGIN larder setup containerd (new file, new folders: 1)
# Taken out again by: larder setup containerd --undo
version = 3

[plugins."io.containerd.cri.v1.images".registry]
  config_path = "/etc/containerd/certs.d"

[proxy_plugins.larder]
  type = "snapshot"
  address = "/run/larder/larder.sock"
  exports = { root = "/var/lib/larder" }
  capabilities = ["remap-ids"]

[plugins."io.containerd.cri.v1.images"]
  snapshotter = "larder"

[[plugins."io.containerd.transfer.v1.local".unpack_config]]
  platform = "linux"
  snapshotter = "larder"
# END larder setup containerd
"#
    );
    assert_eq!(
        text(&after, DEFAULT),
        r#"# BEGIN larder setup containerd (new file, new folders: 2)
# Taken out again by: larder setup containerd --undo
[host."http://127.0.0.1:9641"]
  capabilities = ["pull", "resolve"]
# END larder setup containerd
"#
    );
}

#[test]
fn without_imports_keys_go_into_the_tables_that_are_there() {
    let main = r#"# ours
version = 2
imports = []

[plugins]
  [plugins."io.containerd.grpc.v1.cri"]
    sandbox_image = "registry.k8s.io/pause:3.8" # pinned
    [plugins."io.containerd.grpc.v1.cri".containerd]
      snapshotter = "overlayfs" # default
      default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".registry]
      [plugins."io.containerd.grpc.v1.cri".registry.mirrors]
[proxy_plugins]"#;
    let after = made(&files(&[(CONFIG, main)]), &wanted());
    assert_eq!(
        text(&after, CONFIG),
        r#"# ours
version = 2
imports = []

[plugins]
  [plugins."io.containerd.grpc.v1.cri"]
    sandbox_image = "registry.k8s.io/pause:3.8" # pinned
    [plugins."io.containerd.grpc.v1.cri".containerd]
      # BEGIN larder setup containerd
      # Taken out again by: larder setup containerd --undo
      # was:       snapshotter = "overlayfs" # default
      snapshotter = "larder"
      # END larder setup containerd
      default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".registry]
      # BEGIN larder setup containerd
      # Taken out again by: larder setup containerd --undo
      config_path = "/etc/containerd/certs.d"
      # END larder setup containerd
      [plugins."io.containerd.grpc.v1.cri".registry.mirrors]
[proxy_plugins]
# BEGIN larder setup containerd
# Taken out again by: larder setup containerd --undo
[proxy_plugins.larder]
  type = "snapshot"
  address = "/run/larder/larder.sock"
  exports = { root = "/var/lib/larder" }
  capabilities = ["remap-ids"]

[plugins."io.containerd.cri.v1.images"]
  snapshotter = "larder"

[[plugins."io.containerd.transfer.v1.local".unpack_config]]
  platform = "linux"
  snapshotter = "larder"
# END larder setup containerd"#
    );
}

#[test]
fn without_a_file_the_running_containerd_says_which_one_to_write() {
    let none = files(&[]);
    for (containerd, version) in [((1, 7), 2), ((2, 0), 3), ((2, 4), 3)] {
        let wanted = Wanted {
            containerd: Some(containerd),
            ..wanted()
        };
        let after = made(&none, &wanted);
        assert!(text(&after, CONFIG).contains(&format!("\nversion = {version}\n")));
    }
    assert!(
        plan(&none, &wanted())
            .unwrap_err()
            .cause
            .contains("not there")
    );
}

#[test]
fn what_is_there_by_hand_is_left_alone() {
    let main = r#"version = 3
[proxy_plugins.larder]
  type = "snapshot"
  address = "unix:///run/larder/larder.sock"
  [proxy_plugins.larder.exports]
    root = "/var/lib/larder"
[plugins."io.containerd.cri.v1.images"]
  snapshotter = "larder"
  registry = { config_path = "/srv/certs.d" }
[[plugins."io.containerd.transfer.v1.local".unpack_config]]
  platform = "linux"
  snapshotter = "larder"
"#;
    let hosts = "[host.\"http://127.0.0.1:9641/v2/\"]\n  capabilities = [\"resolve\", \"pull\"]\n";
    let before = files(&[(CONFIG, main), ("/srv/certs.d/_default/hosts.toml", hosts)]);
    let plan = plan(&before, &wanted()).unwrap();
    assert_eq!((plan.changes, plan.notes), (vec![], vec![]));
}

#[test]
fn lists_of_unpacking_grow_and_lose_nothing() {
    let imports = "imports = ['conf.d/*.toml']\n";
    let table = "[[plugins.'io.containerd.transfer.v1.local'.unpack_config]]\nplatform = 'linux/amd64'\nsnapshotter = 'overlayfs'\n";
    let empty = "[plugins.'io.containerd.transfer.v1.local']\nunpack_config = [\n] # none\n";
    for (list, entries) in [(table, 2), (empty, 1)] {
        for imports in [imports, ""] {
            let main = format!("version = 3\n{imports}{list}");
            let after = made(&files(&[(CONFIG, &main)]), &wanted());
            let own = if entries == 1 && !imports.is_empty() {
                DROP_IN
            } else {
                CONFIG
            };
            let table: toml::Table = text(&after, own).parse().unwrap();
            let list = &table["plugins"]["io.containerd.transfer.v1.local"]["unpack_config"];
            assert_eq!(list.as_array().unwrap().len(), entries, "{main}");
        }
    }
}

#[test]
fn hosts_come_first_and_registries_stay_last() {
    let host = |path: &str| format!("/etc/containerd/certs.d/{path}/hosts.toml");
    let config = (CONFIG, "version = 4\n");
    let after = made(
        &files(&[config]),
        &mirror_of(&["docker.io", "reg.example:5000", "localhost:5000"]),
    );
    assert!(
        text(&after, &host("docker.io"))
            .contains("\nserver = \"https://registry-1.docker.io\"\n\n[host.")
    );
    assert!(
        text(&after, &host("reg.example:5000"))
            .contains("\nserver = \"https://reg.example:5000\"\n")
    );
    assert!(!text(&after, &host("localhost:5000")).contains("server"));

    let old = r#"server = "https://reg.example:5000"
ca = "ca.pem"

# The one in Rome.
[host."https://rome.example"]
  capabilities = ["pull"]
  [host."https://rome.example".header]
    x = "1"
[host."https://paris.example"]"#;
    let path = host("reg.example_5000_");
    let after = made(
        &files(&[config, (&path, old)]),
        &mirror_of(&["reg.example:5000"]),
    );
    assert_eq!(
        text(&after, &path),
        r#"server = "https://reg.example:5000"
ca = "ca.pem"

# BEGIN larder setup containerd
# Taken out again by: larder setup containerd --undo
[host."http://127.0.0.1:9641"]
  capabilities = ["pull", "resolve"]
# END larder setup containerd
# The one in Rome.
[host."https://rome.example"]
  capabilities = ["pull"]
  [host."https://rome.example".header]
    x = "1"
[host."https://paris.example"]"#
    );
    // Whatever is there already, there is nothing to restart for.
    let set = "version = 3\n[plugins.'io.containerd.cri.v1.images'.registry]\nconfig_path = '/etc/containerd/certs.d'\n";
    let before = files(&[(CONFIG, set), (&path, old)]);
    let plan = plan(&before, &mirror_of(&[])).unwrap();
    assert!(!plan.restart);
    assert_eq!(plan.changes.len(), 1);
    assert!(
        plan.notes[0].contains("reg.example_5000_"),
        "{:?}",
        plan.notes
    );
}

#[test]
fn other_wishes_leave_nothing_of_the_first() {
    let before = files(&[(CONFIG, "version = 3\nimports = ['conf.d/*']\n")]);
    let first = made(&before, &wanted());
    let after = applied(&first, &plan(&first, &mirror_of(&["docker.io"])).unwrap());
    assert_eq!(after, made(&before, &mirror_of(&["docker.io"])));
    assert!(!text(&after, DROP_IN).contains("snapshot"));
    assert_eq!(text(&after, DEFAULT), "(none)");
}

#[test]
fn what_is_not_understood_is_refused_by_name() {
    const V3: &str = "version = 3\n";
    const CRI: &str = "[plugins.'io.containerd.cri.v1.images'";
    const CRI2: &str = "[plugins.'io.containerd.grpc.v1.cri'";
    let imports = "imports = ['conf.d/*.toml']\n";
    let with = |rest: &str| format!("{V3}{rest}");
    let proxy = |rest: &str| {
        format!(
            "{V3}[proxy_plugins.larder]\ntype = 'snapshot'\naddress = '/run/larder/larder.sock'\n{rest}"
        )
    };
    let other = "/etc/containerd/conf.d/z.toml";
    // Files, the one that is named, and words of what is said.
    type Bad<'a> = (Vec<(&'a str, String)>, &'a str, &'a str);
    let bad: Vec<Bad<'_>> = vec![
        (vec![], CONFIG, "version"),
        (vec![(CONFIG, String::new())], CONFIG, "version is missing"),
        (vec![(CONFIG, "disabled_plugins = ['cri']\n".into())], CONFIG, "version is missing"),
        (vec![(CONFIG, "version = 1\n".into())], CONFIG, "version = 1"),
        (vec![(CONFIG, "version = 9\n".into())], CONFIG, "version = 9"),
        (vec![(CONFIG, "version = 'x'\n".into())], CONFIG, "no number"),
        (vec![(CONFIG, with("a = [\n"))], CONFIG, "line "),
        (vec![(CONFIG, with("[a]\n[a]\n"))], CONFIG, "line 3"),
        (vec![(CONFIG, with("disabled_plugins = ['io.containerd.grpc.v1.cri']\n"))], CONFIG, "disabled_plugins"),
        (vec![(CONFIG, proxy(""))], CONFIG, "exports.root is \"\""),
        (vec![(CONFIG, proxy("exports = { root = '/srv' }\n"))], CONFIG, "exports.root is \"/srv\""),
        (
            vec![(CONFIG, proxy("exports.root = '/var/lib/larder'\ncapabilities = ['rebase']\n"))],
            CONFIG,
            "capabilities",
        ),
        (vec![(CONFIG, with("[proxy_plugins]\nlarder = 'x'\n"))], CONFIG, "type is \"\""),
        (vec![(CONFIG, with("proxy_plugins = {}\n"))], CONFIG, "in which larder's lines"),
        (vec![(CONFIG, with("[plugins]\n'io.containerd.cri.v1.images' = { snapshotter = 'x' }\n"))], CONFIG, "in which larder's lines"),
        (vec![(CONFIG, with(&format!("{CRI}.registry]\nconfig_path = '/a:/b'\n")))], CONFIG, "for one folder"),
        (vec![(CONFIG, with(&format!("{CRI}.registry]\nconfig_path = 'a'\n")))], CONFIG, "begin at the root"),
        (vec![(CONFIG, with(&format!("{CRI}.registry]\nconfig_path = 7\n")))], CONFIG, "no string"),
        (vec![(CONFIG, with(&format!("{CRI}.registry.mirrors.'docker.io']\n")))], CONFIG, "registry.mirrors"),
        (vec![(CONFIG, with(&format!("{CRI}.registry.configs.x.tls]\n")))], CONFIG, "registry.configs"),
        (vec![(CONFIG, with("imports = ['/etc/[a-c]/*.toml']\n"))], CONFIG, "imports"),
        (vec![(CONFIG, with("imports = ['/etc/*/x.toml']\n"))], CONFIG, "imports"),
        (vec![(CONFIG, with("imports = 'x'\n"))], CONFIG, "imports"),
        (vec![(CONFIG, with("imports = ['/etc/x.toml']\n"))], "/etc/x.toml", "not there"),
        (vec![(CONFIG, with("imports = ['conf.d/z.toml']\n")), (other, format!("{CRI}]\nsnapshotter = 'x'\n"))], other, "snapshotter"),
        (vec![(CONFIG, with(imports)), (other, format!("{CRI}]\nsnapshotter = 'x'\n"))], other, "snapshotter"),
        (vec![(CONFIG, with(imports)), (other, "a = \n".into())], other, "line 1"),
        (vec![(CONFIG, with(imports)), (other, format!("version = 2\n{CRI2}]\n"))], other, "version = 2"),
        (vec![(CONFIG, with(imports)), (DROP_IN, "version = 3\n".into())], DROP_IN, "somebody else"),
        (
            vec![(CONFIG, with(imports)), (other, "[[plugins.'io.containerd.transfer.v1.local'.unpack_config]]\nsnapshotter = 'x'\n".into())],
            other,
            "unpack_config",
        ),
        (
            vec![(CONFIG, format!("version = 2\n{imports}{CRI2}]\n")), (other, format!("{CRI2}]\n"))],
            other,
            "is in /etc/containerd/config.toml too",
        ),
        (
            vec![(CONFIG, format!("version = 2\n{imports}")), (other, format!("{CRI2}.containerd]\nsnapshotter = 'x'\n"))],
            other,
            "snapshotter",
        ),
        (vec![(CONFIG, with("# BEGIN larder setup containerd\n"))], CONFIG, "line 2"),
        (vec![(CONFIG, V3.into()), (DEFAULT, "host = 3\n".into())], DEFAULT, "no table of hosts"),
        (vec![(CONFIG, V3.into()), (DEFAULT, "[[host]]\n".into())], DEFAULT, "no table of hosts"),
        (vec![(CONFIG, V3.into()), (DEFAULT, "host.'https://x'.skip_verify = true\n".into())], DEFAULT, "no header of its own"),
        (vec![(CONFIG, V3.into()), (DEFAULT, "[host]\n'https://x' = {}\n".into())], DEFAULT, "no header of its own"),
        (vec![(CONFIG, V3.into()), (DEFAULT, "[host.a\n".into())], DEFAULT, "line 1"),
        (
            vec![(CONFIG, V3.into()), (DEFAULT, "[host.'https://x']\n[host.'http://127.0.0.1:9641']\n".into())],
            DEFAULT,
            "not the first",
        ),
        (
            vec![(CONFIG, V3.into()), (DEFAULT, "[host.'http://127.0.0.1:9641']\ncapabilities = ['pull']\n".into())],
            DEFAULT,
            "capabilities",
        ),
        (
            vec![(CONFIG, V3.into()), ("/etc/containerd/certs.d/_default/ca.crt", String::new())],
            "/etc/containerd/certs.d/_default",
            "ca.crt",
        ),
    ];
    for (texts, file, words) in bad {
        let texts: Vec<(&str, &str)> = texts
            .iter()
            .map(|(path, text)| (*path, text.as_str()))
            .collect();
        let refusal = plan(&files(&texts), &wanted()).unwrap_err();
        assert_eq!(refusal.file, Path::new(file), "{refusal} {texts:?}");
        assert!(refusal.cause.contains(words), "{refusal}: {words}");
        assert!(!refusal.remedy.is_empty());
    }
    // Of one registry.
    let default = (DEFAULT, "server = 'https://x'\n");
    for (registry, words) in [
        ("reg.example", "it is for reg.example too"),
        ("registry-1.docker.io", "no registry"),
        ("https://x", "no registry"),
        ("../x", "no registry"),
        ("_default", "no registry"),
        ("", "no registry"),
    ] {
        let refusal = plan(&files(&[(CONFIG, V3), default]), &mirror_of(&[registry])).unwrap_err();
        assert!(refusal.cause.contains(words), "{refusal}");
    }
    // Of files that cannot be read.
    let mut unread = files(&[]);
    unread
        .entries
        .insert(CONFIG.into(), Entry::Fault("permission denied".to_owned()));
    for refusal in [plan(&unread, &wanted()), undo(&unread, &wanted())] {
        assert!(refusal.unwrap_err().cause.contains("permission denied"));
    }
}

/// A table as people and programs write it: header, keys, comments.
fn table(name: &'static str, keys: &'static [&'static str]) -> impl Strategy<Value = String> {
    let keys = proptest::sample::subsequence(keys, 0..=keys.len());
    (keys, "( {0,4})", any::<bool>()).prop_map(move |(keys, indent, comment)| {
        let mut text = format!("{indent}[{name}]\n");
        if comment {
            text.push_str("# snapshotter = \"larder\" [not.a.table]\n\n");
        }
        for key in keys {
            text.push_str(&format!("{indent}  {key}\n"));
        }
        text
    })
}

fn configuration() -> impl Strategy<Value = String> {
    let tables: Vec<BoxedStrategy<String>> = vec![
        table("proxy_plugins", &[]).boxed(),
        table(
            "proxy_plugins.stargz",
            &["type = \"snapshot\"", "address = '''/run/x\n'''"],
        )
        .boxed(),
        table(
            "plugins.\"io.containerd.cri.v1.images\"",
            &[
                "snapshotter = \"overlayfs\" # c",
                "pinned_images.sandbox = 'pause'",
            ],
        )
        .boxed(),
        table(
            "plugins.'io.containerd.cri.v1.images'.registry",
            &["config_path = \"\"", "headers = {}"],
        )
        .boxed(),
        table(
            "plugins.'io.containerd.grpc.v1.cri'.containerd",
            &["snapshotter = 'native'", "x = [ # ]\n 1,\n]"],
        )
        .boxed(),
        table(
            "plugins.'io.containerd.grpc.v1.cri'.registry",
            &["config_path=\"/srv/certs.d\""],
        )
        .boxed(),
        table(
            "plugins.'io.containerd.transfer.v1.local'",
            &["max_concurrent_downloads = 3", "unpack_config = []"],
        )
        .boxed(),
        table("debug", &["level = 'debug'"]).boxed(),
    ];
    let imports = proptest::sample::select(vec![
        "",
        "imports = []\n",
        "imports = [\"/etc/containerd/conf.d/*.toml\"]\n",
        "imports = [ # mine\n  \"conf.d/*\",\n]\n",
        "imports = ['/srv/x/*.toml', '/etc/containerd/other.toml']\n",
    ]);
    let chosen =
        proptest::sample::subsequence((0..tables.len()).collect::<Vec<_>>(), 0..=tables.len());
    (
        2i64..=4,
        imports,
        chosen.prop_shuffle(),
        tables,
        any::<(bool, bool)>(),
    )
        .prop_map(|(version, imports, chosen, tables, (open, crlf))| {
            let mut text = format!("# a\nversion = {version}\n{imports}");
            for at in chosen {
                text.push_str(&tables[at]);
            }
            if open {
                text.pop();
            }
            if crlf {
                text = text.replace('\n', "\r\n");
            }
            text
        })
}

fn hosts_file() -> impl Strategy<Value = String> {
    let piece = proptest::sample::select(vec![
        "[host.\"https://a.example\"]\n  capabilities = [\"pull\"]\n",
        "# b\n  # c\n[host.'b.example'.header]\n  x = ['1', \"2\"]\n",
        "[host.\"https://c.example/v2\"]\r\noverride_path = true\r\n",
    ]);
    let root = proptest::sample::select(vec![
        "",
        "server = 'https://x'\n",
        "# only this",
        "\n\n",
        "ca = ['''a\n[host.x]''']\n",
    ]);
    (
        root,
        proptest::collection::btree_set(piece, 0..=3),
        any::<bool>(),
    )
        .prop_map(|(root, pieces, open)| {
            let mut text = root.to_owned();
            if !text.is_empty() && !text.ends_with('\n') {
                text.push('\n');
            }
            for piece in pieces {
                text.push_str(piece);
            }
            if open {
                text = text.trim_end_matches(['\r', '\n']).to_owned();
            }
            text
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn what_is_applied_twice_is_applied_once_and_comes_out_again(
        main in configuration(),
        hosts in proptest::option::of(hosts_file()),
        other in "[ab= 1\n]{0,8}",
        folders in any::<(bool, bool)>(),
        registries in proptest::sample::subsequence(vec!["docker.io", "reg.example:5000"], 0..=2),
        parts in 0..3,
    ) {
        let mut before = files(&[(CONFIG, &main)]);
        before.put(Path::new("/etc/containerd/other.toml"), "# nothing\n".to_owned());
        if folders.0 {
            before.put(Path::new("/etc/containerd/conf.d/a.toml"), "[debug]\nlevel = 'info'\n".to_owned());
        }
        if folders.1 {
            before.put(Path::new("/srv/certs.d/docker.io/notes"), other);
        }
        if let Some(hosts) = &hosts {
            before.put(Path::new(DEFAULT), hosts.clone());
            before.put(Path::new("/etc/containerd/certs.d/reg.example_5000_/hosts.toml"), hosts.clone());
            before.put(Path::new("/srv/certs.d/docker.io/hosts.toml"), hosts.clone());
        }
        let mut wanted = Wanted { registries: registries.into_iter().map(str::to_owned).collect(), ..wanted() };
        match parts {
            0 => wanted.mirror = None,
            1 => wanted.snapshots = None,
            _ => {}
        }
        match plan(&before, &wanted) {
            Ok(plan) => {
                let after = made(&before, &wanted);
                for change in &plan.changes {
                    let text = after.text(&change.path).unwrap().unwrap();
                    prop_assert!(text.parse::<toml::Table>().is_ok());
                    // What people wrote is there, line by line.
                    for line in change.before.as_deref().unwrap_or_default().lines() {
                        prop_assert!(text.contains(line));
                    }
                }
            }
            // What it may well refuse of these.
            Err(refusal) => prop_assert!(
                ["it is for docker.io too", "it is for reg.example"].iter().any(|words| refusal.cause.contains(words)),
                "{refusal}\n{main}"
            ),
        }
        prop_assert!(undo(&before, &wanted).unwrap().changes.is_empty());
    }
}
