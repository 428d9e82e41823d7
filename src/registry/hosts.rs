//! Where a repository's content is asked for: `hosts.toml`, read as containerd reads it.
//!
//! `<dir>/<host>_<port>_/hosts.toml`, then `<host>:<port>`, `<host>`, `_default`; the first folder that exists counts.
//! Without a `hosts.toml` its `*.crt`, `*.cert` and `*.key` files configure the registry itself, as docker has it.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};
use serde::Deserialize;
use toml::Spanned;
use url::Url;

use super::Error;
use super::error::ErrorClass;

/// A larger file is no hosts.toml.
const MAX_FILE: u64 = 256 << 10;
/// More hosts are not tried.
const MAX_HOSTS: usize = 32;
const DIAL_TIMEOUT: Duration = Duration::from_secs(30);

/// One place to ask.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Host {
    /// With the path that `/<repository>/…` is appended to, `/v2` for most; no trailing slash.
    pub(super) base: Url,
    pub(super) pull: bool,
    pub(super) resolve: bool,
    /// A mirror is told whose content is meant: `?ns=<domain>`.
    pub(super) namespace: Option<String>,
    pub(super) header: HeaderMap,
    pub(super) tls: Tls,
    /// Speaks HTTPS if it turns out not to speak plain HTTP: loopback addresses that nobody configured.
    pub(super) guess_scheme: bool,
}

/// How to connect.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Tls {
    /// PEM files that are trusted besides the system's.
    pub(super) ca: Vec<PathBuf>,
    /// PEM files with a certificate, and with its key if that is apart.
    pub(super) client: Vec<(PathBuf, Option<PathBuf>)>,
    pub(super) skip_verify: bool,
    pub(super) dial_timeout: Duration,
}

impl Default for Tls {
    fn default() -> Self {
        Tls {
            ca: Vec::new(),
            client: Vec::new(),
            skip_verify: false,
            dial_timeout: DIAL_TIMEOUT,
        }
    }
}

#[derive(Default, Deserialize)]
struct File {
    server: Option<String>,
    #[serde(flatten)]
    options: Options,
    #[serde(default)]
    host: BTreeMap<Spanned<String>, Options>,
}

#[derive(Default, Deserialize)]
struct Options {
    capabilities: Option<Vec<String>>,
    ca: Option<OneOrMany>,
    client: Option<Client>,
    skip_verify: Option<bool>,
    header: Option<BTreeMap<String, OneOrMany>>,
    override_path: Option<bool>,
    dial_timeout: Option<String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Client {
    One(String),
    Many(Vec<OneOrMany>),
}

impl OneOrMany {
    fn into_vec(self) -> Vec<String> {
        match self {
            OneOrMany::One(one) => vec![one],
            OneOrMany::Many(many) => many,
        }
    }
}

/// The hosts of a registry domain, in the order in which they are asked; its own comes last. Blocking.
pub(super) fn hosts(dirs: &[PathBuf], domain: &str, plain_http: bool) -> Result<Vec<Host>, Error> {
    let origin = origin(domain, plain_http)?;
    for dir in dirs {
        for name in folder_names(domain) {
            let folder = dir.join(name);
            let file = folder.join("hosts.toml");
            match read(&file) {
                Ok(text) => return parse(&text, &file, domain, &origin),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(wrong(&file, &error.to_string())),
            }
            if folder.is_dir() {
                let mut host = origin;
                host.tls =
                    certificates(&folder).map_err(|error| wrong(&folder, &error.to_string()))?;
                return Ok(vec![host]);
            }
        }
    }
    Ok(vec![origin])
}

fn read(file: &Path) -> io::Result<String> {
    if fs::metadata(file)?.len() > MAX_FILE {
        return Err(io::Error::other("it is larger than 256 KiB"));
    }
    fs::read_to_string(file)
}

fn folder_names(domain: &str) -> Vec<String> {
    let mut names = Vec::new();
    match domain.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => {
            names.push(format!("{host}_{port}_"));
            names.push(domain.to_owned());
        }
        _ => names.push(domain.to_owned()),
    }
    names.push("_default".to_owned());
    names
}

