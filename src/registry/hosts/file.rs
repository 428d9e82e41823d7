//! The words of a `hosts.toml`, as containerd reads them.
//!
//! Differs in one point: a file that cannot be understood is an error, where containerd loses the mirrors silently.

use std::path::Path;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};
use toml::Spanned;
use toml::de::{DeTable, DeValue};
use url::Url;

use super::{Host, at, identity, own, pem};
use crate::registry::{Error, redact};

const MAX_HOSTS: usize = 64;
const MAX_IDENTITIES: usize = 16;

/// Parses a `hosts.toml`; certificate files it names are read.
pub(super) fn parse(
    text: &str,
    file: &Path,
    dir: &Path,
    domain: &str,
    plain_http: bool,
) -> Result<Vec<Host>, Error> {
    let reader = Reader { text, file, dir };
    let document = DeTable::parse(text).map_err(|error| {
        let line = error.span().map(|span| reader.line(span.start));
        at(file, line, &redact::text(error.message()))
    })?;
    let root = document.get_ref();
    let mut hosts = Vec::new();
    if let Some(table) = root.get("host") {
        let DeValue::Table(tables) = table.get_ref() else {
            return Err(reader.wrong(
                table,
                "\"host\" has to be tables such as [host.\"https://mirror.example\"]",
            ));
        };
        let mut tables: Vec<_> = tables.iter().collect();
        if tables.len() > MAX_HOSTS {
            return Err(reader.wrong(table, "more than 64 hosts"));
        }
        // The order of the file is the order of asking.
        tables.sort_by_key(|(name, _)| name.span().start);
        for (name, settings) in tables {
            let DeValue::Table(table) = settings.get_ref() else {
                return Err(reader.wrong(settings, "a host has to be a table"));
            };
            hosts.push(reader.host(name.get_ref(), name.span().start, table)?);
        }
    }
    match root.get("server") {
        Some(server) => {
            let url = reader.string(server, "server")?;
            if url.is_empty() {
                append_own(&reader, root, &mut hosts, domain, plain_http)?;
            } else {
                hosts.push(reader.host(url, server.span().start, root)?);
            }
        }
        None => append_own(&reader, root, &mut hosts, domain, plain_http)?,
    }
    for host in &mut hosts {
        let hub = domain == "docker.io" && host.name == "registry-1.docker.io";
        let bases = std::iter::once(&host.base).chain(&host.alternate);
        let own = bases.into_iter().any(|base| names_domain(base, domain));
        if !own && !hub {
            host.namespace = Some(domain.to_owned());
        }
    }
    Ok(hosts)
}

/// True where a URL leads to the domain itself; `reg.example:443` and `https://reg.example` are the same.
fn names_domain(base: &Url, domain: &str) -> bool {
    Url::parse(&format!("{}://{domain}", base.scheme())).is_ok_and(|own| {
        own.host() == base.host() && own.port_or_known_default() == base.port_or_known_default()
    })
}

/// The domain's own host with the settings of the file's root.
fn append_own(
    reader: &Reader<'_>,
    root: &DeTable<'_>,
    hosts: &mut Vec<Host>,
    domain: &str,
    plain_http: bool,
) -> Result<(), Error> {
    for mut host in own(domain, plain_http)? {
        let tls_is_set = reader.settings(root, &mut host)?;
        // Capabilities are of the server that the file names, if it names one.
        (host.pull, host.resolve) = (true, true);
        // A host that is spoken to either way has its order from here on.
        if tls_is_set {
            host.alternate = None;
        }
        hosts.push(host.prefer_tls(tls_is_set && !plain_http));
    }
    Ok(())
}

struct Reader<'a> {
    text: &'a str,
    file: &'a Path,
    dir: &'a Path,
}

type Value<'i> = Spanned<DeValue<'i>>;

