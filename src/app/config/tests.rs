//! What a configuration becomes, and what its errors say.

use std::path::Path;

use super::*;

fn layers(text: &str, variables: &[(&str, &str)]) -> Layers {
    let variables = variables
        .iter()
        .map(|(name, value)| (name.into(), value.into()));
    Layers {
        environment: Environment::read(variables).unwrap(),
        path: "larder.toml".into(),
        text: text.to_owned(),
    }
}

fn load(args: &AgentArgs, text: &str) -> Result<Config, String> {
    let config = layers(text, &[]).resolve(args);
    config.map_err(|error| error.to_string())
}

fn error(text: &str) -> String {
    load(&AgentArgs::default(), text).unwrap_err()
}

#[test]
fn defaults_are_the_documented_ones() {
    let config = Config::load(&AgentArgs::default()).unwrap();
    assert_eq!(config.root, Path::new("/var/lib/larder"));
    assert_eq!(config.socket, Path::new("/run/larder/larder.sock"));
    assert_eq!(config.http, Some("127.0.0.1:9640".parse().unwrap()));
    assert_eq!(config.drain_timeout, Duration::from_secs(20));
    assert_eq!(config.log.level, "info");
    assert_eq!(config.scrub_interval, Some(Duration::from_secs(60)));
    let never = load(&AgentArgs::default(), "scrub_interval = \"0s\"\n").unwrap();
    assert_eq!(never.scrub_interval, None);
}

#[test]
fn flags_win_over_the_file() {
    let text = "root = \"/file\"\nhttp = \"127.0.0.1:1\"\nhosts_dirs = [\"/file\"]\n[pull]\nmax_layers = 2\n";
    let config = load(&AgentArgs::default(), text).unwrap();
    assert_eq!(config.root, Path::new("/file"));
    assert_eq!(config.cache.max_layers, 2);
    assert_eq!(config.cache.hosts_dirs, [PathBuf::from("/file")]);
    let args = AgentArgs {
        root: Some("/flag".into()),
        http: Some(String::new()),
        hosts_dir: vec!["/flag".into()],
        max_layers: Some(3),
        ..AgentArgs::default()
    };
    let config = load(&args, text).unwrap();
    assert_eq!(config.root, Path::new("/flag"));
    assert_eq!(config.http, None);
    let args = AgentArgs {
        http: Some(":9640".to_owned()),
        ..AgentArgs::default()
    };
    assert_eq!(
        load(&args, text).unwrap().http,
        Some("0.0.0.0:9640".parse().unwrap())
    );
    assert_eq!(config.cache.max_layers, 3);
    assert_eq!(config.cache.hosts_dirs, [PathBuf::from("/flag")]);
}

#[test]
fn the_environment_is_between_file_and_flags() {
    let text = "root = \"/file\"\n[registry]\nattempts = 2\nmax_per_host = 3\n";
    let variables = [
        ("LARDER_ROOT", "/variable"),
        ("LARDER_REGISTRY_ATTEMPTS", "4"),
        ("LARDER_REGISTRY_ATTEMPT", "5"),
    ];
    let layers = layers(text, &variables);
    let config = layers.resolve(&AgentArgs::default()).unwrap();
    assert_eq!(config.root, Path::new("/variable"));
    assert_eq!(config.cache.attempts, 4);
    assert_eq!(config.cache.max_per_host, 3);
    assert_eq!(config.unknown_variables, ["LARDER_REGISTRY_ATTEMPT"]);
    let args = AgentArgs {
        root: Some("/flag".into()),
        ..AgentArgs::default()
    };
    let config = layers.resolve(&args).unwrap();
    assert_eq!(config.root, Path::new("/flag"));

    let shown = show::settings(&config, &args, &layers);
    let origin = |key| {
        let setting = shown.iter().find(|setting| setting.key == key).unwrap();
        (setting.value.to_string(), setting.origin.clone())
    };
    let pair = |value: &str, origin: &str| (value.to_owned(), origin.to_owned());
    assert_eq!(origin("root"), pair("\"/flag\"", "--root"));
    assert_eq!(
        origin("registry.attempts"),
        pair("4", "LARDER_REGISTRY_ATTEMPTS")
    );
    assert_eq!(
        origin("registry.max_per_host"),
        pair("3", "larder.toml: line 4")
    );
    assert_eq!(origin("drain_timeout"), pair("\"20s\"", "default"));
}

#[test]
fn errors_of_variables_name_the_variable() {
    for (name, value, holds) in [
        (
            "LARDER_REGISTRY_ATTEMPTS",
            "99",
            "99 is not between 1 and 20",
        ),
        ("LARDER_HTTP", "here", "write IP:PORT"),
        ("LARDER_LOG_LEVEL", "inof", "is no level"),
        ("LARDER_MAX_LAYERS", "0", "0 is not between 1 and 64"),
        ("LARDER_ROOT", "", "the path is empty"),
    ] {
        // What the file says of the same key is not the reason.
        let layers = layers("root = \"/file\"\n", &[(name, value)]);
        let error = layers
            .resolve(&AgentArgs::default())
            .unwrap_err()
            .to_string();
        assert!(error.starts_with(&format!("{name}: ")), "{error}");
        assert!(error.contains(holds), "{error}");
    }
}

