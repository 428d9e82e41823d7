//! Which proxy a request goes through: `HTTP_PROXY`, `HTTPS_PROXY`, `ALL_PROXY` and `NO_PROXY`, in either case, with the
//! meaning they have for containerd and kubelet (Go's `httpproxy`). Pure but for reading the environment once.

use std::net::IpAddr;

use url::{Host, Url};

use super::hosts::is_loopback;
use super::{Error, ErrorClass};

/// A proxy's URL. It may hold a password: never printed.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct ProxyUrl(Url);

impl ProxyUrl {
    /// For the HTTP library.
    pub(super) fn expose(&self) -> &Url {
        &self.0
    }
    /// True where the proxy itself is spoken to with TLS.
    pub(super) fn is_https(&self) -> bool {
        self.0.scheme() == "https"
    }
}

impl std::fmt::Debug for ProxyUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&super::redact::url(&self.0))
    }
}

/// The proxies of this process and where they are not used.
#[derive(Clone, Debug, Default)]
pub(super) struct Proxies {
    http: Option<ProxyUrl>,
    https: Option<ProxyUrl>,
    none_for: Vec<Exception>,
}

/// One word of `NO_PROXY`.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Exception {
    All,
    /// First address and number of leading bits that count.
    Network(IpAddr, u8),
    /// A name in lower case without a leading dot; with all below it, or what is below it only.
    Name {
        name: String,
        below_only: bool,
        port: Option<u16>,
    },
    Address(IpAddr, Option<u16>),
}

impl Proxies {
    /// From the environment of this process.
    pub(super) fn from_env() -> Result<Self, Error> {
        Self::new(|name| std::env::var(name).ok())
    }

    /// From variables by name. A value that is not understood is an error that never repeats it.
    fn new(variable: impl Fn(&str) -> Option<String>) -> Result<Self, Error> {
        let first = |names: [&'static str; 2]| {
            names.into_iter().find_map(|name| {
                let value = variable(name)?;
                let value = value.trim();
                (!value.is_empty()).then(|| (name, value.to_owned()))
            })
        };
        let proxy = |names| match first(names) {
            Some((name, value)) => parse(name, &value).map(Some),
            None => Ok(None),
        };
        let all = proxy(["ALL_PROXY", "all_proxy"])?;
        // A web server sets HTTP_PROXY from a caller's header "Proxy" for the programs that it runs.
        let http = if variable("REQUEST_METHOD").is_some() {
            None
        } else {
            proxy(["HTTP_PROXY", "http_proxy"])?
        };
        let https = proxy(["HTTPS_PROXY", "https_proxy"])?;
        let none_for = first(["NO_PROXY", "no_proxy"])
            .map(|(_, value)| value.split(',').filter_map(exception).collect());
        Ok(Proxies {
            http: http.or_else(|| all.clone()),
            https: https.or(all),
            none_for: none_for.unwrap_or_default(),
        })
    }

    /// The proxy for a URL; `None` to go there directly. This node itself is never asked through a proxy.
    pub(super) fn for_url(&self, url: &Url) -> Option<&ProxyUrl> {
        let proxy = match url.scheme() {
            "https" => self.https.as_ref(),
            _ => self.http.as_ref(),
        }?;
        let direct = is_loopback(url) || self.none_for.iter().any(|except| except.covers(url));
        (!direct).then_some(proxy)
    }
}

fn parse(name: &str, value: &str) -> Result<ProxyUrl, Error> {
    let wrong = |what: &str| Error::new(ErrorClass::Config, format!("{name} {what}"));
    let url = match Url::parse(value) {
        // "proxy.lan:3128" parses as a URL of the scheme "proxy.lan".
        Ok(url) if url.has_host() => Some(url),
        _ if value.contains("://") => None,
        _ => Url::parse(&format!("http://{value}"))
            .ok()
            .filter(Url::has_host),
    };
    let url = url.ok_or_else(|| {
        wrong("is not the URL of a proxy; write http://[user:password@]host:port, or unset it")
    })?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(wrong(
            "names a kind of proxy that larder does not speak to; it has to be http:// or https://",
        ));
    }
    Ok(ProxyUrl(url))
}

fn exception(word: &str) -> Option<Exception> {
    let word = word.trim().to_ascii_lowercase();
    if word.is_empty() {
        return None;
    }
    if word == "*" {
        return Some(Exception::All);
    }
    if let Some((address, bits)) = word.split_once('/') {
        let address: IpAddr = address.parse().ok()?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        let bits = bits.parse().ok().filter(|bits| *bits <= most)?;
        return Some(Exception::Network(address, bits));
    }
    if let Ok(address) = word.trim_matches(['[', ']']).parse() {
        return Some(Exception::Address(address, None));
    }
    let (host, port) = match word.rsplit_once(':') {
        Some((host, port)) => (host, Some(port.parse().ok()?)),
        None => (word.as_str(), None),
    };
    if let Ok(address) = host.trim_matches(['[', ']']).parse() {
        return Some(Exception::Address(address, port));
    }
    let host = host.strip_prefix('*').unwrap_or(host);
    let name = host.strip_prefix('.').unwrap_or(host);
    (!name.is_empty()).then(|| Exception::Name {
        name: name.to_owned(),
        below_only: host.starts_with('.'),
        port,
    })
}

