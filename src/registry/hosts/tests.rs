//! What hosts.toml files mean.

use super::file::duration;
use super::*;

fn parsed(text: &str, domain: &str) -> Result<Vec<Host>, Error> {
    let dir = tempfile::tempdir().unwrap();
    parse(
        text,
        Path::new("/etc/x/hosts.toml"),
        dir.path(),
        domain,
        false,
    )
}

fn shown(hosts: &[Host]) -> Vec<String> {
    hosts
        .iter()
        .map(|host| {
            let mut line = host.base.to_string();
            for (on, word) in [(host.pull, " pull"), (host.resolve, " resolve")] {
                if on {
                    line.push_str(word);
                }
            }
            if let Some(other) = &host.alternate {
                line.push_str(&format!(" or {}", other.scheme()));
            }
            if host.tls.skip_verify {
                line.push_str(" unverified");
            }
            if let Some(namespace) = &host.namespace {
                line.push_str(&format!(" ns={namespace}"));
            }
            line
        })
        .collect()
}

#[test]
fn hosts_keep_the_order_of_the_file() {
    let text = r#"
server = "https://registry-1.docker.io"
[host."https://z.example"]
  capabilities = ["pull", "resolve"]
[host."http://a.example:5000/prefix"]
  capabilities = ["pull"]
  [host."http://a.example:5000/prefix".header]
    x-one = "1"
    x-two = ["2", "3"]
[host."https://m.example/cache"]
  override_path = true
  skip_verify = true
  dial_timeout = "1m30s"
"#;
    let hosts = parsed(text, "docker.io").unwrap();
    assert_eq!(
        shown(&hosts),
        [
            "https://z.example/v2 pull resolve ns=docker.io",
            "http://a.example:5000/prefix/v2 pull ns=docker.io",
            "https://m.example/cache pull resolve unverified ns=docker.io",
            "https://registry-1.docker.io/v2 pull resolve",
        ]
    );
    assert_eq!(hosts[1].headers.get_all("x-two").iter().count(), 2);
    assert!(hosts[2].tls.skip_verify && !hosts[1].tls.skip_verify);
    assert_eq!(hosts[2].dial_timeout, Duration::from_secs(90));
    assert_eq!(hosts[0].dial_timeout, DIAL_TIMEOUT);
}

#[test]
fn the_own_host_is_appended_where_no_server_is_named() {
    let text = "[host.\"mirror.example/v2\"]\ncapabilities = [\"pull\"]\n";
    assert_eq!(
        shown(&parsed(text, "reg.example:5000").unwrap()),
        [
            "https://mirror.example/v2 pull ns=reg.example:5000",
            "https://reg.example:5000/v2 pull resolve",
        ]
    );
    assert_eq!(
        shown(&parsed("", "docker.io").unwrap()),
        ["https://registry-1.docker.io/v2 pull resolve"]
    );
    let root = "server = \"http://reg.example\"\ncapabilities = [\"PULL\", \"push\"]";
    assert_eq!(
        shown(&parsed(root, "reg.example").unwrap()),
        ["http://reg.example/v2 pull"]
    );
    // Capabilities are those of a server that is named.
    assert_eq!(
        shown(&parsed("capabilities = [\"push\"]", "reg.example").unwrap()),
        ["https://reg.example/v2 pull resolve"]
    );
}

#[test]
fn the_own_host_gets_no_namespace_however_it_is_written() {
    let text = "server = \"https://reg.example:443\"";
    assert_eq!(
        shown(&parsed(text, "reg.example").unwrap()),
        ["https://reg.example/v2 pull resolve"]
    );
    assert_eq!(
        shown(&parsed("server = \"reg.example\"", "reg.example:443").unwrap()),
        ["https://reg.example/v2 pull resolve"]
    );
}

