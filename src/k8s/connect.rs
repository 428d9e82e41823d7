//! A client of the API server, from a kubeconfig file or from inside the cluster, and who it is there.
//!
//! Owns user agent, timeouts and re-reading of credentials. Never retries: who calls knows what waiting costs.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::header::USER_AGENT;
use http::{Request, StatusCode};
use k8s_openapi::api::authentication::v1::SelfSubjectReview;
use kube::api::{Api, PostParams};
use kube::client::Body;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use tokio::time::Instant;

/// Of TCP and TLS.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Of one request that is no watch.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// Credentials are read again at most so often.
const RENEW_PAUSE: Duration = Duration::from_secs(20);
/// Claims of a bound token.
const NODE_NAME: &str = "authentication.kubernetes.io/node-name";
/// User names of kubelets.
const KUBELET: &str = "system:node:";

/// Where address and credentials of the API server are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ApiServer {
    /// A kubeconfig file; the kubelet's works too.
    Kubeconfig(PathBuf),
    /// The pod's service account.
    InCluster,
    /// As kubectl finds it: the file, else `KUBECONFIG`, else `~/.kube/config`; and the context, else its current one.
    Person {
        /// `--kubeconfig`.
        kubeconfig: Option<PathBuf>,
        /// `--context`.
        context: Option<String>,
    },
}

/// No client can be made.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The file is absent, unreadable or malformed.
    #[error("kubeconfig {}: {source}", path.display())]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: Box<kube::config::KubeconfigError>,
    },
    /// There is no service account.
    #[error("service account of this pod: {0}; outside a cluster give --kubeconfig")]
    InCluster(Box<kube::config::InClusterError>),
    /// The settings make no client.
    #[error("client of the API server: {0}")]
    Client(Box<kube::Error>),
}

/// A client, and the way to a new one: certificates and static tokens are read once by a client, while kubelets rotate
/// theirs; and a kubeconfig may not be there yet when a node starts.
#[derive(Debug)]
pub struct Connection {
    server: ApiServer,
    role: &'static str,
    current: Mutex<Current>,
}

struct Current {
    client: Option<Client>,
    tried: Option<Instant>,
}

impl std::fmt::Debug for Current {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Current")
            .field("client", &self.client.is_some())
            .field("tried", &self.tried)
            .finish()
    }
}

impl Connection {
    /// Reads and connects to nothing yet. `role` goes into the user agent: `larder-agent/0.1.0`.
    pub fn new(server: ApiServer, role: &'static str) -> Self {
        Connection {
            server,
            role,
            current: Mutex::new(Current {
                client: None,
                tried: None,
            }),
        }
    }

    /// A connection around a client that exists: for tests and harnesses. It is never renewed.
    pub fn of_client(client: Client) -> Self {
        let connection = Connection::new(ApiServer::InCluster, "");
        connection.lock().client = Some(client);
        connection
    }

    /// The client of the moment; made where there is none. What is wrong with the settings is an error of the service,
    /// as an API server that is away is one: both may mend.
    pub async fn client(&self) -> Result<Client, kube::Error> {
        if let Some(client) = self.lock().client.clone() {
            return Ok(client);
        }
        self.make()
            .await
            .map_err(|error| kube::Error::Service(Box::new(error)))
    }

    /// A client for good: each request goes through the client of the moment, and a refusal of the credentials (401) has
    /// the settings read again.
    pub fn steady(self: Arc<Self>) -> Client {
        let service = tower::service_fn(move |request: Request<Body>| {
            let connection = Arc::clone(&self);
            async move {
                let answer = connection.client().await?.send(request).await?;
                if answer.status() == StatusCode::UNAUTHORIZED
                    && let Err(error) = connection.renew().await
                {
                    tracing::warn!(err = %error, "Credentials were not read again");
                }
                Ok::<_, kube::Error>(answer)
            }
        });
        Client::new(service, "default")
    }

    /// Reads the settings again, after the server refused the credentials (401). Often asked, it does so now and then.
    pub async fn renew(&self) -> Result<(), ConnectError> {
        let early = self
            .lock()
            .tried
            .is_some_and(|tried| tried.elapsed() < RENEW_PAUSE);
        if self.role.is_empty() || early {
            return Ok(());
        }
        self.make().await.map(drop)
    }

