//! What a caller shows to a registry, and docker's `config.json` as a source of it.

use std::collections::HashMap;
use std::path::Path;
use std::process::Stdio;
use std::sync::OnceLock;
use std::time::Duration;

use base64::Engine;
use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::registry::{Error, ErrorClass};

/// A secret string: never printed, compared by its fingerprint only.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// The secret, for the one who sends it on.
    pub(crate) fn expose(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("[secret]")
    }
}

impl From<String> for Secret {
    fn from(secret: String) -> Self {
        Secret(secret)
    }
}

/// What a caller has to show to a registry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Credentials {
    /// Nothing.
    #[default]
    Anonymous,
    /// User and password, for basic auth or to buy a bearer token.
    Basic {
        /// Account name.
        username: String,
        /// Password or access key.
        password: Secret,
    },
    /// An OAuth2 refresh token ("identity token").
    Identity(Secret),
    /// A bearer token for the registry itself.
    Bearer(Secret),
}

impl Credentials {
    /// Tells credentials apart without showing them: a hash keyed anew in each process, so it is of no use elsewhere.
    pub fn fingerprint(&self) -> [u8; 32] {
        let (kind, parts): (u8, [&str; 2]) = match self {
            Credentials::Anonymous => (0, ["", ""]),
            Credentials::Basic { username, password } => (1, [username, &password.0]),
            Credentials::Identity(secret) => (2, [&secret.0, ""]),
            Credentials::Bearer(secret) => (3, [&secret.0, ""]),
        };
        let mut hash = blake3::Hasher::new();
        hash.update(process_key());
        hash.update(&[kind]);
        for part in parts {
            // The length keeps ("ab", "c") and ("a", "bc") apart.
            hash.update(&(part.len() as u64).to_le_bytes());
            hash.update(part.as_bytes());
        }
        *hash.finalize().as_bytes()
    }

    /// `username:password` in base64, as basic auth writes it.
    pub(super) fn basic(username: &str, password: &str) -> String {
        base64::engine::general_purpose::STANDARD.encode(format!("{username}:{password}"))
    }
}

/// Drawn once per process from the standard library's hash keys, which come from the kernel.
fn process_key() -> &'static [u8; 32] {
    static KEY: OnceLock<[u8; 32]> = OnceLock::new();
    KEY.get_or_init(|| {
        use std::hash::{BuildHasher, Hasher};
        let mut hash = blake3::Hasher::new();
        let state = std::hash::RandomState::new();
        for round in 0..4_u8 {
            let mut hasher = state.build_hasher();
            hasher.write_u8(round);
            hash.update(&hasher.finish().to_le_bytes());
        }
        *hash.finalize().as_bytes()
    })
}

/// Docker Hub's name in `config.json`, kept from its first protocol.
const DOCKER_HUB: &str = "https://index.docker.io/v1/";
const MAX_CONFIG_BYTES: u64 = 1 << 20;
const MAX_HELPER_BYTES: u64 = 64 << 10;
const HELPER_TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Deserialize, Default)]
#[serde(default)]
pub(super) struct DockerConfig {
    pub(super) auths: HashMap<String, AuthEntry>,
    #[serde(rename = "credHelpers")]
    cred_helpers: HashMap<String, String>,
    #[serde(rename = "credsStore")]
    creds_store: String,
}

#[derive(Deserialize, Default)]
#[serde(default)]
pub(super) struct AuthEntry {
    auth: String,
    username: String,
    password: String,
    identitytoken: String,
    registrytoken: String,
}

#[derive(Deserialize)]
struct HelperAnswer {
    #[serde(rename = "Username", default)]
    username: String,
    #[serde(rename = "Secret", default)]
    secret: String,
}

/// Credentials from a docker `config.json` (auths, credHelpers, credsStore) for a registry domain. A file that is not
/// there holds none.
pub async fn docker_credentials(file: &Path, domain: &str) -> Result<Option<Credentials>, Error> {
    let bytes = match read(file).await {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(config(file, &format!("cannot be read: {error}"))),
    };
    // The error of the JSON parser may quote a value, so only its place is told.
    let parsed: DockerConfig = serde_json::from_slice(&bytes).map_err(|error| {
        config(
            file,
            &format!(
                "is not a docker config.json (line {}, column {})",
                error.line(),
                error.column()
            ),
        )
    })?;
    let hub = matches!(
        domain,
        "docker.io" | "index.docker.io" | "registry-1.docker.io"
    );
    let key = if hub { DOCKER_HUB } else { domain };
    let helper = parsed
        .cred_helpers
        .get(key)
        .or_else(|| parsed.cred_helpers.get(domain))
        .or(Some(&parsed.creds_store))
        .filter(|helper| !helper.is_empty());
    if let Some(helper) = helper
        && let Some(found) = ask_helper(file, &helper_program(file, helper)?, key).await?
    {
        return Ok(Some(found));
    }
    let entry = parsed.auths.get(key).or_else(|| {
        parsed
            .auths
            .iter()
            .filter(|(name, _)| {
                let host = host_of_key(name);
                host == domain || (hub && matches!(host, "docker.io" | "index.docker.io"))
            })
            .min_by_key(|(name, _)| name.as_str())
            .map(|(_, entry)| entry)
    });
    entry.map_or(Ok(None), |entry| from_entry(entry, file, domain))
}