#[test]
fn mistakes_name_file_and_line() {
    for (text, line, word) in [
        ("server = \n", 1, ""),
        ("\n[host.\"https://a\"]\ncapabilities = [\"pul\"]", 3, "pul"),
        (
            "[host.\"https://a\"]\nskip_verify = \"yes\"",
            2,
            "skip_verify",
        ),
        ("[host.\"ftp://a\"]\n", 1, "ftp://a"),
        ("[host.\"https://u:hunter2@a\"]\n", 1, "credentials"),
        (
            "[host.\"https://a\"]\ndial_timeout = \"soon\"",
            2,
            "dial_timeout",
        ),
        ("[host.\"https://a\"]\nca = 7", 2, "ca"),
        ("[host.\"https://a\"]\nclient = [[1]]", 2, "client"),
        ("host = 3", 1, "host"),
        (
            "[host.\"https://a\".header]\n\"bad name\" = \"x\"",
            2,
            "header",
        ),
    ] {
        let error = parsed(text, "docker.io").unwrap_err();
        let message = error.to_string();
        assert_eq!(error.class(), ErrorClass::Config);
        assert!(
            message.starts_with(&format!("/etc/x/hosts.toml line {line}: ")),
            "{text:?}: {message}"
        );
        assert!(message.contains(word), "{text:?}: {message}");
    }
    let missing = parsed("[host.\"https://a\"]\nca = \"gone.pem\"", "docker.io").unwrap_err();
    assert!(missing.to_string().contains("gone.pem"), "{missing}");
}

#[test]
fn folders_are_tried_in_order() {
    let root = tempfile::tempdir().unwrap();
    let make = |name: &str, mirror: &str| {
        let dir = root.path().join(name);
        std::fs::create_dir(&dir).unwrap();
        std::fs::write(
            dir.join("hosts.toml"),
            format!("[host.\"https://{mirror}\"]"),
        )
        .unwrap();
    };
    let first = |domain: &str| {
        let dirs = [root.path().join("not-there"), root.path().to_owned()];
        for_domain(&dirs, domain, false).unwrap()[0].name.clone()
    };
    assert_eq!(first("reg.example:5000"), "reg.example:5000");
    make("_default", "default.example");
    assert_eq!(first("reg.example:5000"), "default.example");
    make("reg.example:5000", "colon.example");
    assert_eq!(first("reg.example:5000"), "colon.example");
    make("reg.example_5000_", "underscore.example");
    assert_eq!(first("reg.example:5000"), "underscore.example");
    make("reg.example", "plain.example");
    assert_eq!(first("reg.example"), "plain.example");
}

#[test]
fn this_node_may_speak_plain_http() {
    let bases = |domain: &str, plain| shown(&own(domain, plain).unwrap());
    assert_eq!(
        bases("localhost", false),
        [
            "https://localhost/v2 pull resolve unverified",
            "http://localhost/v2 pull resolve unverified"
        ]
    );
    assert_eq!(
        bases("127.0.0.1:5000", false),
        ["http://127.0.0.1:5000/v2 pull resolve or https unverified"]
    );
    assert_eq!(
        bases("localhost:80", false),
        ["http://localhost/v2 pull resolve unverified"]
    );
    assert_eq!(
        bases("127.0.0.1:5000", true),
        ["http://127.0.0.1:5000/v2 pull resolve"]
    );
    assert_eq!(
        bases("[::1]:5000", false),
        ["http://[::1]:5000/v2 pull resolve or https unverified"]
    );
    assert_eq!(
        bases("10.0.0.1:5000", false),
        ["https://10.0.0.1:5000/v2 pull resolve"]
    );
    assert_eq!(
        bases("10.0.0.1:5000", true),
        ["http://10.0.0.1:5000/v2 pull resolve"]
    );
    assert_eq!(
        bases("docker.io", false),
        ["https://registry-1.docker.io/v2 pull resolve"]
    );
}

#[test]
fn plain_http_with_settings_for_tls_is_tried_with_tls_first() {
    let one = |text: &str, domain: &str| shown(&parsed(text, domain).unwrap())[0].clone();
    assert_eq!(
        one(
            "server = \"http://r.lan:5000\"\nskip_verify = true",
            "r.lan:5000"
        ),
        "https://r.lan:5000/v2 pull resolve or http unverified"
    );
    assert_eq!(
        one("server = \"http://r.lan:5000\"\nskip_verify = false", "a.b"),
        "https://r.lan:5000/v2 pull resolve or http ns=a.b"
    );
    // The port of plain http leaves nothing open.
    assert_eq!(
        one("server = \"http://r.lan\"\nskip_verify = true", "r.lan"),
        "http://r.lan/v2 pull resolve unverified"
    );
    assert_eq!(
        one("server = \"http://r.lan:5000\"", "r.lan:5000"),
        "http://r.lan:5000/v2 pull resolve"
    );
    assert_eq!(
        one("skip_verify = false", "localhost:5000"),
        "https://localhost:5000/v2 pull resolve or http"
    );
}