    async fn make(&self) -> Result<Client, ConnectError> {
        self.lock().tried = Some(Instant::now());
        let client = client(&self.server, self.role).await?;
        self.lock().client = Some(client.clone());
        Ok(client)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Current> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn client(server: &ApiServer, role: &str) -> Result<Client, ConnectError> {
    let mut config = match server {
        ApiServer::InCluster => {
            Config::incluster().map_err(|error| ConnectError::InCluster(Box::new(error)))?
        }
        ApiServer::Kubeconfig(path) => {
            let fault = |source| ConnectError::Kubeconfig {
                path: path.clone(),
                source: Box::new(source),
            };
            let file = Kubeconfig::read_from(path).map_err(fault)?;
            Config::from_custom_kubeconfig(file, &KubeConfigOptions::default())
                .await
                .map_err(fault)?
        }
        ApiServer::Person {
            kubeconfig,
            context,
        } => person(kubeconfig.as_deref(), context.clone()).await?,
    };
    config.connect_timeout = Some(CONNECT_TIMEOUT);
    // Our own backoff knows how many nodes there are.
    config.default_retry = false;
    let agent = format!("{role}/{}", env!("CARGO_PKG_VERSION"));
    if let Ok(value) = agent.parse() {
        config.headers.push((USER_AGENT, value));
    }
    Client::try_from(config).map_err(|error| ConnectError::Client(Box::new(error)))
}

async fn person(
    kubeconfig: Option<&std::path::Path>,
    context: Option<String>,
) -> Result<Config, ConnectError> {
    let path = || match (kubeconfig, std::env::var_os("KUBECONFIG")) {
        (Some(path), _) => path.to_owned(),
        (None, Some(paths)) => paths.into(),
        (None, None) => PathBuf::from("~/.kube/config"),
    };
    let fault = |source| ConnectError::Kubeconfig {
        path: path(),
        source: Box::new(source),
    };
    let options = KubeConfigOptions {
        context,
        ..KubeConfigOptions::default()
    };
    match kubeconfig {
        Some(path) => {
            let file = Kubeconfig::read_from(path).map_err(fault)?;
            Config::from_custom_kubeconfig(file, &options).await
        }
        None => Config::from_kubeconfig(&options).await,
    }
    .map_err(fault)
}

/// Who the API server takes this process for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// User name.
    pub user: String,
    /// The node that the credentials are bound to, if they are.
    pub node: Option<String>,
}

impl Identity {
    /// Asks the API server.
    pub async fn ask(client: &Client) -> Result<Self, kube::Error> {
        let api: Api<SelfSubjectReview> = Api::all(client.clone());
        let review = api
            .create(&PostParams::default(), &SelfSubjectReview::default())
            .await?;
        let info = review
            .status
            .and_then(|status| status.user_info)
            .unwrap_or_default();
        let user = info.username.unwrap_or_default();
        let claim = info
            .extra
            .and_then(|extra| extra.get(NODE_NAME)?.first().cloned());
        let node = user.strip_prefix(KUBELET).map(str::to_owned).or(claim);
        Ok(Identity { user, node })
    }

    /// What is wrong with it for the agent of a node, in words; `None` where nothing is.
    pub fn fault(&self, node: &str) -> Option<String> {
        match &self.node {
            Some(bound) if bound == node => None,
            Some(bound) => Some(format!(
                "token names node {bound}, expected {node}: give --node-name {bound}, or this node's own credentials"
            )),
            None => Some(format!(
                "token of {} names no node, expected {node}: its reports are refused where the admission policy is \
                 installed; use a token bound to this Node, or to a Pod on it",
                self.user
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_says_what_is_wrong_with_it() {
        let of = |node: Option<&str>| Identity {
            user: "system:serviceaccount:larder:larder-agent".to_owned(),
            node: node.map(str::to_owned),
        };
        assert_eq!(of(Some("a")).fault("a"), None);
        assert!(
            of(Some("b"))
                .fault("a")
                .unwrap()
                .starts_with("token names node b, expected a")
        );
        assert!(of(None).fault("a").unwrap().contains("names no node"));
    }

    #[tokio::test]
    async fn a_wrong_kubeconfig_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config");
        let server = ApiServer::Kubeconfig(path.clone());
        let connection = Connection::new(server, "larder-agent");
        let error = connection.client().await.err().unwrap();
        assert!(
            error.to_string().contains(path.to_str().unwrap()),
            "{error}"
        );
        std::fs::write(&path, "apiVersion: v1\nkind: Config\nclusters: 5\n").unwrap();
        let error = connection.client().await.err().unwrap();
        assert!(
            error.to_string().contains(path.to_str().unwrap()),
            "{error}"
        );
        // As soon as it is there and right, it counts.
        let config = "apiVersion: v1\nkind: Config\ncurrent-context: a\n\
                      contexts: [{name: a, context: {cluster: a, user: a}}]\nusers: [{name: a, user: {token: t}}]\n\
                      clusters: [{name: a, cluster: {server: 'http://127.0.0.1:1'}}]\n";
        std::fs::write(&path, config).unwrap();
        assert!(connection.client().await.is_ok());
    }
}