async fn read(file: &Path) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let open = tokio::fs::File::open(file).await?;
    open.take(MAX_CONFIG_BYTES + 1)
        .read_to_end(&mut bytes)
        .await?;
    if bytes.len() as u64 > MAX_CONFIG_BYTES {
        return Err(std::io::Error::other("it is larger than 1 MiB"));
    }
    Ok(bytes)
}

fn config(file: &Path, what: &str) -> Error {
    Error::new(
        ErrorClass::Config,
        format!("credentials file {} {what}", file.display()),
    )
}

/// Keys may be URLs: `https://reg.example/v1/` means `reg.example`.
fn host_of_key(key: &str) -> &str {
    let key = key
        .strip_prefix("https://")
        .or_else(|| key.strip_prefix("http://"))
        .unwrap_or(key);
    key.split_once('/').map_or(key, |(host, _)| host)
}

pub(super) fn from_entry(
    entry: &AuthEntry,
    file: &Path,
    domain: &str,
) -> Result<Option<Credentials>, Error> {
    if !entry.registrytoken.is_empty() {
        return Ok(Some(Credentials::Bearer(
            entry.registrytoken.clone().into(),
        )));
    }
    if !entry.identitytoken.is_empty() {
        return Ok(Some(Credentials::Identity(
            entry.identitytoken.clone().into(),
        )));
    }
    if !entry.auth.is_empty() {
        let malformed = || {
            config(
                file,
                &format!(
                    "has a malformed \"auth\" for {domain}: it has to be base64 of user:password"
                ),
            )
        };
        let decoded = base64::engine::general_purpose::STANDARD
            .decode(entry.auth.trim())
            .map_err(|_| malformed())?;
        let decoded = String::from_utf8(decoded).map_err(|_| malformed())?;
        let (username, password) = decoded.split_once(':').ok_or_else(malformed)?;
        return Ok(Some(Credentials::Basic {
            username: username.to_owned(),
            password: password.trim_matches('\0').to_owned().into(),
        }));
    }
    if entry.username.is_empty() && entry.password.is_empty() {
        return Ok(None);
    }
    Ok(Some(Credentials::Basic {
        username: entry.username.clone(),
        password: entry.password.clone().into(),
    }))
}

/// The program of a helper's name, looked up in `PATH`.
fn helper_program(file: &Path, helper: &str) -> Result<String, Error> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    if helper.len() > 64 || !helper.bytes().all(plain) {
        return Err(config(
            file,
            "names a credential helper with other characters than letters, digits, '-', '_' and '.'",
        ));
    }
    Ok(format!("docker-credential-{helper}"))
}

