//! The objects of a cluster, read page by page.

use std::fmt::Debug;

use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::api::{Api, ListParams};
use kube::{Client, Resource};
use serde::de::DeserializeOwned;

use super::Globals;
use crate::cli::failure::Failure;
use crate::k8s::api::{
    ClusterImagePrepull, ImagePrepull, ImagePrunePolicy, NodeImageCache, PrepullStatus,
    SharedPrepullSpec,
};
use crate::k8s::connect::{ApiServer, Connection};

/// Objects in one answer.
const PAGE: u32 = 500;
/// Pages of one list: more objects than any limit of larder allows.
const MAX_PAGES: usize = 40;

/// A client of the API server.
pub(super) struct Objects {
    pub(super) client: Client,
    namespace: Option<String>,
}

/// What both kinds of prepull have.
#[derive(Clone, Debug)]
pub(super) struct Prepull {
    /// `clusterimageprepull/base`, as kubectl takes it; `imageprepull/team/base` has its namespace, too.
    pub(super) name: String,
    pub(super) uid: String,
    pub(super) generation: i64,
    pub(super) spec: SharedPrepullSpec,
    pub(super) status: PrepullStatus,
}

impl Objects {
    pub(super) async fn connect(globals: &Globals) -> Result<Self, Failure> {
        let server = ApiServer::Person {
            kubeconfig: globals.kubeconfig.clone(),
            context: globals.context.clone(),
        };
        let client = Connection::new(server, "kubectl-larder")
            .client()
            .await
            .map_err(|error| Failure::new(cause(&error)))?;
        Ok(Objects {
            client,
            namespace: globals.namespace.clone(),
        })
    }

    /// All prepulls, of one namespace where one was named; those of the cluster first, by name.
    pub(super) async fn prepulls(&self) -> Result<Vec<Prepull>, Failure> {
        let cluster: Api<ClusterImagePrepull> = Api::all(self.client.clone());
        let namespaced: Api<ImagePrepull> = match &self.namespace {
            Some(namespace) => Api::namespaced(self.client.clone(), namespace),
            None => Api::all(self.client.clone()),
        };
        let (cluster, namespaced) =
            tokio::try_join!(list(&cluster, None), list(&namespaced, None))?;
        let cluster = cluster.into_iter().map(|object| Prepull {
            name: format!(
                "clusterimageprepull/{}",
                object.metadata.name.unwrap_or_default()
            ),
            uid: object.metadata.uid.unwrap_or_default(),
            generation: object.metadata.generation.unwrap_or_default(),
            spec: object.spec.shared,
            status: object.status.unwrap_or_default(),
        });
        let namespaced = namespaced.into_iter().map(|object| Prepull {
            name: format!(
                "imageprepull/{}/{}",
                object.metadata.namespace.unwrap_or_default(),
                object.metadata.name.unwrap_or_default()
            ),
            uid: object.metadata.uid.unwrap_or_default(),
            generation: object.metadata.generation.unwrap_or_default(),
            spec: object.spec.shared,
            status: object.status.unwrap_or_default(),
        });
        let mut all: Vec<_> = cluster.chain(namespaced).collect();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(all)
    }

    pub(super) async fn policies(&self) -> Result<Vec<ImagePrunePolicy>, Failure> {
        list(&Api::all(self.client.clone()), None).await
    }

    /// What nodes report, by name.
    pub(super) async fn caches(&self) -> Result<Vec<NodeImageCache>, Failure> {
        list(&Api::all(self.client.clone()), None).await
    }

    pub(super) async fn cache(&self, node: &str) -> Result<Option<NodeImageCache>, Failure> {
        let api: Api<NodeImageCache> = Api::all(self.client.clone());
        api.get_opt(node).await.map_err(|error| fault(&error))
    }

    pub(super) async fn node(&self, name: &str) -> Result<Option<Node>, Failure> {
        let api: Api<Node> = Api::all(self.client.clone());
        api.get_opt(name).await.map_err(|error| fault(&error))
    }

    /// Names of the nodes that a label selector chooses.
    pub(super) async fn nodes(&self, selector: &str) -> Result<Vec<String>, Failure> {
        let api: Api<Node> = Api::all(self.client.clone());
        let nodes = list(&api, Some(selector)).await?;
        Ok(nodes
            .into_iter()
            .filter_map(|node| node.metadata.name)
            .collect())
    }
}

/// The condition of a type, where it has that status.
pub(super) fn find_condition<'a>(
    conditions: &'a [Condition],
    type_: &str,
    status: &str,
) -> Option<&'a Condition> {
    conditions
        .iter()
        .find(|condition| condition.type_ == type_ && condition.status == status)
}

/// A whole list, page by page.
pub(super) async fn list<K>(api: &Api<K>, labels: Option<&str>) -> Result<Vec<K>, Failure>
where
    K: Resource + Clone + Debug + DeserializeOwned,
{
    let mut params = ListParams::default().limit(PAGE);
    params.label_selector = labels.map(str::to_owned);
    let mut found = Vec::new();
    for _ in 0..MAX_PAGES {
        let page = api.list(&params).await.map_err(|error| fault(&error))?;
        found.extend(page.items);
        match page.metadata.continue_ {
            Some(token) if !token.is_empty() => params.continue_token = Some(token),
            _ => break,
        }
    }
    Ok(found)
}

/// What the API server answered, or why it did not, for people.
pub(super) fn fault(error: &kube::Error) -> Failure {
    match error {
        kube::Error::Api(status) if status.code == 404 => Failure::not_found(format!(
            "{}; is larder installed? (kubectl apply -k manifests/base)",
            status.message.trim_end()
        )),
        kube::Error::Api(status) => Failure::new(status.message.trim_end()),
        error => Failure::new(format!("API server: {}", cause(error))),
    }
}

/// The innermost cause says most.
fn cause(error: &dyn std::error::Error) -> String {
    let mut last = error;
    while let Some(source) = last.source() {
        last = source;
    }
    last.to_string()
}
