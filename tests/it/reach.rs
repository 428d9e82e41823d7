//! How the terminal reaches a registry: through the proxies and with the authorities that the environment names.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::{Command, Stdio};

use base64::Engine;
use serde_json::json;

use crate::support::build::{self, BuiltImage};
use crate::support::hub::{Auth, Authority, Hub, Tls, TokenServer};
use crate::support::proxy::Proxy;

/// How `larder --root DIR pull ARGS` ended with these variables.
async fn pull(dir: &Path, args: &[&str], variables: &[(&str, &str)]) -> (Option<i32>, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_larder"));
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy().into_owned();
        let lower = name.to_ascii_lowercase();
        if lower.ends_with("_proxy") || lower.starts_with("larder_") || lower.starts_with("ssl_") {
            command.env_remove(name);
        }
    }
    command
        .env_remove("REGISTRY_AUTH_FILE")
        .env("DOCKER_CONFIG", "/nonexistent")
        .env("LARDER_HOSTS_DIR", dir.join("hosts.d"))
        .envs(variables.iter().copied())
        .stdin(Stdio::null())
        .arg("--root")
        .arg(dir.join("root"))
        .args(["pull", "--platform", "linux/amd64"])
        .args(args);
    let output = tokio::task::spawn_blocking(move || command.output().unwrap());
    let output = output.await.unwrap();
    let text = [output.stdout, output.stderr].concat();
    (
        output.status.code(),
        String::from_utf8_lossy(&text).into_owned(),
    )
}

fn image() -> BuiltImage {
    BuiltImage::new(&[build::gzip(&build::tar(&[("f", &build::noise(1, 50_000))]))])
}

