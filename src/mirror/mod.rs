//! Door: the read half of the OCI distribution API over HTTP/1, on loopback, for the container runtimes of this node
//! (OCI distribution-spec v1.1, "Pull"; containerd `docs/hosts.md`).
//!
//! Which registry is meant is said by `?ns=`, as containerd does, or by the first part of the path, as for podman and
//! CRI-O (`127.0.0.1:9641/quay.io/org/app`); without either it is Docker Hub. Pushes nothing, lists nothing, decides
//! nothing about access: what the registry refuses to the credentials that were shown, is refused here.

mod answer;
mod metrics;
mod range;
mod route;

use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::Method;
use axum::response::Response;

use crate::cache::{Asked, Relay};
use crate::lifecycle::{self, ConnectionLimits, Listener, Shutdown};

pub use metrics::Metrics;

use metrics::Kind;
use route::{Route, Subject};

/// Runtimes open a few for each pull; more wait.
const MAX_CONNECTIONS: usize = 256;
const LIMITS: ConnectionLimits = ConnectionLimits {
    first_bytes: 1,
    first_within: Duration::from_secs(10),
    // A transfer is silence on the asking side: this is for a blob of many gigabytes over a slow line.
    idle: Some(Duration::from_secs(60 * 60)),
};

/// The address cannot be had.
#[derive(Debug, thiserror::Error)]
#[error("{0}; give another --mirror, or an empty one for none")]
pub struct BindError(#[from] lifecycle::BindError);

/// The mirror, bound and not serving yet.
#[derive(Debug)]
pub struct Mirror {
    listener: Listener,
}

#[derive(Clone, Debug)]
struct Served {
    relay: Relay,
    metrics: Metrics,
}

impl Mirror {
    /// Takes the address; port 0 is any free one.
    pub async fn bind(address: SocketAddr) -> Result<Self, BindError> {
        let listener = Listener::bind(address, LIMITS, MAX_CONNECTIONS).await?;
        Ok(Mirror { listener })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.listener.address()
    }

    /// Serves until shutdown is asked for, and then what was begun.
    pub async fn serve(
        self,
        relay: Relay,
        metrics: Metrics,
        shutdown: Shutdown,
    ) -> std::io::Result<()> {
        let app = Router::new()
            .fallback(serve)
            .with_state(Served { relay, metrics });
        axum::serve(self.listener, app)
            .with_graceful_shutdown(async move { shutdown.wait().await })
            .await
    }
}

async fn serve(State(served): State<Served>, request: Request) -> Response {
    let (request, _) = request.into_parts();
    let with_body = match request.method {
        Method::GET => true,
        Method::HEAD => false,
        _ => return served.count(Kind::Other, answer::only_reads()),
    };
    let route = match Route::of(&request.uri) {
        Ok(route) => route,
        Err(fault) => return served.count(Kind::Other, answer::fault(&fault)),
    };
    let (subject, reference) = match route {
        Route::Version => return served.count(Kind::Other, answer::version()),
        Route::Content(subject, reference) => (subject, reference),
    };
    let header = |name| request.headers.get(name)?.to_str().ok();
    let credentials = match route::credentials(header("authorization")) {
        Ok(credentials) => credentials,
        Err(fault) => return served.count(Kind::Other, answer::fault(&fault)),
    };
    let asked = Asked {
        reference,
        credentials,
        traceparent: header("traceparent").map(str::to_owned),
    };
    match subject {
        Subject::Manifest => {
            let manifest = served.relay.manifest(&asked, with_body).await;
            let answer = match manifest {
                Ok(manifest) => answer::manifest(manifest),
                Err(error) => answer::error(&asked, subject, &error),
            };
            served.count(Kind::Manifest, answer)
        }
        Subject::Blob => {
            let answer = served.blob(&asked, with_body, header("range")).await;
            let answer = answer.unwrap_or_else(|error| answer::error(&asked, subject, &error));
            served.count(Kind::Blob, answer)
        }
    }
}

impl Served {
    async fn blob(
        &self,
        asked: &Asked,
        with_body: bool,
        wanted: Option<&str>,
    ) -> Result<Response, std::sync::Arc<crate::cache::Error>> {
        let grant = self.relay.blob(asked, with_body).await?;
        let size = grant.size();
        let part = range::wanted(wanted, size);
        if !with_body {
            return Ok(answer::blob_head(asked, size));
        }
        let (first, end) = match part {
            range::Part::Whole => (0, size),
            range::Part::Some { first, end } => (first, end),
            range::Part::None => return Ok(answer::no_such_part(size)),
        };
        let relayed = self.relay.read(asked, grant, first, end).await?;
        Ok(answer::blob(asked, relayed, part, self.metrics.clone()))
    }

    fn count(&self, kind: Kind, answer: Response) -> Response {
        self.metrics.answered(kind, answer.status());
        answer
    }
}