/// The registry itself.
fn origin(domain: &str, plain_http: bool) -> Result<Host, Error> {
    let authority = if domain == "docker.io" {
        "registry-1.docker.io"
    } else {
        domain
    };
    let probe = url(&format!("https://{authority}"), Path::new(domain))?;
    let loopback = is_loopback(&probe);
    let explicit_443 = probe.port().is_none();
    let guess = loopback && !explicit_443 && !plain_http;
    let scheme = if plain_http || guess { "http" } else { "https" };
    Ok(Host {
        base: url(&format!("{scheme}://{authority}/v2"), Path::new(domain))?,
        pull: true,
        resolve: true,
        namespace: None,
        header: HeaderMap::new(),
        tls: Tls::default(),
        guess_scheme: guess,
    })
}

/// Whether a URL names this machine.
pub(super) fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(url::Host::Domain(name)) => name == "localhost",
        Some(url::Host::Ipv4(address)) => address.is_loopback(),
        Some(url::Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}

fn parse(text: &str, file: &Path, domain: &str, origin: &Host) -> Result<Vec<Host>, Error> {
    let read: File = toml::from_str(text).map_err(|error| wrong(file, error.to_string().trim()))?;
    let folder = file.parent().unwrap_or(Path::new("."));
    let mut tables: Vec<(Spanned<String>, Options)> = read.host.into_iter().collect();
    if tables.len() > MAX_HOSTS {
        return Err(wrong(file, &format!("it has more than {MAX_HOSTS} hosts")));
    }
    // Order counts, and the file has it: the position of each key.
    tables.sort_by_key(|(name, _)| name.span().start);
    let mut hosts = Vec::new();
    for (name, options) in tables {
        hosts.push(one(name.get_ref(), options, folder, file, domain)?);
    }
    let mut last = match &read.server {
        Some(server) => one(server, read.options, folder, file, domain)?,
        None => {
            let base = origin.base.as_str().trim_end_matches("/v2").to_owned();
            let mut host = one(&base, read.options, folder, file, domain)?;
            host.guess_scheme = origin.guess_scheme;
            host
        }
    };
    if last.base.host() == origin.base.host() && last.base.port() == origin.base.port() {
        last.namespace = None;
    }
    hosts.push(last);
    Ok(hosts)
}

fn one(
    address: &str,
    options: Options,
    folder: &Path,
    file: &Path,
    domain: &str,
) -> Result<Host, Error> {
    let address = if address.contains("://") {
        address.to_owned()
    } else {
        format!("https://{address}")
    };
    let mut base = url(&address, file)?;
    let path = base.path().trim_end_matches('/').to_owned();
    let path = if options.override_path == Some(true) || path.ends_with("/v2") {
        path
    } else {
        format!("{path}/v2")
    };
    base.set_path(&path);
    base.set_query(None);
    let (mut pull, mut resolve) = (true, true);
    if let Some(capabilities) = &options.capabilities {
        (pull, resolve) = (false, false);
        for capability in capabilities {
            match capability.as_str() {
                "pull" => pull = true,
                "resolve" => resolve = true,
                "push" | "referrers" => {}
                other => return Err(wrong(file, &format!("unknown capability {other:?}"))),
            }
        }
    }
    let at = |name: String| folder.join(name);
    let client = match options.client {
        None => Vec::new(),
        Some(Client::One(one)) => vec![(at(one), None)],
        Some(Client::Many(many)) => many
            .into_iter()
            .map(|entry| {
                let mut files = entry.into_vec().into_iter();
                match (files.next(), files.next(), files.next()) {
                    (Some(certificate), key, None) => Ok((at(certificate), key.map(at))),
                    _ => Err(wrong(file, "a client entry is a file, or a pair of files")),
                }
            })
            .collect::<Result<_, _>>()?,
    };
    let mut header = HeaderMap::new();
    for (name, values) in options.header.unwrap_or_default() {
        for value in values.into_vec() {
            let name = HeaderName::try_from(&name)
                .map_err(|_| wrong(file, &format!("{name:?} is not a header name")))?;
            let mut value = HeaderValue::try_from(value)
                .map_err(|_| wrong(file, &format!("the value of header {name:?} is malformed")))?;
            value.set_sensitive(true);
            header.append(name, value);
        }
    }
    let dial_timeout = match &options.dial_timeout {
        None => DIAL_TIMEOUT,
        Some(text) => duration(text)
            .ok_or_else(|| wrong(file, &format!("{text:?} is not a duration such as 5s")))?,
    };
    let namespace = (domain != "docker.io" || base.host_str() != Some("registry-1.docker.io"))
        .then(|| domain.to_owned())
        .filter(|domain| super::error::host(&base) != *domain);
    Ok(Host {
        base,
        pull,
        resolve,
        namespace,
        header,
        tls: Tls {
            ca: options
                .ca
                .map(OneOrMany::into_vec)
                .unwrap_or_default()
                .into_iter()
                .map(at)
                .collect(),
            client,
            skip_verify: options.skip_verify.unwrap_or(false),
            dial_timeout,
        },
        guess_scheme: false,
    })
}

