//! Door: `/metrics`, `/livez` and `/readyz` over HTTP/1, for Prometheus and kubelet's probes.
//!
//! Reads readiness and the metric registry; changes nothing. Anything else is 404. One listener, bounded connections,
//! each with a limit on silence.

mod metrics;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::header::{ACCEPT, CACHE_CONTROL, CONTENT_TYPE};
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use prometheus_client::registry::Registry;

pub use metrics::Metrics;

use crate::lifecycle::{self, ConnectionLimits, Listener, Readiness, Shutdown};
use crate::telemetry::{self, TextForm};

/// Prometheus, kubelet's probes and a curious person.
const MAX_CONNECTIONS: usize = 32;
/// Between requests too: scrapers come back with a new connection.
const SILENCE: Duration = Duration::from_secs(10);
const LIMITS: ConnectionLimits = ConnectionLimits {
    first_bytes: 1,
    first_within: SILENCE,
    idle: Some(SILENCE),
};

/// The address cannot be had.
#[derive(Debug, thiserror::Error)]
#[error("{0}; give another --http, or an empty one for none")]
pub struct BindError(#[from] lifecycle::BindError);

/// The admin listener, bound and not serving yet.
#[derive(Debug)]
pub struct Admin {
    listener: Listener,
    address: SocketAddr,
}

#[derive(Clone, Debug)]
struct Shown {
    readiness: Readiness,
    metrics: Arc<Registry>,
}

impl Admin {
    /// Takes the address; port 0 is any free one.
    pub async fn bind(address: SocketAddr) -> Result<Self, BindError> {
        let listener = Listener::bind(address, LIMITS, MAX_CONNECTIONS).await?;
        let address = listener.address();
        Ok(Admin { listener, address })
    }
    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
    /// Serves until shutdown is asked for, and then what was begun.
    pub async fn serve(
        self,
        readiness: Readiness,
        metrics: Arc<Registry>,
        shutdown: Shutdown,
    ) -> std::io::Result<()> {
        let app = router(Shown { readiness, metrics });
        axum::serve(self.listener, app)
            .with_graceful_shutdown(async move { shutdown.wait().await })
            .await
    }
}

fn router(shown: Shown) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .with_state(shown)
}

/// An answer proves that the runtime still turns; nothing else counts, or a slow registry would restart the agent.
async fn livez() -> Response {
    plain(StatusCode::OK, "ok\n".to_owned())
}

async fn readyz(State(shown): State<Shown>, uri: Uri) -> Response {
    let state = shown.readiness.state();
    let verbose = uri.query().is_some_and(|query| {
        query
            .split('&')
            .any(|key| key == "verbose" || key.starts_with("verbose="))
    });
    let ready = state.iter().all(|(_, met)| *met);
    let status = if ready {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    let advised = shown.readiness.advised();
    plain(status, report(&state, &advised, ready, verbose))
}

/// As Kubernetes components write it.
fn report(state: &[(&str, bool)], advised: &[(&str, bool)], ready: bool, verbose: bool) -> String {
    if ready && !verbose {
        return "ok\n".to_owned();
    }
    let mut text = String::new();
    for (name, met) in state {
        let line = if *met {
            format!("[+]{name} ok\n")
        } else {
            format!("[-]{name} not ready\n")
        };
        text.push_str(&line);
    }
    for (name, met) in advised {
        let line = if *met {
            format!("[+]{name} ok\n")
        } else {
            format!("[!]{name} not ready, does not count\n")
        };
        text.push_str(&line);
    }
    text.push_str(if ready {
        "readyz check passed\n"
    } else {
        "readyz check failed\n"
    });
    text
}

async fn metrics(State(shown): State<Shown>, headers: HeaderMap) -> Response {
    let accept = headers.get(ACCEPT).and_then(|value| value.to_str().ok());
    let form = TextForm::accepted(accept.unwrap_or_default());
    match telemetry::encode(&shown.metrics, form) {
        Ok(text) => ([(CONTENT_TYPE, form.content_type())], text).into_response(),
        Err(error) => plain(
            StatusCode::INTERNAL_SERVER_ERROR,
            format!("metrics: {error}\n"),
        ),
    }
}

fn plain(status: StatusCode, text: String) -> Response {
    let headers = [
        (CONTENT_TYPE, "text/plain; charset=utf-8"),
        (CACHE_CONTROL, "no-store"),
    ];
    (status, headers, text).into_response()
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    use super::*;

    async fn ask(address: SocketAddr, path: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request =
            format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn answers_probes_and_scrapes() {
        let admin = Admin::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = admin.address();
        let readiness = Readiness::new();
        let store = readiness.check("store");
        let shutdown = Shutdown::new();
        let metrics = Arc::new(telemetry::registry("1.2.3"));
        let server = tokio::spawn(admin.serve(readiness, metrics, shutdown.clone()));

        assert!(ask(address, "/livez").await.starts_with("HTTP/1.1 200"));
        let answer = ask(address, "/readyz").await;
        assert!(
            answer.starts_with("HTTP/1.1 503") && answer.contains("[-]store not ready"),
            "{answer}"
        );
        store.set(true);
        let answer = ask(address, "/readyz").await;
        assert!(
            answer.starts_with("HTTP/1.1 200") && answer.ends_with("\r\n\r\nok\n"),
            "{answer}"
        );
        let answer = ask(address, "/readyz?verbose").await;
        assert!(
            answer.contains("[+]store ok\nreadyz check passed"),
            "{answer}"
        );
        let answer = ask(address, "/metrics").await;
        assert!(
            answer.contains("content-type: text/plain; version=0.0.4"),
            "{answer}"
        );
        let accept = "/metrics HTTP/1.1\r\nAccept: application/openmetrics-text\r\nX: ";
        let answer = ask(address, accept).await;
        assert!(
            answer.contains("content-type: application/openmetrics-text; version=1.0.0"),
            "{answer}"
        );
        assert!(answer.ends_with("# EOF\n"), "{answer}");
        assert!(ask(address, "/").await.starts_with("HTTP/1.1 404"));

        // A peer that never speaks does not hold up the end.
        let _silent = TcpStream::connect(address).await.unwrap();
        shutdown.request();
        tokio::time::timeout(std::time::Duration::from_secs(30), server)
            .await
            .unwrap()
            .unwrap()
            .unwrap();
    }

    #[tokio::test]
    async fn a_taken_address_is_named() {
        let first = Admin::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let error = Admin::bind(first.address()).await.unwrap_err();
        assert!(
            error.to_string().contains(&first.address().to_string()),
            "{error}"
        );
    }
}
