//! What a caller shows to a registry, and where docker keeps it.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::registry::Error;
use crate::registry::error::ErrorClass;

/// A config.json or a helper's answer that is larger is refused.
const MAX_BYTES: u64 = 1 << 20;
const HELPER_TIMEOUT: Duration = Duration::from_secs(10);
/// The key under which docker keeps Docker Hub's credentials.
const HUB: &str = "https://index.docker.io/v1/";

/// A secret string: never printed.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// The secret, for the one who sends it.
    pub(crate) fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
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
    /// A hash by which equal credentials are known, to share what they bought. Not for showing.
    pub fn fingerprint(&self) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new();
        let mut part = |text: &str| {
            hasher.update(&(text.len() as u64).to_le_bytes());
            hasher.update(text.as_bytes());
        };
        match self {
            Credentials::Anonymous => part("anonymous"),
            Credentials::Basic { username, password } => {
                part("basic");
                part(username);
                part(&password.0);
            }
            Credentials::Identity(token) => {
                part("identity");
                part(&token.0);
            }
            Credentials::Bearer(token) => {
                part("bearer");
                part(&token.0);
            }
        }
        *hasher.finalize().as_bytes()
    }
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct DockerConfig {
    auths: BTreeMap<String, DockerAuth>,
    cred_helpers: BTreeMap<String, String>,
    creds_store: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct DockerAuth {
    auth: String,
    username: String,
    password: String,
    identitytoken: String,
    registrytoken: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct HelperAnswer {
    username: String,
    secret: String,
}

/// Credentials for a registry domain from a docker `config.json`: a helper for the domain, the general helper, then
/// the file itself. `None` where there are none, or no file.
pub async fn docker_credentials(file: &Path, domain: &str) -> Result<Option<Credentials>, Error> {
    let wrong =
        |what: String| Error::new(ErrorClass::Config, format!("{}: {what}", file.display()));
    let text = match tokio::fs::metadata(file).await {
        Ok(meta) if meta.len() > MAX_BYTES => return Err(wrong("it is larger than 1 MiB".into())),
        Ok(_) => tokio::fs::read(file)
            .await
            .map_err(|error| wrong(error.to_string()))?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(wrong(error.to_string())),
    };
    // The position is told, never the text: it is a file of secrets.
    let config: DockerConfig = serde_json::from_slice(&text).map_err(|error| {
        wrong(format!(
            "not a docker config.json, see line {} column {}",
            error.line(),
            error.column()
        ))
    })?;
    let keys: Vec<&str> = if domain == "docker.io" {
        vec![HUB, "docker.io", "index.docker.io", "https://docker.io"]
    } else {
        vec![domain]
    };
    let helper = keys
        .iter()
        .find_map(|key| config.cred_helpers.get(*key))
        .or_else(|| Some(&config.creds_store).filter(|helper| !helper.is_empty()));
    if let Some(helper) = helper
        && let Some(found) = ask_helper(helper, keys.first().copied().unwrap_or(domain)).await?
    {
        return Ok(Some(found));
    }
    let entry = config.auths.iter().find(|(key, _)| {
        let bare = key
            .trim_start_matches("https://")
            .trim_start_matches("http://");
        let bare = bare.split('/').next().unwrap_or_default();
        keys.contains(&key.as_str()) || keys.contains(&bare)
    });
    match entry {
        None => Ok(None),
        Some((key, auth)) => auth
            .read()
            .map_err(|what| wrong(format!("the entry of {key:?} {what}"))),
    }
}

impl DockerAuth {
    fn read(&self) -> Result<Option<Credentials>, &'static str> {
        if !self.identitytoken.is_empty() {
            return Ok(Some(Credentials::Identity(
                self.identitytoken.clone().into(),
            )));
        }
        if !self.registrytoken.is_empty() {
            return Ok(Some(Credentials::Bearer(self.registrytoken.clone().into())));
        }
        if !self.username.is_empty() {
            return Ok(Some(Credentials::Basic {
                username: self.username.clone(),
                password: self.password.clone().into(),
            }));
        }
        if self.auth.is_empty() {
            return Ok(None);
        }
        let bytes = STANDARD
            .decode(self.auth.trim())
            .map_err(|_| "has an auth that is not base64")?;
        let text = String::from_utf8(bytes).map_err(|_| "has an auth that is not text")?;
        let (username, password) = text
            .trim_end_matches('\0')
            .split_once(':')
            .ok_or("has an auth without ':'")?;
        Ok(Some(Credentials::Basic {
            username: username.to_owned(),
            password: password.to_owned().into(),
        }))
    }
}

/// Runs `docker-credential-<helper> get`, the domain on its standard input.
async fn ask_helper(helper: &str, domain: &str) -> Result<Option<Credentials>, Error> {
    let program = format!("docker-credential-{helper}");
    let wrong = |what: &str| {
        Error::new(
            ErrorClass::Config,
            format!("credential helper {program}: {what}"),
        )
    };
    if !helper
        .bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
    {
        return Err(wrong("its name is not a plain word"));
    }
    let run = async {
        let mut child = tokio::process::Command::new(&program)
            .arg("get")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            // A helper that needs no input may be gone already.
            let _ = stdin.write_all(domain.as_bytes()).await;
        }
        let mut out = Vec::new();
        if let Some(stdout) = child.stdout.take() {
            stdout.take(MAX_BYTES).read_to_end(&mut out).await?;
        }
        let status = child.wait().await?;
        Ok::<_, std::io::Error>((status, out))
    };
    let (status, out) = tokio::time::timeout(HELPER_TIMEOUT, run)
        .await
        .map_err(|_| wrong("it did not answer in 10 s"))?
        .map_err(|error| wrong(&error.to_string()))?;
    if !status.success() {
        let text = String::from_utf8_lossy(&out);
        if text.contains("credentials not found") {
            return Ok(None);
        }
        return Err(wrong(&format!("it ended with {status}")));
    }
    let answer: HelperAnswer =
        serde_json::from_slice(&out).map_err(|_| wrong("its answer is not the expected JSON"))?;
    Ok(Some(if answer.username == "<token>" {
        Credentials::Identity(answer.secret.into())
    } else {
        Credentials::Basic {
            username: answer.username,
            password: answer.secret.into(),
        }
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn check(text: &str, domain: &str) -> Result<Option<Credentials>, String> {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("config.json");
        std::fs::write(&file, text).unwrap();
        docker_credentials(&file, domain)
            .await
            .map_err(|error| error.to_string())
    }

    fn basic(username: &str, password: &str) -> Option<Credentials> {
        Some(Credentials::Basic {
            username: username.into(),
            password: password.to_owned().into(),
        })
    }

    #[tokio::test]
    async fn reads_docker_config() {
        let auth = STANDARD.encode("me:pa:ss");
        let text = format!(
            r#"{{"auths":{{"r.io":{{"auth":"{auth}"}},"https://p.io/v1/":{{"username":"u","password":"p"}},
            "{HUB}":{{"identitytoken":"t"}},"q.io:5000":{{"registrytoken":"b"}},"e.io":{{}}}},"other":1}}"#
        );
        assert_eq!(check(&text, "r.io").await, Ok(basic("me", "pa:ss")));
        assert_eq!(check(&text, "p.io").await, Ok(basic("u", "p")));
        assert_eq!(
            check(&text, "docker.io").await,
            Ok(Some(Credentials::Identity("t".to_owned().into())))
        );
        assert_eq!(
            check(&text, "q.io:5000").await,
            Ok(Some(Credentials::Bearer("b".to_owned().into())))
        );
        assert_eq!(check(&text, "e.io").await, Ok(None));
        assert_eq!(check(&text, "x.io").await, Ok(None));
        assert_eq!(
            docker_credentials(Path::new("/no/such"), "r.io")
                .await
                .unwrap(),
            None
        );
    }

    #[tokio::test]
    async fn faults_tell_no_secret() {
        for (text, reason) in [
            (r#"{"auths":{"r.io":{"auth":"c2VjcmV0"}}}"#, "without ':'"),
            (r#"{"auths":{"r.io":{"auth":"secret!"}}}"#, "base64"),
            (r#"{"auths":"secret"}"#, "line 1"),
            (r#"{"credsStore":"../secret"}"#, "plain word"),
            (
                r#"{"credHelpers":{"r.io":"no-such-helper-at-all"}}"#,
                "No such file",
            ),
        ] {
            let error = check(text, "r.io").await.unwrap_err();
            assert!(error.contains(reason), "{error}");
            assert!(
                !error.contains("c2Vj") && !error.contains("secret!"),
                "{error}"
            );
        }
        assert!(!format!("{:?}", basic("u", "hidden")).contains("hidden"));
    }

    #[test]
    fn fingerprints_differ() {
        let all = [
            Credentials::Anonymous,
            basic("a", "bc").unwrap(),
            basic("ab", "c").unwrap(),
            Credentials::Identity("a".to_owned().into()),
            Credentials::Bearer("a".to_owned().into()),
        ];
        for (n, one) in all.iter().enumerate() {
            for (m, other) in all.iter().enumerate() {
                assert_eq!(one.fingerprint() == other.fingerprint(), n == m);
            }
        }
    }
}