impl Exception {
    fn covers(&self, url: &Url) -> bool {
        let address = match url.host() {
            Some(Host::Ipv4(address)) => Some(IpAddr::V4(address)),
            Some(Host::Ipv6(address)) => Some(IpAddr::V6(address)),
            _ => None,
        };
        let at = |port: &Option<u16>| port.is_none() || *port == url.port_or_known_default();
        match self {
            Exception::All => true,
            Exception::Network(network, bits) => {
                address.is_some_and(|address| same_bits(*network, address, *bits))
            }
            Exception::Address(own, port) => address == Some(*own) && at(port),
            Exception::Name {
                name,
                below_only,
                port,
            } => {
                let host = url.host_str().unwrap_or_default().trim_end_matches('.');
                let below = host
                    .strip_suffix(name.as_str())
                    .is_some_and(|rest| rest.ends_with('.'));
                address.is_none() && (below || (!below_only && host == name)) && at(port)
            }
        }
    }
}

fn same_bits(one: IpAddr, other: IpAddr, bits: u8) -> bool {
    let differ = match (one, other) {
        (IpAddr::V4(one), IpAddr::V4(other)) => {
            // In the upper half, so that both kinds count from the first bit.
            u128::from(one.to_bits() ^ other.to_bits()) << 96
        }
        (IpAddr::V6(one), IpAddr::V6(other)) => one.to_bits() ^ other.to_bits(),
        _ => return false,
    };
    differ.leading_zeros() >= u32::from(bits)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxies(variables: &[(&str, &str)]) -> Result<Proxies, Error> {
        Proxies::new(|name| {
            let found = variables.iter().find(|(other, _)| *other == name);
            found.map(|(_, value)| (*value).to_owned())
        })
    }

    fn way(proxies: &Proxies, url: &str) -> Option<String> {
        let url = Url::parse(url).unwrap();
        proxies.for_url(&url).map(|proxy| proxy.0.to_string())
    }

    #[test]
    fn each_scheme_has_its_proxy_in_either_case() {
        let set = proxies(&[("http_proxy", "http://plain:1"), ("HTTPS_PROXY", "tls:2")]).unwrap();
        assert_eq!(way(&set, "http://a/x").unwrap(), "http://plain:1/");
        assert_eq!(way(&set, "https://a/x").unwrap(), "http://tls:2/");
        let upper = [
            ("HTTPS_PROXY", "http://upper:1"),
            ("https_proxy", "http://lower:1"),
        ];
        assert_eq!(
            way(&proxies(&upper).unwrap(), "https://a").unwrap(),
            "http://upper:1/"
        );
        let empty = [("HTTPS_PROXY", " "), ("https_proxy", "http://lower:1")];
        assert_eq!(
            way(&proxies(&empty).unwrap(), "https://a").unwrap(),
            "http://lower:1/"
        );
        let all = proxies(&[("ALL_PROXY", "https://all:1")]).unwrap();
        assert_eq!(way(&all, "http://a").unwrap(), "https://all:1/");
        let cgi = [("HTTP_PROXY", "http://evil:1"), ("REQUEST_METHOD", "GET")];
        assert_eq!(way(&proxies(&cgi).unwrap(), "http://a"), None);
        assert_eq!(way(&proxies(&[]).unwrap(), "https://a"), None);
    }

    #[test]
    fn exceptions_are_names_addresses_and_networks() {
        let no = "10.0.0.0/8, .below.lan,name.lan,*.star.lan,port.lan:5000,192.168.7.9,fd00::/8,[fd01::1]:99,10.0.0.300/33,/,:x";
        let set = proxies(&[
            ("HTTPS_PROXY", "http://p:1"),
            ("HTTP_PROXY", "http://p:1"),
            ("no_proxy", no),
        ]);
        let set = set.unwrap();
        for (url, direct) in [
            ("https://10.200.3.4/", true),
            ("https://11.0.0.1/", false),
            ("https://192.168.7.9:5000/", true),
            ("https://192.168.7.8/", false),
            ("https://[fd12::1]/", true),
            ("https://[fe80::1]/", false),
            ("https://a.below.lan/", true),
            ("https://below.lan/", false),
            ("https://name.lan/", true),
            ("https://NAME.lan:77/", true),
            ("https://a.name.lan/", true),
            ("https://notname.lan/", false),
            ("https://a.star.lan/", true),
            ("https://star.lan/", false),
            ("https://port.lan:5000/", true),
            ("https://port.lan/", false),
            ("https://localhost:5000/", true),
            ("https://127.0.0.9/", true),
            ("http://[::1]:5000/", true),
        ] {
            assert_eq!(way(&set, url).is_none(), direct, "{url}");
        }
        let never = proxies(&[("HTTPS_PROXY", "http://p:1"), ("NO_PROXY", "a, *")]).unwrap();
        assert_eq!(way(&never, "https://x.y"), None);
    }

    #[test]
    fn what_is_no_proxy_is_named_by_its_variable_only() {
        for value in [
            "http://",
            "http://u:hunter2@",
            "socks5://u:hunter2@a:1",
            "http://u:hunter2@a b",
        ] {
            let error = proxies(&[("https_proxy", value)]).unwrap_err();
            let text = error.to_string();
            assert_eq!(error.class(), ErrorClass::Config);
            assert!(text.starts_with("https_proxy "), "{text}");
            assert!(!text.contains("hunter2"), "{text}");
        }
        let set = proxies(&[("HTTPS_PROXY", "http://u:hunter2@a:1")]).unwrap();
        assert!(!format!("{set:?}").contains("hunter2"));
    }

    proptest::proptest! {
        #[test]
        fn any_exceptions_are_read(no in "[a-z0-9.:/,*\\[\\] ]{0,60}", host in "[a-z0-9.]{1,20}") {
            let set = proxies(&[("HTTPS_PROXY", "http://p:1"), ("NO_PROXY", &no)]).unwrap();
            if let Ok(url) = Url::parse(&format!("https://{host}/")) {
                let _ = set.for_url(&url);
            }
        }
    }
}
