//! The hosts that a repository is asked for: the registry's own, and those of its `hosts.toml` (containerd
//! `docs/hosts.md`) or of docker's `certs.d` form. Which file counts, and what there is without one.

mod file;

use std::path::{Path, PathBuf};
use std::time::Duration;

use http::HeaderMap;
use url::Url;

use super::{Error, ErrorClass, redact};
use file::parse;

/// One place a repository is asked for, in the order of [`for_domain`].
#[derive(Clone, Debug)]
pub(super) struct Host {
    /// `host[:port]`, for messages, metrics and limits.
    pub(super) name: String,
    /// Up to and with `/v2`; no slash at the end.
    pub(super) base: Url,
    /// The same with the other scheme, where the configuration leaves open which one the host speaks.
    pub(super) alternate: Option<Url>,
    /// Value of `?ns=`: a mirror has to be told whose content is wanted.
    pub(super) namespace: Option<String>,
    /// May serve manifests by digest and blobs.
    pub(super) pull: bool,
    /// May say what a tag names.
    pub(super) resolve: bool,
    /// Sent with each request to this host, and to no other.
    pub(super) headers: HeaderMap,
    /// How far the host is trusted.
    pub(super) tls: Tls,
    /// Longest time to connect.
    pub(super) dial_timeout: Duration,
}

/// Trust in a host and proof towards it.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub(super) struct Tls {
    /// PEM bundles that are trusted besides the system's.
    pub(super) authorities: Vec<Vec<u8>>,
    /// PEMs with client certificate and key: which one a server takes is found out.
    pub(super) identities: Vec<Vec<u8>>,
    /// Take any certificate.
    pub(super) skip_verify: bool,
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tls")
            .field("authorities", &self.authorities.len())
            .field("identities", &self.identities.len())
            .field("skip_verify", &self.skip_verify)
            .finish()
    }
}

const DIAL_TIMEOUT: Duration = Duration::from_secs(30);
const MAX_FILE: u64 = 1 << 20;

impl Host {
    /// A host without settings of its own.
    pub(super) fn bare(name: &str, base: Url) -> Self {
        Host {
            name: name.to_owned(),
            base,
            alternate: None,
            namespace: None,
            pull: true,
            resolve: true,
            headers: HeaderMap::new(),
            tls: Tls::default(),
            dial_timeout: DIAL_TIMEOUT,
        }
    }
    /// True for the node itself: no proxy is used, and plain HTTP needs no configuration.
    pub(super) fn is_loopback(&self) -> bool {
        is_loopback(&self.base)
    }
    /// True where the host may be spoken to without TLS.
    pub(super) fn may_be_plain(&self) -> bool {
        let bases = std::iter::once(&self.base).chain(&self.alternate);
        bases.into_iter().any(|base| base.scheme() == "http")
    }
    /// A host named `http://` with settings for TLS is tried with TLS first, and without only where it speaks none.
    fn prefer_tls(mut self, tls_is_set: bool) -> Self {
        if tls_is_set && self.base.scheme() == "http" && self.base.port().is_some() {
            let mut with_tls = self.base.clone();
            if with_tls.set_scheme("https").is_ok() {
                self.alternate = Some(std::mem::replace(&mut self.base, with_tls));
            }
        }
        self
    }
}

/// True where a URL names this node.
pub(super) fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(url::Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost"),
        Some(url::Host::Ipv4(address)) => address.is_loopback(),
        Some(url::Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}

/// The hosts to ask for a registry domain, in order; the domain's own comes last. Reads files.
pub(super) fn for_domain(
    dirs: &[PathBuf],
    domain: &str,
    plain_http: bool,
) -> Result<Vec<Host>, Error> {
    for root in dirs {
        for name in dir_names(domain) {
            let dir = root.join(name);
            if !dir.is_dir() {
                continue;
            }
            let file = dir.join("hosts.toml");
            return match read(&file) {
                Ok(text) if text.is_empty() => certs_d(&dir, domain, plain_http),
                Ok(text) => parse(&text, &file, &dir, domain, plain_http),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                    certs_d(&dir, domain, plain_http)
                }
                Err(error) => Err(at(&file, None, &format!("cannot be read: {error}"))),
            };
        }
    }
    own(domain, plain_http)
}

/// What is wrong with the configuration of a registry domain, as a pull would find it. Reads files.
pub fn check(dirs: &[PathBuf], domain: &str) -> Result<(), Error> {
    for_domain(dirs, domain, false).map(drop)
}

