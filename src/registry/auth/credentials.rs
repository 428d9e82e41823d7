//! What a caller shows to a registry, and docker's `config.json` as a source of it.

use std::collections::HashMap;
use std::path::Path;
use std::process::Stdio;
use std::sync::OnceLock;
use std::time::Duration;

use base64::Engine;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
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
/// `auth` is written with padding or without.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);
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

/// Credentials from a docker `config.json` (auths, credHelpers, credsStore) for a repository, `domain[/path]`. A file
/// that is not there holds none.
///
/// Keys are what docker, podman and kubelet have written over the years: a host, a URL of its API, or the beginning of
/// a repository; of several that fit, the longest counts.
pub async fn docker_credentials(
    file: &Path,
    repository: &str,
) -> Result<Option<Credentials>, Error> {
    let (domain, path) = repository.split_once('/').unwrap_or((repository, ""));
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
    let helper = best(&parsed.cred_helpers, domain, "")
        .or(Some(&parsed.creds_store))
        .filter(|helper| !helper.is_empty());
    let server = if is_hub(domain) { DOCKER_HUB } else { domain };
    if let Some(helper) = helper
        && let Some(found) = ask_helper(file, &helper_program(file, helper)?, server).await?
    {
        return Ok(Some(found));
    }
    let entry = best(&parsed.auths, domain, path);
    entry.map_or(Ok(None), |entry| from_entry(entry, file, domain))
}

/// The value whose key fits a repository best: the longest, else the one docker itself writes, else the first.
fn best<'a, T>(entries: &'a HashMap<String, T>, domain: &str, path: &str) -> Option<&'a T> {
    entries
        .iter()
        .filter_map(|(key, value)| Some((fit(key, domain, path)?, key, value)))
        .min_by_key(|(length, key, _)| {
            let usual = key.as_str() == domain || (is_hub(domain) && key.as_str() == DOCKER_HUB);
            (std::cmp::Reverse(*length), !usual, key.as_str())
        })
        .map(|(_, _, value)| value)
}

/// How much of a repository's path a key names, if it names the repository at all.
pub(super) fn fit(key: &str, domain: &str, path: &str) -> Option<usize> {
    let key = key
        .strip_prefix("https://")
        .or_else(|| key.strip_prefix("http://"))
        .unwrap_or(key);
    let (host, prefix) = key.split_once('/').unwrap_or((key, ""));
    let same = host.eq_ignore_ascii_case(domain) || (is_hub(host) && is_hub(domain));
    let prefix = prefix.trim_matches('/');
    // The root of an API, as docker login once wrote it.
    if same && (prefix.is_empty() || prefix == "v1" || prefix == "v2") {
        return Some(0);
    }
    let rest = path.strip_prefix(prefix)?;
    (same && (rest.is_empty() || rest.starts_with('/'))).then_some(prefix.len())
}

/// Docker Hub under any of its names.
fn is_hub(host: &str) -> bool {
    matches!(
        host,
        "docker.io" | "index.docker.io" | "registry-1.docker.io" | "registry.hub.docker.com"
    )
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
        let decoded = BASE64.decode(entry.auth.trim()).map_err(|_| malformed())?;
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
    async fn the_longest_key_that_fits_counts() {
        let json = r#"{"auths":{
            "reg.example":{"username":"host","password":"p"},
            "reg.example/team":{"username":"team","password":"p"},
            "reg.example/team/app":{"username":"app","password":"p"},
            "https://reg.example/v2/":{"username":"api","password":"p"},
            "only.example/team/":{"username":"only","password":"p"},
            "docker.io/library":{"username":"library","password":"p"},
            "https://index.docker.io/v1/":{"username":"hub","password":"p"},
            "index.docker.io":{"username":"other","password":"p"},
            "UPPER.example:5000":{"auth":"dTpw"},
            "unpadded.example":{"auth":"aHViOnNlY3JldA"}
        }}"#;
        for (repository, user) in [
            ("reg.example", Some("host")),
            ("reg.example/other/app", Some("host")),
            ("reg.example/teams/app", Some("host")),
            ("reg.example/team/web", Some("team")),
            ("reg.example/team/app", Some("app")),
            ("reg.example/team/app/deep", Some("app")),
            ("only.example/team/x", Some("only")),
            ("only.example/x", None),
            ("docker.io/library/busybox", Some("library")),
            ("docker.io/org/app", Some("hub")),
            ("registry-1.docker.io/org/app", Some("hub")),
            ("upper.example:5000/a", Some("u")),
            ("upper.example/a", None),
            ("unpadded.example/a", Some("hub")),
            ("example/a", None),
        ] {
            let got = match found(json, repository).await.unwrap() {
                Some(Credentials::Basic { username, .. }) => Some(username),
                _ => None,
            };
            assert_eq!(got.as_deref(), user, "{repository}");
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
