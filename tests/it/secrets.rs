//! What callers, files and registries are told in confidence is in nothing that is printed: no log line of either form,
//! no status, no event, no metric, whether a pull goes well or fails.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::path::Path;
use std::process::{Command, Stdio};

use axum::http::Method;
use base64::Engine;
use larder::cri::proto::image_service_client::ImageServiceClient;
use larder::cri::proto::{AuthConfig, ImageSpec, PullImageRequest, RemoveImageRequest};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tonic::transport::Channel;

use crate::doors::connect;
use crate::support::build::{self, BuiltImage};
use crate::support::hub::{Auth, Fault, Hub, TokenServer, blob_path};
use crate::support::process::{AgentProcess, agent_with_logs};

/// In every secret of this test.
const MARK: &str = "s3same";
const PASSWORD: &str = "s3same-password";

type Client = ImageServiceClient<Channel>;

fn base64(text: &str) -> String {
    base64::engine::general_purpose::STANDARD.encode(text)
}

/// All that was printed, by whom.
#[derive(Default)]
struct Heard(Vec<(String, String)>);

impl Heard {
    fn note(&mut self, who: &str, text: impl Into<String>) {
        self.0.push((who.to_owned(), text.into()));
    }

    fn judge(&self) {
        let account = base64(&format!("ann:{PASSWORD}"));
        let secrets = [MARK, account.trim_end_matches('='), &base64(PASSWORD)[..12]];
        for (who, text) in &self.0 {
            for secret in secrets {
                let found = text.lines().find(|line| line.contains(secret));
                assert!(found.is_none(), "{who}: {found:?}");
            }
        }
    }
}

/// The ways in which CRI carries credentials; the third and fourth buy nothing here, and must not show either.
fn credentials() -> Vec<(&'static str, Option<AuthConfig>)> {
    let one = |change: fn(&mut AuthConfig)| {
        let mut auth = AuthConfig::default();
        change(&mut auth);
        Some(auth)
    };
    vec![
        (
            "password",
            one(|auth| {
                auth.username = "ann".to_owned();
                auth.password = PASSWORD.to_owned();
            }),
        ),
        (
            "auth",
            one(|auth| auth.auth = base64(&format!("ann:{PASSWORD}"))),
        ),
        (
            "identity",
            one(|auth| auth.identity_token = "s3same-identity".to_owned()),
        ),
        (
            "registry token",
            one(|auth| auth.registry_token = "s3same-registry".to_owned()),
        ),
        (
            "malformed",
            one(|auth| auth.auth = "s3same-malformed!".to_owned()),
        ),
        // The agent's own file.
        ("file", None),
    ]
}

async fn pull(client: &mut Client, name: &str, auth: Option<AuthConfig>) -> Result<(), String> {
    let image = Some(ImageSpec {
        image: name.to_owned(),
        ..ImageSpec::default()
    });
    let request = PullImageRequest {
        image,
        auth,
        ..PullImageRequest::default()
    };
    match client.pull_image(request).await {
        Ok(answer) => {
            let image = Some(ImageSpec {
                image: answer.into_inner().image_ref,
                ..ImageSpec::default()
            });
            // So that the next one asks for blobs too.
            let removed = client.remove_image(RemoveImageRequest { image }).await;
            removed.map(drop).map_err(|status| format!("{status:?}"))
        }
        Err(status) => Err(format!("{status:?} {status}")),
    }
}

async fn larder(socket: &Path, args: &[&str]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_larder"));
    command
        .env_remove("REGISTRY_AUTH_FILE")
        .env("DOCKER_CONFIG", "/nonexistent")
        .env("LARDER_PASSWORD", PASSWORD)
        .stdin(Stdio::null())
        .arg("--socket")
        .arg(socket)
        .args(args);
    let output = tokio::task::spawn_blocking(move || command.output().unwrap());
    let output = output.await.unwrap();
    let text = [output.stdout, output.stderr].concat();
    format!("{:?} {}", output.status, String::from_utf8_lossy(&text))
}

/// What goes wrong, at which part of the registry.
fn faults(hub: &Hub, storage: &Hub) -> Vec<(&'static str, Option<(String, Fault)>)> {
    let redirect = |rest: &str| Fault::Redirect(format!("{}{rest}", storage.url()));
    let at = |path: &str, fault| Some((path.to_owned(), fault));
    vec![
        ("nothing", None),
        ("401", at("/v2/app", Fault::Status(401))),
        ("403", at("/v2/app", Fault::Status(403))),
        ("404", at("/v2/app", Fault::Status(404))),
        (
            "429",
            at("/v2/app", Fault::StatusAfter(429, "9999".to_owned())),
        ),
        ("500", at("/v2/app", Fault::Status(500))),
        ("html", at("/v2/app", Fault::Html)),
        ("token 500", at("/token", Fault::Status(500))),
        ("token 403", at("/token", Fault::Status(403))),
        ("token html", at("/token", Fault::Html)),
        ("token cut", at("/token", Fault::Cut(10))),
        (
            "token redirect",
            at("/token", redirect("/token?sig=s3same-signature")),
        ),
        ("cut", at("/v2/app/blobs", Fault::Cut(0))),
        ("bytes", at("/v2/app/blobs", Fault::WrongBytes)),
        (
            "type",
            at("/v2/app/manifests", Fault::ContentType(build::INDEX)),
        ),
        (
            "loop",
            at(
                "/v2/app",
                Fault::Redirect(format!("{}/v2/app/manifests/1?sig=s3same-loop", hub.url())),
            ),
        ),
        (
            "redirect with a password",
            at(
                "/v2/app",
                Fault::Redirect("http://ann:s3same-userinfo@127.0.0.1:1/x?sig=s3same".to_owned()),
            ),
        ),
        (
            "redirect elsewhere",
            at(
                "/v2/app",
                Fault::Redirect("ftp://ann:s3same-userinfo@a/b?sig=s3same".to_owned()),
            ),
        ),
        (
            "redirect to nothing",
            at("/v2/app", redirect("/v2/nothing?sig=s3same-signature")),
        ),
    ]
}

