//! HTTP clients by trust, and what is behind their errors.

use std::error::Error as _;
use std::time::Duration;

use super::answer::causes;
use super::hosts::Tls;
use super::proxy::ProxyUrl;
use super::{Config, Error, ErrorClass};

/// Connections are shared among requests that trust alike.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct Profile {
    /// With one client certificate at most.
    pub(super) tls: Tls,
    /// Longest time to connect.
    pub(super) dial_timeout: Duration,
    /// On the way.
    pub(super) proxy: Option<ProxyUrl>,
    /// Without TLS.
    pub(super) plain: bool,
}

/// Builds a client. Reads the system's certificates from disk.
pub(super) fn build(
    config: &Config,
    profile: &Profile,
    host: &str,
) -> Result<reqwest::Client, Error> {
    let wrong = |what: &str| Error::new(ErrorClass::Config, format!("{host}: {what}"));
    let mut builder = reqwest::Client::builder()
        .user_agent(config.user_agent.as_str())
        .redirect(reqwest::redirect::Policy::none())
        .referer(false)
        .connect_timeout(profile.dial_timeout)
        .pool_idle_timeout(Duration::from_secs(60))
        .pool_max_idle_per_host(config.max_per_host)
        .tcp_keepalive(Duration::from_secs(30));
    // The library's own reading of the environment is not Go's.
    builder = builder.no_proxy();
    if let Some(proxy) = &profile.proxy {
        let proxy = reqwest::Proxy::all(proxy.expose().clone())
            .map_err(|_| wrong("the proxy of the environment is not a URL that can be used"))?;
        builder = builder.proxy(proxy);
    }
    if profile.plain && !profile.proxy.as_ref().is_some_and(ProxyUrl::is_https) {
        // Not even the system's certificates are needed, and a node may have none.
        builder = builder.tls_certs_only([]);
    } else if profile.tls.skip_verify {
        builder = builder.tls_danger_accept_invalid_certs(true);
    } else {
        let mut authorities = Vec::new();
        for bundle in &profile.tls.authorities {
            let read = reqwest::Certificate::from_pem_bundle(bundle)
                .map_err(|_| wrong("the CA file is not a list of PEM certificates"))?;
            authorities.extend(read);
        }
        builder = builder.tls_certs_merge(authorities);
    }
    // Each profile has one at most.
    if let Some(identity) = profile.tls.identities.first() {
        let identity = reqwest::Identity::from_pem(identity).map_err(|_| {
            wrong("the client certificate and key are not PEM, or one of them is missing")
        })?;
        builder = builder.identity(identity);
    }
    builder.build().map_err(|error| {
        wrong(&format!(
            "the HTTP client cannot be built: {}; install the system's CA certificates, or name a file with SSL_CERT_FILE",
            causes(&error.without_url())
        ))
    })
}

/// The TLS error among the causes. `io::Error` hides what it holds from `source`, and is nested in itself.
pub(super) fn tls_cause(error: &reqwest::Error) -> Option<&rustls::Error> {
    let mut source = error.source();
    while let Some(cause) = source {
        let mut held: &(dyn std::error::Error + 'static) = cause;
        loop {
            if let Some(tls) = held.downcast_ref::<rustls::Error>() {
                return Some(tls);
            }
            match held
                .downcast_ref::<std::io::Error>()
                .and_then(std::io::Error::get_ref)
            {
                Some(inner) => held = inner,
                None => break,
            }
        }
        source = cause.source();
    }
    None
}

/// True where nobody listens or the way there is not known: then nothing was said that could be misunderstood.
pub(super) fn is_refused(error: &reqwest::Error) -> bool {
    use std::io::ErrorKind;
    let mut source = error.source();
    while let Some(cause) = source {
        if let Some(error) = cause.downcast_ref::<std::io::Error>()
            && matches!(
                error.kind(),
                ErrorKind::ConnectionRefused
                    | ErrorKind::HostUnreachable
                    | ErrorKind::NetworkUnreachable
            )
        {
            return true;
        }
        source = cause.source();
    }
    false
}