/// docker's form: trust every `*.crt`, show every `*.cert` with the `*.key` of the same name.
fn certificates(folder: &Path) -> io::Result<Tls> {
    let mut tls = Tls::default();
    let mut names: Vec<PathBuf> = fs::read_dir(folder)?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<io::Result<_>>()?;
    names.sort();
    for path in names {
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("crt") => tls.ca.push(path),
            Some("cert") => {
                let key = path.with_extension("key");
                tls.client.push((path, Some(key)));
            }
            _ => {}
        }
    }
    Ok(tls)
}

/// Go's duration syntax, as far as a time-out needs it: `1m30s`, `500ms`, `1.5s`.
fn duration(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut sum = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, after) = rest.split_at(digits);
        let end = after
            .find(|c: char| c.is_ascii_digit())
            .unwrap_or(after.len());
        let (unit, after) = after.split_at(end);
        let unit = match unit {
            "ms" => 0.001,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
        let seconds: f64 = number.parse().ok()?;
        sum = sum.checked_add(Duration::try_from_secs_f64(seconds * unit).ok()?)?;
        rest = after;
    }
    (!sum.is_zero()).then_some(sum)
}

fn url(text: &str, of: &Path) -> Result<Url, Error> {
    let parsed = Url::parse(text).ok().filter(|url| {
        matches!(url.scheme(), "http" | "https")
            && url.host().is_some()
            && url.username().is_empty()
            && url.password().is_none()
    });
    parsed.ok_or_else(|| {
        wrong(
            of,
            "it names an address that is not http(s)://host[:port][/path]",
        )
    })
}