/// Folders that may hold a domain's configuration, best first.
fn dir_names(domain: &str) -> Vec<String> {
    let mut names = Vec::new();
    if let Some((host, port)) = domain.rsplit_once(':')
        && !port.is_empty()
        && port.bytes().all(|b| b.is_ascii_digit())
    {
        names.push(format!("{host}_{port}_"));
    }
    names.push(domain.to_owned());
    names.push("_default".to_owned());
    names
}

/// The domain's own host or, for this node, what it may be.
fn own(domain: &str, plain_http: bool) -> Result<Vec<Host>, Error> {
    let host = if domain == "docker.io" {
        "registry-1.docker.io"
    } else {
        domain
    };
    let base = |scheme: &str| {
        Url::parse(&format!("{scheme}://{host}/v2")).map_err(|error| {
            Error::new(
                ErrorClass::Config,
                format!("registry {}: {error}", redact::text(domain)),
            )
        })
    };
    let mut https = Host::bare(host, base("https")?);
    let mut http = Host::bare(host, base("http")?);
    if plain_http {
        return Ok(vec![http]);
    }
    if !https.is_loopback() {
        return Ok(vec![https]);
    }
    // Nobody is between this node and itself.
    https.tls.skip_verify = true;
    http.tls.skip_verify = true;
    // A URL with the port of its scheme, or none, has no port after parsing.
    Ok(match (https.base.port(), http.base.port()) {
        (None, _) => vec![https, http],
        (_, None) => vec![http],
        _ => {
            http.alternate = Some(https.base);
            vec![http]
        }
    })
}

fn read(file: &Path) -> std::io::Result<String> {
    use std::io::Read;
    let mut text = String::new();
    std::fs::File::open(file)?
        .take(MAX_FILE)
        .read_to_string(&mut text)?;
    Ok(text)
}

fn at(file: &Path, line: Option<usize>, what: &str) -> Error {
    let line = line.map_or(String::new(), |line| format!(" line {line}"));
    Error::new(
        ErrorClass::Config,
        format!("{}{line}: {what}", file.display()),
    )
}

/// Docker's form: `*.crt` are authorities, `*.cert` with `*.key` the client's.
fn certs_d(dir: &Path, domain: &str, plain_http: bool) -> Result<Vec<Host>, Error> {
    let listed = std::fs::read_dir(dir)
        .map_err(|error| at(dir, None, &format!("cannot be listed: {error}")))?;
    let mut files: Vec<PathBuf> = listed
        .take(256)
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .collect();
    files.sort();
    let mut tls = Tls::default();
    for file in &files {
        match file.extension().and_then(|extension| extension.to_str()) {
            Some("crt") => tls.authorities.push(pem(file)?),
            Some("cert") => {
                let key = file.with_extension("key");
                tls.identities.push(identity(file, Some(&key))?);
            }
            _ => {}
        }
    }
    let mut hosts = own(domain, plain_http)?;
    if tls != Tls::default() && !plain_http {
        // Certificates say that TLS is meant, on this node as well.
        for host in &mut hosts {
            let _ = host.base.set_scheme("https");
            host.alternate = None;
            host.tls = Tls {
                skip_verify: host.tls.skip_verify && tls.authorities.is_empty(),
                ..tls.clone()
            };
        }
        hosts.truncate(1);
    }
    Ok(hosts)
}

/// A certificate and its key in one PEM; without `key` the certificate's file holds both.
fn identity(certificate: &Path, key: Option<&Path>) -> Result<Vec<u8>, Error> {
    let mut both = pem(certificate)?;
    if let Some(key) = key {
        both.push(b'\n');
        both.extend_from_slice(&pem(key)?);
    }
    let text = String::from_utf8_lossy(&both);
    if !text.contains("-----BEGIN CERTIFICATE-----") {
        return Err(at(certificate, None, "has no certificate in it"));
    }
    if !text.contains(" PRIVATE KEY-----") {
        return Err(at(
            key.unwrap_or(certificate),
            None,
            "has no private key in it; in hosts.toml, client = [[\"certificate.pem\", \"key.pem\"]] names two files",
        ));
    }
    Ok(both)
}

fn pem(file: &Path) -> Result<Vec<u8>, Error> {
    let text = read(file).map_err(|error| at(file, None, &format!("cannot be read: {error}")))?;
    if !text.contains("-----BEGIN ") {
        return Err(at(file, None, "is not PEM"));
    }
    Ok(text.into_bytes())
}

#[cfg(test)]
mod tests;