#[test]
fn errors_name_file_line_and_key() {
    for (text, begin, holds) in [
        (
            "roto = \"/x\"\n",
            "larder.toml: line 1: roto: unknown field `roto`",
            "`root`",
        ),
        (
            "\n[log]\nlevel = 3\n",
            "larder.toml: line 3: log.level: invalid type",
            "string",
        ),
        (
            "[log]\nlevel = \"larder=loud\"\n",
            "larder.toml: line 2: log.level: ",
            "loud",
        ),
        (
            "[log]\nformat = \"xml\"\n",
            "larder.toml: line 2: log.format: ",
            "none of auto, json, human",
        ),
        (
            "# one\nhttp = \"here\"\n",
            "larder.toml: line 2: http: ",
            "write IP:PORT",
        ),
        (
            "[pull]\nmax_layers = 0\n",
            "larder.toml: line 2: pull.max_layers: 0 is not between 1 and 64",
            "",
        ),
        (
            "[registry]\nstall_timeout = \"30\"\n",
            "larder.toml: line 2: registry.stall_timeout: ",
            "such as 20s",
        ),
        (
            "[registry]\nstall_timeout = \"1ms\"\n",
            "larder.toml: line 2: registry.stall_timeout: ",
            "between 1 and 3600",
        ),
        (
            "drain_timeout = \"2h\"\n",
            "larder.toml: line 1: drain_timeout: ",
            "between 0 and 3600",
        ),
        (
            "pinned = [\"a*b\"]\n",
            "larder.toml: line 1: pinned: ",
            "is no pattern",
        ),
        (
            "limits.max_path = 9999\n",
            "larder.toml: line 1: limits.max_path: 9999 is not between",
            "",
        ),
        (
            "platform = \"linux/amd64/v2/x\"\n",
            "larder.toml: line 1: platform: ",
            "os/architecture",
        ),
        ("root = \n", "larder.toml: line 1: ", ""),
        (
            "[lots]\nx = 1\n",
            "larder.toml: line 1: ",
            "unknown field `lots`",
        ),
    ] {
        let error = error(text);
        assert!(
            error.starts_with(begin) && error.contains(holds),
            "{text:?}: {error}"
        );
        assert!(!error.contains('\n'), "{error}");
    }
}

#[test]
fn errors_of_flags_name_the_flag() {
    let args = AgentArgs {
        http: Some("here".to_owned()),
        ..AgentArgs::default()
    };
    let error = load(&AgentArgs::default(), "control = \"0.0.0.0:1\"\n").unwrap_err();
    assert!(error.contains("reached from elsewhere"), "{error}");
    let error = load(&args, "http = \"127.0.0.1:1\"\n").unwrap_err();
    assert!(error.starts_with("--http: "), "{error}");
    let args = AgentArgs {
        log_level: Some("=".to_owned()),
        ..AgentArgs::default()
    };
    assert!(load(&args, "").unwrap_err().starts_with("--log-level: "));
    let args = AgentArgs {
        config: Some("/nonexistent/larder.toml".into()),
        ..AgentArgs::default()
    };
    assert!(
        Config::load(&args)
            .unwrap_err()
            .to_string()
            .starts_with("/nonexistent/larder.toml: ")
    );
}

#[test]
fn the_example_names_every_key_with_its_default() {
    let text = include_str!("../../../manifests/config.toml");
    load(&AgentArgs::default(), text).unwrap();
    // Each commented key, put to work, is one that the file knows, and changes nothing.
    let active: String = text
        .lines()
        .map(|line| line.strip_prefix("#= ").unwrap_or(line).to_owned() + "\n")
        .collect();
    let config = load(&AgentArgs::default(), &active).unwrap();
    let defaults = Config::load(&AgentArgs::default()).unwrap();
    assert_eq!(config.root, defaults.root);
    assert_eq!(config.socket, defaults.socket);
    assert_eq!(config.http, defaults.http);
    assert_eq!(config.drain_timeout, defaults.drain_timeout);
    assert_eq!(config.scrub_interval, defaults.scrub_interval);
    assert_eq!(config.log.level, defaults.log.level);
    assert_eq!(config.cache.max_layers, defaults.cache.max_layers);
    assert_eq!(config.cache.orphan_grace, defaults.cache.orphan_grace);
    assert_eq!(config.cache.limits, defaults.cache.limits);
    assert_eq!(config.cache.max_per_host, defaults.cache.max_per_host);
    assert_eq!(config.cache.stall_timeout, defaults.cache.stall_timeout);
    assert_eq!(config.cache.attempts, defaults.cache.attempts);
    assert_eq!(config.cache.max_retry_after, defaults.cache.max_retry_after);
    for key in [
        "root",
        "socket",
        "hosts_dirs",
        "http",
        "control",
        "images",
        "runtime_endpoint",
        "authfile",
        "kubeconfig",
        "node_name",
        "manifests",
        "platform",
        "pinned",
        "drain_timeout",
        "scrub_interval",
        "format",
        "level",
        "max_layers",
        "orphan_grace",
        "max_per_host",
        "stall_timeout",
        "attempts",
        "max_retry_after",
        "max_entries",
        "max_layer_bytes",
        "max_ratio",
        "max_path",
        "reserved_bytes",
        "reserved",
        "background_layers",
        "background_layers_per_registry",
        "bytes_per_second",
        "throttle_all",
    ] {
        assert!(
            active
                .lines()
                .any(|line| line.starts_with(&format!("{key} = "))),
            "{key} is not in the example"
        );
    }
}

#[test]
fn a_runtime_that_holds_images_has_an_endpoint() {
    let with = |text: &str| load(&AgentArgs::default(), text).map(|config| config.images);
    assert_eq!(with("").unwrap(), Holder::Larder);
    for (text, endpoint) in [
        ("images = \"runtime\"", RUNTIME_ENDPOINT),
        (
            "images = \"runtime\"\nruntime_endpoint = \"unix:///run/crio/crio.sock\"",
            "/run/crio/crio.sock",
        ),
    ] {
        let endpoint = endpoint.into();
        assert_eq!(with(text).unwrap(), Holder::Runtime { endpoint }, "{text}");
    }
    let error = with("images = \"docker\"").unwrap_err().to_string();
    assert!(error.contains("larder or runtime"), "{error}");
}
