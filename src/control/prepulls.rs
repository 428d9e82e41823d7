//! `larder.v1.Prepulls`: what is held because somebody declared it. The answer is made by whoever knows; this door only
//! hands it out.

use std::sync::Arc;

use tonic::{Request, Response, Status};

use super::proto::prepulls_server::{self, PrepullsServer};
use super::proto::{StatusRequest, StatusResponse};

/// Makes the answer of the moment. Quick: it is called on the server's threads.
pub type StatusSource = Arc<dyn Fn() -> StatusResponse + Send + Sync>;

/// The service.
#[derive(Clone)]
pub struct Prepulls {
    source: Option<StatusSource>,
}

impl std::fmt::Debug for Prepulls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Prepulls")
            .field("source", &self.source.is_some())
            .finish()
    }
}

/// The gRPC service. Without a source nothing is declared here, and the answer says so.
pub fn prepulls_server(source: Option<StatusSource>) -> PrepullsServer<Prepulls> {
    PrepullsServer::new(Prepulls { source })
}

#[tonic::async_trait]
impl prepulls_server::Prepulls for Prepulls {
    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        match &self.source {
            Some(source) => Ok(Response::new(source())),
            None => Err(Status::failed_precondition(
                "this agent follows neither an API server nor manifests: start it with --kubeconfig or --manifests",
            )),
        }
    }
}