impl Reader<'_> {
    fn line(&self, offset: usize) -> usize {
        let before = self.text.as_bytes().get(..offset).unwrap_or_default();
        before.iter().filter(|byte| **byte == b'\n').count() + 1
    }
    fn wrong(&self, value: &Value<'_>, what: &str) -> Error {
        at(self.file, Some(self.line(value.span().start)), what)
    }
    fn string<'v>(&self, value: &'v Value<'_>, key: &str) -> Result<&'v str, Error> {
        value
            .get_ref()
            .as_str()
            .ok_or_else(|| self.wrong(value, &format!("{key:?} has to be a string")))
    }
    fn boolean(&self, table: &DeTable<'_>, key: &str) -> Result<bool, Error> {
        table.get(key).map_or(Ok(false), |value| {
            value
                .get_ref()
                .as_bool()
                .ok_or_else(|| self.wrong(value, &format!("{key:?} has to be true or false")))
        })
    }
    /// A string or a list of strings.
    fn strings(&self, value: &Value<'_>, key: &str) -> Result<Vec<String>, Error> {
        match value.get_ref() {
            DeValue::String(text) => Ok(vec![text.to_string()]),
            DeValue::Array(list) => list
                .iter()
                .map(|item| self.string(item, key).map(str::to_owned))
                .collect(),
            _ => Err(self.wrong(
                value,
                &format!("{key:?} has to be a string or a list of strings"),
            )),
        }
    }

    fn host(&self, url: &str, offset: usize, table: &DeTable<'_>) -> Result<Host, Error> {
        let fail = |what: &str| {
            Err(at(
                self.file,
                Some(self.line(offset)),
                &format!(
                    "{:?} {what}",
                    redact::text(url.split('?').next().unwrap_or_default())
                ),
            ))
        };
        let full = if url.starts_with("http") && url.contains("://") {
            url.to_owned()
        } else if url.contains("://") {
            return fail("is neither https nor http");
        } else {
            format!("https://{url}")
        };
        let Ok(mut base) = Url::parse(&full) else {
            return fail("is not a URL of a registry");
        };
        if !matches!(base.scheme(), "https" | "http") || base.host_str().is_none() {
            return fail("is neither https nor http");
        }
        if !base.username().is_empty() || base.password().is_some() {
            return fail(
                "holds a user name or password; credentials belong in the pull request or in a docker config.json",
            );
        }
        base.set_query(None);
        base.set_fragment(None);
        let path = base.path().trim_end_matches('/').to_owned();
        let as_written = self.boolean(table, "override_path")? || path.ends_with("/v2");
        base.set_path(&if as_written {
            path
        } else {
            format!("{path}/v2")
        });
        let mut host = Host::bare(&redact::host_of(&base), base);
        let tls_is_set = self.settings(table, &mut host)?;
        Ok(host.prefer_tls(tls_is_set))
    }

    /// Everything but the URL: for `[host]` tables and the root alike. True where something is set that only TLS needs.
    fn settings(&self, table: &DeTable<'_>, host: &mut Host) -> Result<bool, Error> {
        if let Some(value) = table.get("capabilities") {
            let DeValue::Array(list) = value.get_ref() else {
                return Err(self.wrong(value, "\"capabilities\" has to be a list"));
            };
            if !list.is_empty() {
                (host.pull, host.resolve) = (false, false);
            }
            for item in list.iter() {
                let capability = self.string(item, "capabilities")?;
                match capability.to_ascii_lowercase().as_str() {
                    "pull" => host.pull = true,
                    "resolve" => host.resolve = true,
                    "push" | "referrers" => {}
                    other => {
                        let what = format!(
                            "capability {:?} is unknown: there are pull, resolve, push and referrers",
                            redact::text(other)
                        );
                        return Err(self.wrong(item, &what));
                    }
                }
            }
        }
        if let Some(value) = table.get("ca") {
            for name in self.strings(value, "ca")? {
                host.tls.authorities.push(pem(&self.dir.join(name))?);
            }
            host.tls.skip_verify = false;
        }
        if table.contains_key("skip_verify") {
            host.tls.skip_verify = self.boolean(table, "skip_verify")?;
        }
        if let Some(value) = table.get("client") {
            host.tls.identities = self.client(value)?;
        }
        if let Some(value) = table.get("header") {
            host.headers = self.headers(value)?;
        }
        if let Some(value) = table.get("dial_timeout") {
            let text = self.string(value, "dial_timeout")?;
            host.dial_timeout = duration(text)
                .filter(|timeout| !timeout.is_zero())
                .ok_or_else(|| {
                    self.wrong(
                        value,
                        "\"dial_timeout\" has to be a time such as \"3s\" or \"1m30s\"",
                    )
                })?;
        }
        let keys = ["ca", "client", "skip_verify"];
        Ok(keys.into_iter().any(|key| table.contains_key(key)))
    }

    /// One file with both, a list of such, or pairs of certificate and key.
    fn client(&self, value: &Value<'_>) -> Result<Vec<Vec<u8>>, Error> {
        let wrong = || {
            self.wrong(
                value,
                "\"client\" has to be a file, a list of files or a list of [certificate, key] pairs",
            )
        };
        match value.get_ref() {
            DeValue::String(file) => {
                identity(&self.dir.join(file.as_ref()), None).map(|identity| vec![identity])
            }
            DeValue::Array(list) => {
                if list.len() > MAX_IDENTITIES {
                    return Err(self.wrong(value, "more than 16 client certificates"));
                }
                let mut identities = Vec::new();
                for item in list.iter() {
                    let read = match item.get_ref() {
                        DeValue::String(file) => identity(&self.dir.join(file.as_ref()), None)?,
                        DeValue::Array(_) => {
                            let pair = self.strings(item, "client")?;
                            match pair.as_slice() {
                                [file] => identity(&self.dir.join(file), None)?,
                                [file, key] if key.is_empty() => {
                                    identity(&self.dir.join(file), None)?
                                }
                                [file, key] => {
                                    identity(&self.dir.join(file), Some(&self.dir.join(key)))?
                                }
                                _ => return Err(wrong()),
                            }
                        }
                        _ => return Err(wrong()),
                    };
                    identities.push(read);
                }
                Ok(identities)
            }
            _ => Err(wrong()),
        }
    }

    fn headers(&self, value: &Value<'_>) -> Result<HeaderMap, Error> {
        let DeValue::Table(table) = value.get_ref() else {
            return Err(self.wrong(value, "\"header\" has to be a table"));
        };
        let mut headers = HeaderMap::new();
        if table.len() > 64 {
            return Err(self.wrong(value, "more than 64 headers"));
        }
        for (name, values) in table {
            let key = HeaderName::try_from(name.get_ref().as_ref())
                .map_err(|_| self.wrong(values, "a header name has forbidden characters"))?;
            for text in self.strings(values, "header")? {
                // The value may be a secret: it is never repeated.
                let mut value = HeaderValue::try_from(text)
                    .map_err(|_| self.wrong(values, "a header value has forbidden characters"))?;
                value.set_sensitive(true);
                headers.append(key.clone(), value);
            }
        }
        Ok(headers)
    }
}

/// Go's notation: `300ms`, `1.5s`, `1m30s`, `2h`.
pub(super) fn duration(text: &str) -> Option<Duration> {
    let mut rest = text.trim();
    let mut total = Duration::ZERO;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let number = rest
            .find(|c: char| !(c.is_ascii_digit() || c == '.'))
            .unwrap_or(rest.len());
        let (value, after) = rest.split_at(number);
        let unit = after
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(after.len());
        let (unit, after) = after.split_at(unit);
        let seconds = match unit {
            "ns" => 1e-9,
            "us" | "µs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            "" if value == "0" => 0.0,
            _ => return None,
        };
        let value: f64 = value.parse().ok()?;
        total = total.checked_add(Duration::try_from_secs_f64(value * seconds).ok()?)?;
        rest = after;
    }
    Some(total)
}