fn wrong(file: &Path, what: &str) -> Error {
    Error::new(ErrorClass::Config, format!("{}: {what}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(dir: &Path, name: &str, text: &str) {
        fs::create_dir_all(dir.join(name)).unwrap();
        fs::write(dir.join(name).join("hosts.toml"), text).unwrap();
    }

    fn bases(hosts: &[Host]) -> Vec<String> {
        hosts.iter().map(|host| host.base.to_string()).collect()
    }

    #[test]
    fn without_configuration() {
        for (domain, plain, base, guess) in [
            ("docker.io", false, "https://registry-1.docker.io/v2", false),
            ("r.io", false, "https://r.io/v2", false),
            ("r.io", true, "http://r.io/v2", false),
            ("localhost:5000", false, "http://localhost:5000/v2", true),
            ("127.0.0.2:5000", false, "http://127.0.0.2:5000/v2", true),
            ("[::1]:5000", false, "http://[::1]:5000/v2", true),
            ("localhost", false, "https://localhost/v2", false),
            ("10.0.0.1:5000", false, "https://10.0.0.1:5000/v2", false),
        ] {
            let hosts = hosts(&[], domain, plain).unwrap();
            assert_eq!(bases(&hosts), [base], "{domain}");
            assert_eq!(hosts[0].guess_scheme, guess, "{domain}");
            assert_eq!(hosts[0].namespace, None);
        }
    }

    #[test]
    fn reads_mirrors_in_the_order_of_the_file() {
        let dir = tempfile::tempdir().unwrap();
        at(
            dir.path(),
            "docker.io",
            r#"
server = "https://registry-1.docker.io"
ca = "root.pem"
[host."https://z.example"]
capabilities = ["pull", "resolve"]
ca = ["a.pem", "/b.pem"]
client = [["c.cert", "c.key"], "d.pem"]
skip_verify = true
dial_timeout = "1m1.5s"
[host."https://z.example".header]
x-a = ["1", "2"]
[host."http://a.example:5000/proxy/v2/hub"]
capabilities = ["pull"]
override_path = true
[host."m.example/prefix"]
"#,
        );
        let hosts = hosts(&[dir.path().to_path_buf()], "docker.io", false).unwrap();
        assert_eq!(
            bases(&hosts),
            [
                "https://z.example/v2",
                "http://a.example:5000/proxy/v2/hub",
                "https://m.example/prefix/v2",
                "https://registry-1.docker.io/v2",
            ]
        );
        let first = &hosts[0];
        assert_eq!(first.namespace.as_deref(), Some("docker.io"));
        assert_eq!(first.header.get_all("x-a").iter().count(), 2);
        assert!(first.tls.skip_verify);
        assert_eq!(first.tls.dial_timeout, Duration::from_millis(61_500));
        assert_eq!(first.tls.ca[0], dir.path().join("docker.io/a.pem"));
        assert_eq!(first.tls.ca[1], Path::new("/b.pem"));
        assert_eq!(first.tls.client.len(), 2);
        assert!(hosts[1].pull && !hosts[1].resolve);
        assert_eq!(hosts[3].namespace, None);
        assert_eq!(hosts[3].tls.ca.len(), 1);
    }

    #[test]
    fn looks_into_folders_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let dirs = [dir.path().join("none"), dir.path().to_path_buf()];
        let server = |name: &str| format!("server = \"http://{name}\"");
        at(dir.path(), "_default", "[host.\"http://mirror\"]");
        let found = hosts(&dirs, "r.io:5000", false).unwrap();
        assert_eq!(bases(&found), ["http://mirror/v2", "https://r.io:5000/v2"]);
        at(dir.path(), "r.io:5000", &server("colon"));
        assert_eq!(
            bases(&hosts(&dirs, "r.io:5000", false).unwrap()),
            ["http://colon/v2"]
        );
        at(dir.path(), "r.io_5000_", &server("under"));
        assert_eq!(
            bases(&hosts(&dirs, "r.io:5000", false).unwrap()),
            ["http://under/v2"]
        );
        fs::create_dir(dir.path().join("c.io")).unwrap();
        fs::write(dir.path().join("c.io/x.crt"), "").unwrap();
        fs::write(dir.path().join("c.io/y.cert"), "").unwrap();
        let found = hosts(&dirs, "c.io", false).unwrap();
        assert_eq!(bases(&found), ["https://c.io/v2"]);
        assert_eq!((found[0].tls.ca.len(), found[0].tls.client.len()), (1, 1));
    }

    #[test]
    fn faults_name_the_file_and_the_line() {
        let dir = tempfile::tempdir().unwrap();
        for (text, reason) in [
            ("server = 1\n", "line 1"),
            ("\n\n[host.\"https://x\"]\ncapabilities = [\"fly\"]", "fly"),
            ("[host.\"ftp://x\"]", "http(s)"),
            ("[host.\"https://u:p@x\"]", "http(s)"),
            ("dial_timeout = \"soon\"", "soon"),
            ("[header]\n\"a b\" = \"x\"", "header"),
            ("host = [", "line 1"),
        ] {
            at(dir.path(), "r.io", text);
            let error = hosts(&[dir.path().to_path_buf()], "r.io", false).unwrap_err();
            assert_eq!(error.class(), ErrorClass::Config);
            let text = error.to_string();
            assert!(
                text.contains(reason) && text.contains("r.io/hosts.toml"),
                "{text}"
            );
        }
    }
}
