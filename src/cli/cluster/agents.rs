//! Questions to the agents of chosen nodes, over a port-forward to each one's pod.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::api::Api;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tonic::transport::Channel;

use super::Globals;
use super::objects::{Objects, fault, list};
use crate::cli::client::channel;
use crate::cli::failure::Failure;

/// Labels of the agents' pods.
const AGENTS: &str = "app.kubernetes.io/part-of=larder,app.kubernetes.io/component=agent";
/// Where an agent in a pod answers questions: on the pod's own loopback.
const PORT: u16 = 9642;
/// Asked at once.
const AT_ONCE: usize = 8;
/// Of one agent.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);

/// Which agents are asked.
#[derive(Debug, clap::Args)]
pub(super) struct Chosen {
    /// The agent of this node; may be repeated
    #[arg(long, value_name = "NAME")]
    pub(super) node: Vec<String>,
    /// Agents of nodes with these labels
    #[arg(short = 'l', long, value_name = "SELECTOR", conflicts_with = "node")]
    pub(super) selector: Option<String>,
    /// Ask no more agents than this
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..))]
    pub(super) max_agents: u32,
}

/// What an agent said, or why it said nothing.
pub(super) struct Answer<T> {
    pub(super) node: String,
    pub(super) result: Result<T, String>,
}

/// Asks the chosen agents the same question, a few at a time; answers are by node. What was left out is said on standard
/// error.
pub(super) async fn ask<T, F>(
    objects: &Objects,
    globals: &Globals,
    chosen: &Chosen,
    question: impl Fn(Channel) -> F + Clone + Send + 'static,
) -> Result<Vec<Answer<T>>, Failure>
where
    T: Send + 'static,
    F: Future<Output = Result<T, tonic::Status>> + Send,
{
    let pods: Api<Pod> = Api::namespaced(objects.client.clone(), &globals.larder_namespace);
    let mut agents: Vec<(String, String)> = list(&pods, Some(AGENTS))
        .await?
        .into_iter()
        .filter_map(|pod| {
            let running = pod.status.as_ref()?.phase.as_deref() == Some("Running");
            let node = pod.spec?.node_name.filter(|_| running)?;
            Some((node, pod.metadata.name?))
        })
        .collect();
    agents.sort();
    if agents.is_empty() {
        return Err(Failure::not_found(format!(
            "no agent runs as a pod in namespace {}: name the one larder is installed in with --larder-namespace; agents that run as a systemd unit are asked on their node, with larder",
            globals.larder_namespace
        )));
    }
    if let Some(selector) = &chosen.selector {
        let nodes: BTreeSet<_> = objects.nodes(selector).await?.into_iter().collect();
        agents.retain(|(node, _)| nodes.contains(node));
    }
    for node in &chosen.node {
        if !agents.iter().any(|(with, _)| with == node) {
            return Err(Failure::not_found(format!(
                "no agent runs on node {node}: kubectl -n {} get pods -o wide -l {AGENTS}",
                globals.larder_namespace
            )));
        }
    }
    if !chosen.node.is_empty() {
        agents.retain(|(node, _)| chosen.node.contains(node));
    }
    let most = usize::try_from(chosen.max_agents).unwrap_or(usize::MAX);
    if agents.len() > most {
        eprintln!(
            "kubectl larder: asking {most} of {} agents; choose some with --node or -l, or raise --max-agents",
            agents.len()
        );
        agents.truncate(most);
    }
    let turns = Arc::new(Semaphore::new(AT_ONCE));
    let mut asked = JoinSet::new();
    for (node, pod) in agents {
        let (turns, pods, question) = (turns.clone(), pods.clone(), question.clone());
        asked.spawn(async move {
            let _turn = turns.acquire().await;
            let answer = timeout(ANSWER_TIMEOUT, one(&pods, &pod, question)).await;
            let result = answer.unwrap_or_else(|_| Err("no answer in time".to_owned()));
            Answer { node, result }
        });
    }
    let mut answers = asked.join_all().await;
    answers.sort_by(|a, b| a.node.cmp(&b.node));
    Ok(answers)
}

async fn one<T, F>(
    pods: &Api<Pod>,
    pod: &str,
    question: impl FnOnce(Channel) -> F,
) -> Result<T, String>
where
    F: Future<Output = Result<T, tonic::Status>>,
{
    let mut forward = pods
        .portforward(pod, &[PORT])
        .await
        .map_err(|error| fault(&error).to_string())?;
    let stream = forward
        .take_stream(PORT)
        .ok_or("the API server opened no stream")?;
    let channel = channel(stream).await?;
    question(channel)
        .await
        .map_err(|status| match status.message() {
            "" => status.code().to_string(),
            message => message.to_owned(),
        })
}

/// Those that did not answer, on standard error; what did.
pub(super) fn answered<T>(answers: Vec<Answer<T>>) -> Result<Vec<(String, T)>, Failure> {
    let mut found = Vec::new();
    let mut silent = 0;
    for Answer { node, result } in answers {
        match result {
            Ok(answer) => found.push((node, answer)),
            Err(cause) => {
                silent += 1;
                eprintln!("kubectl larder: {node}: {cause}");
            }
        }
    }
    if found.is_empty() && silent > 0 {
        return Err(Failure::new("no agent answered"));
    }
    Ok(found)
}