fn hosts(dir: &Path, domain: &str, text: &str) {
    let folder = dir.join("hosts.d").join(domain);
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("hosts.toml"), text).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn plain_http_goes_through_the_proxy_with_its_credentials() {
    let dir = tempfile::tempdir().unwrap();
    let hub = Hub::start().await;
    hub.push("app", "1", &image());
    let shown = base64::engine::general_purpose::STANDARD.encode("ann:hunter2");
    let proxy = Proxy::start(&hub.host, &format!("Basic {shown}")).await;
    let args = ["--plain-http", "registry.test/app:1"];
    let right = format!("http://ann:hunter2@{}", proxy.host);
    for name in ["HTTP_PROXY", "http_proxy", "ALL_PROXY"] {
        let (code, text) = pull(dir.path(), &args, &[(name, &right)]).await;
        assert_eq!(code, Some(0), "{name}: {text}");
        assert!(!text.contains("hunter2"), "{text}");
    }
    let asked = proxy.asked();
    assert_eq!(asked[0], "HEAD http://registry.test/v2/app/manifests/1");
    assert!(
        asked
            .iter()
            .all(|line| line.contains("http://registry.test/v2/app/"))
    );

    let wrong = format!("http://ann:hunter3@{}", proxy.host);
    let (code, text) = pull(dir.path(), &args, &[("HTTP_PROXY", &wrong)]).await;
    assert_eq!(code, Some(1), "{text}");
    assert!(
        text.contains("registry.test") && text.contains("407"),
        "{text}"
    );
    assert!(text.contains("proxy") && !text.contains("hunter"), "{text}");
    // The registry of this node is never asked through a proxy.
    let own = hub.reference("app:1");
    let (code, text) = pull(dir.path(), &[&own], &[("HTTP_PROXY", &wrong)]).await;
    assert_eq!(code, Some(0), "{text}");
    let (code, text) = pull(
        dir.path(),
        &args,
        &[("HTTP_PROXY", "socks5://a:hunter2@b:1")],
    )
    .await;
    assert_eq!(code, Some(1), "{text}");
    assert!(
        text.contains("HTTP_PROXY") && !text.contains("hunter2"),
        "{text}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_goes_through_the_proxy_and_is_trusted_by_the_system_s_authorities() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::new("of the test");
    let hub = Hub::start_tls(&Tls::named(&authority, &["registry.test"])).await;
    hub.push("app", "1", &image());
    let proxy = Proxy::start(&hub.host, "").await;
    let (file, folder) = (dir.path().join("ca.pem"), dir.path().join("certs"));
    std::fs::write(&file, &authority.pem).unwrap();
    std::fs::create_dir(&folder).unwrap();
    // A name as c_rehash gives.
    std::fs::write(folder.join("0a1b2c3d.0"), &authority.pem).unwrap();
    let (file, folder) = (file.to_str().unwrap(), folder.to_str().unwrap());
    let through = format!("http://{}", proxy.host);
    let args = ["registry.test/app:1"];
    for (name, trust, place) in [
        ("HTTPS_PROXY", "SSL_CERT_FILE", file),
        ("https_proxy", "SSL_CERT_DIR", folder),
    ] {
        let variables = [(name, through.as_str()), (trust, place)];
        let (code, text) = pull(dir.path(), &args, &variables).await;
        assert_eq!(code, Some(0), "{name} {trust}: {text}");
    }
    let asked = proxy.asked();
    assert!(
        asked.iter().all(|line| line == "CONNECT registry.test:443"),
        "{asked:?}"
    );
    // Without them it is a stranger.
    let other = Authority::new("of somebody");
    let stranger = dir.path().join("other.pem");
    std::fs::write(&stranger, &other.pem).unwrap();
    let variables = [
        ("HTTPS_PROXY", through.as_str()),
        ("SSL_CERT_FILE", stranger.to_str().unwrap()),
    ];
    let (code, text) = pull(dir.path(), &args, &variables).await;
    assert_eq!(code, Some(1), "{text}");
    for word in [
        "registry.test",
        "\"ca\" in hosts.toml",
        "system's certificates",
    ] {
        assert!(text.contains(word), "{word}: {text}");
    }
    // An authority of hosts.toml counts besides.
    let text = "server = \"https://registry.test\"\nca = \"../../ca.pem\"\n";
    hosts(dir.path(), "registry.test", text);
    let (code, text) = pull(dir.path(), &args, &variables).await;
    assert_eq!(code, Some(0), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn exceptions_from_the_proxy_go_directly() {
    let dir = tempfile::tempdir().unwrap();
    let hub = Hub::start().await;
    hub.push("app", "1", &image());
    let proxy = Proxy::start(&hub.host, "").await;
    let through = format!("http://{}", proxy.host);
    // Documentation addresses (RFC 5737), to which there is no way.
    let text = "server = \"http://192.0.2.7:5000\"\ndial_timeout = \"200ms\"\n";
    hosts(dir.path(), "192.0.2.7:5000", text);
    let args = ["192.0.2.7:5000/app:1"];
    for (name, except, direct) in [
        ("NO_PROXY", "10.0.0.0/8,.test", false),
        ("NO_PROXY", "192.0.2.0/24", true),
        ("no_proxy", "a.test, 192.0.2.7:5000", true),
    ] {
        let before = proxy.asked().len();
        let variables = [("http_proxy", through.as_str()), (name, except)];
        let (code, text) = pull(dir.path(), &args, &variables).await;
        assert_eq!(code, Some(i32::from(direct)), "{except}: {text}");
        assert_eq!(proxy.asked().len() == before, direct, "{except}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_come_from_helpers_and_files() {
    let dir = tempfile::tempdir().unwrap();
    let hub = Hub::start().await;
    hub.push("team/app", "1", &image());
    hub.require("team/app", &["helper:s3same", "ann:s3same"]);
    let (name, host) = (hub.reference("team/app:1"), &hub.host);
    let support = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/support");
    let path = format!("{support}:{}", std::env::var("PATH").unwrap());
    let auth = base64::engine::general_purpose::STANDARD.encode("ann:s3same");
    let file = dir.path().join("config.json");
    let place = file.to_str().unwrap();
    let key = |rest: &str| format!("{host}{rest}");
    for (config, code, word) in [
        (json!({"credHelpers": {host: "fake"}}), 0, ""),
        (
            json!({"credHelpers": {format!("https://{host}"): "fake"}}),
            0,
            "",
        ),
        (json!({"credsStore": "fake", "auths": {host: {}}}), 0, ""),
        (
            json!({"credsStore": "absent"}),
            1,
            "docker-credential-absent",
        ),
        (
            json!({"credHelpers": {host: "../fake"}}),
            1,
            "other characters",
        ),
        (json!({"auths": {host: {"auth": auth}}}), 0, ""),
        (
            json!({"auths": {format!("https://{host}/v2/"): {"auth": auth}}}),
            0,
            "",
        ),
        (
            json!({"auths": {host: {"username": "ann", "password": "s3same"}}}),
            0,
            "",
        ),
        (
            json!({"auths": {
                key(""): {"username": "eve", "password": "s3same"},
                key("/team"): {"username": "eve", "password": "s3same"},
                key("/team/app"): {"auth": auth},
            }}),
            0,
            "",
        ),
        (
            json!({"auths": {key("/team/app"): {"username": "eve", "password": "s3same"}, key(""): {"auth": auth}}}),
            1,
            "credentials are not accepted",
        ),
        (
            json!({"auths": {key("/other"): {"auth": auth}}}),
            1,
            "needs credentials",
        ),
        (
            json!({"auths": {host: {"auth": "s3same"}}}),
            1,
            "malformed \"auth\"",
        ),
    ] {
        std::fs::write(&file, config.to_string()).unwrap();
        let args = ["--authfile", place, name.as_str()];
        let (ended, text) = pull(dir.path(), &args, &[("PATH", &path)]).await;
        assert_eq!(ended, Some(code), "{config}: {text}");
        assert!(
            text.contains(word) && !text.contains("s3same"),
            "{config}: {text}"
        );
    }
    // A file that nobody named is used if it can be, and no reason to fail if not.
    std::fs::write(&file, json!({"auths": {host: {"auth": auth}}}).to_string()).unwrap();
    let folder = dir.path().to_str().unwrap();
    let (ended, text) = pull(dir.path(), &[&name], &[("DOCKER_CONFIG", folder)]).await;
    assert_eq!(ended, Some(0), "{text}");
    let (ended, text) = pull(dir.path(), &[&name], &[("REGISTRY_AUTH_FILE", place)]).await;
    assert_eq!(ended, Some(0), "{text}");

    hub.push("token", "1", &image());
    hub.set_auth(Auth::Bearer(TokenServer {
        account: Some(("nobody".to_owned(), "knows".to_owned())),
        identity: Some("s3same-identity".to_owned()),
        post: true,
        ..TokenServer::default()
    }));
    let config = json!({"auths": {host: {"auth": auth, "identitytoken": "s3same-identity"}}});
    std::fs::write(&file, config.to_string()).unwrap();
    let args = ["--authfile", place, &hub.reference("token:1")];
    let (ended, text) = pull(dir.path(), &args, &[]).await;
    assert_eq!(ended, Some(0), "{text}");
}