/// Runs `<program> get` with the server's name on its standard input; no shell.
async fn ask_helper(
    file: &Path,
    program: &str,
    server: &str,
) -> Result<Option<Credentials>, Error> {
    let failed = |why: &str| {
        config(
            file,
            &format!("names the credential helper {program} for {server}, which {why}"),
        )
    };
    let mut child = tokio::process::Command::new(program)
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| failed(&format!("cannot be started: {error}; install it in PATH")))?;
    let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
    let talk = async {
        if let Some(mut stdin) = stdin {
            // A helper that does not read its input may still answer.
            let _ = stdin.write_all(server.as_bytes()).await;
        }
        let mut out = Vec::new();
        if let Some(stdout) = stdout {
            stdout
                .take(MAX_HELPER_BYTES + 1)
                .read_to_end(&mut out)
                .await?;
        }
        if out.len() as u64 > MAX_HELPER_BYTES {
            return Ok((None, out));
        }
        child.wait().await.map(|status| (Some(status), out))
    };
    let (status, out) = match tokio::time::timeout(HELPER_TIMEOUT, talk).await {
        Err(_) => return Err(failed("did not answer within 10 s")),
        Ok(Err(error)) => return Err(failed(&format!("broke off: {error}"))),
        Ok(Ok((None, _))) => return Err(failed("answered more than 64 KiB")),
        Ok(Ok((Some(status), out))) => (status, out),
    };
    if !status.success() {
        // The one answer of the protocol that means "none", told on standard output with a failing exit.
        let none = String::from_utf8_lossy(&out).contains("credentials not found");
        return if none {
            Ok(None)
        } else {
            Err(failed(&format!("ended with {status}")))
        };
    }
    let answer: HelperAnswer = serde_json::from_slice(&out)
        .map_err(|_| failed("answered something that is not its protocol"))?;
    Ok(match (answer.username.as_str(), answer.secret) {
        ("", secret) if secret.is_empty() => None,
        ("<token>", secret) => Some(Credentials::Identity(secret.into())),
        (username, secret) => Some(Credentials::Basic {
            username: username.to_owned(),
            password: secret.into(),
        }),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn basic(username: &str, password: &str) -> Credentials {
        Credentials::Basic {
            username: username.to_owned(),
            password: password.to_owned().into(),
        }
    }

    #[test]
    fn fingerprints_tell_apart_and_show_nothing() {
        assert_eq!(basic("a", "b").fingerprint(), basic("a", "b").fingerprint());
        assert_ne!(
            basic("ab", "c").fingerprint(),
            basic("a", "bc").fingerprint()
        );
        assert_ne!(
            Credentials::Identity("x".to_owned().into()).fingerprint(),
            Credentials::Bearer("x".to_owned().into()).fingerprint()
        );
        assert!(!format!("{:?}", basic("u", "hunter2")).contains("hunter2"));
    }

    async fn found(json: &str, domain: &str) -> Result<Option<Credentials>, Error> {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("config.json");
        std::fs::write(&file, json).unwrap();
        docker_credentials(&file, domain).await
    }

    fn same(found: Result<Option<Credentials>, Error>, wanted: &Credentials) -> bool {
        found.unwrap().unwrap().fingerprint() == wanted.fingerprint()
    }

    #[tokio::test]
    async fn auths_in_all_their_forms() {
        let json = r#"{"auths":{
            "https://index.docker.io/v1/":{"auth":"aHViOnNlY3JldA=="},
            "https://reg.example/v2/":{"username":"u","password":"p"},
            "ident.example:5000":{"auth":"dTp4","identitytoken":"tok"},
            "bearer.example":{"registrytoken":"raw"},
            "empty.example":{},
            "bad.example":{"auth":"%%%"},
            "nocolon.example":{"auth":"aHVi"}
        }}"#;
        assert!(same(
            found(json, "docker.io").await,
            &basic("hub", "secret")
        ));
        assert!(same(found(json, "reg.example").await, &basic("u", "p")));
        assert!(same(
            found(json, "ident.example:5000").await,
            &Credentials::Identity("tok".to_owned().into())
        ));
        assert!(same(
            found(json, "bearer.example").await,
            &Credentials::Bearer("raw".to_owned().into())
        ));
        assert!(found(json, "empty.example").await.unwrap().is_none());
        assert!(found(json, "ident.example").await.unwrap().is_none());
        for domain in ["bad.example", "nocolon.example"] {
            let error = found(json, domain).await.unwrap_err();
            assert_eq!(error.class(), ErrorClass::Config);
            assert!(error.to_string().contains(domain), "{error}");
            assert!(!error.to_string().contains("aHVi"), "{error}");
        }
    }

    #[tokio::test]
    async fn bad_files_are_named_without_their_content() {
        let error = found("{\"auths\": {\"x\": \"hunter2\"}}", "x")
            .await
            .unwrap_err();
        assert!(error.to_string().contains("config.json"), "{error}");
        assert!(!error.to_string().contains("hunter2"), "{error}");
        let none = docker_credentials(Path::new("/does/not/exist"), "x").await;
        assert!(none.unwrap().is_none());
    }

    #[tokio::test]
    async fn helper_names_are_no_paths_and_missing_helpers_are_named() {
        let error = found(r#"{"credsStore":"../x"}"#, "a").await.unwrap_err();
        assert!(error.to_string().contains("other characters"), "{error}");
        let error = found(r#"{"credHelpers":{"a":"not-there-at-all"}}"#, "a").await;
        let error = error.unwrap_err();
        assert!(
            error
                .to_string()
                .contains("docker-credential-not-there-at-all"),
            "{error}"
        );
    }

    #[tokio::test]
    async fn helpers_are_asked_by_their_protocol() {
        let program = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/tests/it/support/docker-credential-fake"
        );
        let ask = |server: &'static str| ask_helper(Path::new("config.json"), program, server);
        assert!(same(ask("reg.example").await, &basic("u", "reg.example")));
        assert!(same(
            ask("token.example").await,
            &Credentials::Identity("t".to_owned().into())
        ));
        assert!(ask("none.example").await.unwrap().is_none());
        for (server, word) in [
            ("fail.example", "exit status: 3"),
            ("garbage.example", "not its protocol"),
            ("flood.example", "more than 64 KiB"),
        ] {
            let error = ask(server).await.unwrap_err();
            assert!(error.to_string().contains(word), "{error}");
            assert!(!error.to_string().contains("hunter2"), "{error}");
        }
    }
}