#[test]
fn client_certificates_in_all_their_forms() {
    let dir = tempfile::tempdir().unwrap();
    for (name, parts) in [
        ("both.pem", &["CERTIFICATE", "PRIVATE KEY"][..]),
        ("more.pem", &["RSA PRIVATE KEY", "CERTIFICATE"]),
        ("only.pem", &["CERTIFICATE"]),
        ("key.pem", &["EC PRIVATE KEY"]),
    ] {
        let text: String = parts
            .iter()
            .map(|part| format!("-----BEGIN {part}-----\n{name}\n-----END {part}-----\n"))
            .collect();
        std::fs::write(dir.path().join(name), text).unwrap();
    }
    let absolute = dir.path().join("both.pem").display().to_string();
    let read = |client: &str| {
        let text = format!("[host.\"https://a\"]\nclient = {client}");
        let file = Path::new("/etc/x/hosts.toml");
        parse(&text, file, dir.path(), "a", false)
            .map(|hosts| hosts[0].tls.identities.len())
            .map_err(|error| error.to_string())
    };
    for (client, count) in [
        ("\"both.pem\"".to_owned(), 1),
        (format!("{absolute:?}"), 1),
        ("[\"both.pem\", \"more.pem\"]".to_owned(), 2),
        ("[[\"only.pem\", \"key.pem\"]]".to_owned(), 1),
        (
            "[[\"only.pem\", \"key.pem\"], \"both.pem\", [\"more.pem\", \"\"]]".to_owned(),
            3,
        ),
        ("[]".to_owned(), 0),
    ] {
        assert_eq!(read(&client), Ok(count), "{client}");
    }
    for (client, word) in [
        ("\"only.pem\"", "only.pem: has no private key"),
        ("\"key.pem\"", "key.pem: has no certificate"),
        ("[[\"a\", \"b\", \"c\"]]", "\"client\" has to be"),
        ("7", "\"client\" has to be"),
        ("\"absent.pem\"", "absent.pem: cannot be read"),
    ] {
        let error = read(client).unwrap_err();
        assert!(error.contains(word), "{client}: {error}");
    }
}

#[test]
fn docker_certificates_are_found() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("127.0.0.1:5000");
    std::fs::create_dir(&dir).unwrap();
    for (name, what) in [
        ("ca.crt", "CERTIFICATE"),
        ("a.cert", "CERTIFICATE"),
        ("a.key", "PRIVATE KEY"),
        ("b.cert", "CERTIFICATE"),
        ("b.key", "EC PRIVATE KEY"),
    ] {
        std::fs::write(dir.join(name), format!("-----BEGIN {what}-----\n{name}\n")).unwrap();
    }
    let hosts = for_domain(&[root.path().to_owned()], "127.0.0.1:5000", false).unwrap();
    assert_eq!(shown(&hosts), ["https://127.0.0.1:5000/v2 pull resolve"]);
    assert_eq!(hosts[0].tls.authorities.len(), 1);
    let shown: Vec<String> = hosts[0]
        .tls
        .identities
        .iter()
        .map(|pem| String::from_utf8(pem.clone()).unwrap())
        .collect();
    assert_eq!(shown.len(), 2);
    assert!(shown[0].contains("a.cert") && shown[0].contains("a.key"));
    assert!(shown[1].contains("b.cert") && shown[1].contains("b.key"));
    // An empty hosts.toml counts as none.
    std::fs::write(dir.join("hosts.toml"), "").unwrap();
    let again = for_domain(&[root.path().to_owned()], "127.0.0.1:5000", false).unwrap();
    assert_eq!(again[0].tls.identities.len(), 2);
    assert!(!format!("{:?}", hosts[0].tls).contains("BEGIN"));
}

#[test]
fn durations_are_gos() {
    for (text, millis) in [
        ("3s", 3000),
        ("300ms", 300),
        ("1m30s", 90_000),
        ("1.5s", 1500),
        ("2h", 7_200_000),
        ("0", 0),
    ] {
        assert_eq!(
            duration(text),
            Some(Duration::from_millis(millis)),
            "{text}"
        );
    }
    for text in [
        "",
        "s",
        "3",
        "3 s",
        "-1s",
        "1x",
        "1..2s",
        "99999999999999999999h",
    ] {
        assert_eq!(duration(text), None, "{text}");
    }
}

proptest::proptest! {
    #[test]
    fn any_file_is_read_or_refused(text in "[a-z\\[\\]\"=:/\\. \n]{0,120}") {
        let _ = parsed(&text, "docker.io");
    }
}