fn image() -> BuiltImage {
    BuiltImage::new(&[build::gzip(&build::tar(&[("f", &build::noise(1, 30_000))]))])
}

async fn everything(format: &str, auth: Auth) {
    let (hub, storage) = (Hub::start().await, Hub::start().await);
    let image = image();
    hub.push("app", "1", &image);
    let layer = &image.layers[0];
    storage.put_blob("kept", &layer.digest, &layer.blob);
    hub.set_auth(auth);
    let name = hub.reference("app:1");

    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("hosts.d").join(&hub.host);
    std::fs::create_dir_all(&folder).unwrap();
    let text = format!(
        "server = \"{}\"\ndial_timeout = \"300ms\"\nheader = {{ x-key = \"s3same-header\" }}\n",
        hub.url()
    );
    std::fs::write(folder.join("hosts.toml"), text).unwrap();
    let config = "[registry]\nstall_timeout = \"1s\"\nattempts = 2\n";
    std::fs::write(dir.path().join("larder.toml"), config).unwrap();
    let account = base64(&format!("ann:{PASSWORD}"));
    let auths = serde_json::json!({ "auths": { &hub.host: { "auth": account } } });
    let authfile = dir.path().join("auth.json");
    std::fs::write(&authfile, auths.to_string()).unwrap();
    let mut command = agent_with_logs(dir.path(), &dir.path().join("root"), format);
    command.args(["--log-level", "debug"]);
    command.arg("--config").arg(dir.path().join("larder.toml"));
    command.arg("--authfile").arg(&authfile);
    command.args(["--platform", "linux/amd64"]);
    let agent =
        AgentProcess::start_with(dir.path(), command).unwrap_or_else(|(_, log)| panic!("{log}"));
    let mut client = ImageServiceClient::new(connect(&agent.socket).await);

    let mut heard = Heard::default();
    let mut good = 0;
    for (what, fault) in faults(&hub, &storage) {
        hub.heal();
        // Blobs come from storage, by a URL that is a secret itself.
        let signed = format!(
            "{}?X-Amz-Signature=s3same-signature",
            storage.url() + &blob_path("kept", &layer.digest)
        );
        hub.fault(
            Method::GET,
            &blob_path("app", &layer.digest),
            Fault::Redirect(signed),
        );
        if let Some((path, fault)) = fault {
            hub.fault_all(&path, fault);
        }
        hub.revoke_tokens();
        for (kind, auth) in credentials() {
            match pull(&mut client, &name, auth).await {
                Ok(()) => good += 1,
                Err(status) => heard.note(&format!("CRI, {what}, {kind}"), status),
            }
        }
        for args in [
            &["pull", "--creds", "ann", &name][..],
            &["pull", "--authfile", authfile.to_str().unwrap(), &name],
        ] {
            heard.note(
                &format!("larder, {what}"),
                larder(&agent.socket, args).await,
            );
        }
        heard.note(
            "list",
            larder(&agent.socket, &["images", "-o", "json"]).await,
        );
        larder(&agent.socket, &["rmi", "--force", &name]).await;
    }
    // Password, auth and the agent's file are good where nothing goes wrong, at least.
    assert!(good >= 3, "{good} pulls were good");
    for text in [
        format!("ann:{PASSWORD}@{name}"),
        format!("https://ann:{PASSWORD}@{name}"),
    ] {
        let status = pull(&mut client, &text, None).await.unwrap_err();
        heard.note("userinfo", status);
        heard.note("userinfo", larder(&agent.socket, &["pull", &text]).await);
    }
    let log = agent.log();
    assert!(log.contains("DEBUG"), "{log}");
    if let Some((_, rest)) = log.split_once("\"http\":\"") {
        let address = rest.split('"').next().unwrap();
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let request = "GET /metrics HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut metrics = String::new();
        stream.read_to_string(&mut metrics).await.unwrap();
        assert!(
            metrics.contains("larder_registry_requests_total"),
            "{metrics}"
        );
        heard.note("metrics", metrics);
    }
    heard.note("log", log);
    heard.judge();
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_are_not_told_to_machines() {
    let server = TokenServer {
        account: Some(("ann".to_owned(), PASSWORD.to_owned())),
        identity: Some("s3same-identity".to_owned()),
        post: true,
        prefix: "s3same-sold",
        ..TokenServer::default()
    };
    everything("json", Auth::Bearer(server)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_are_not_told_to_people() {
    everything("human", Auth::Basic("ann".to_owned(), PASSWORD.to_owned())).await;
}
