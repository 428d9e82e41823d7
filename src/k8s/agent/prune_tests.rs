//! The pruner against a node that only pretends to have images.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Semaphore;

use super::super::seam::BoxFuture;
use super::*;
use crate::k8s::api::{ALL, ImagePrunePolicy, PruneState};
use crate::prune::{Part, Protection};

/// A node.
struct Pretended {
    images: Mutex<Vec<Candidate>>,
    fault: Mutex<Option<PruneFault>>,
    reserved: AtomicU64,
    /// Removals that may go ahead.
    leave: Semaphore,
}

impl Pretended {
    fn new(images: Vec<Candidate>) -> Arc<Self> {
        Arc::new(Pretended {
            images: Mutex::new(images),
            fault: Mutex::new(None),
            reserved: AtomicU64::new(0),
            leave: Semaphore::new(1000),
        })
    }

    fn ids(&self) -> Vec<String> {
        let images = self.images.lock().unwrap();
        images.iter().map(|image| image.id.clone()).collect()
    }
}

impl Pruning for Pretended {
    fn candidates(&self) -> BoxFuture<'_, Result<(Vec<Candidate>, Disk), PruneFault>> {
        Box::pin(async {
            if let Some(fault) = self.fault.lock().unwrap().clone() {
                return Err(fault);
            }
            let images = self.images.lock().unwrap().clone();
            let used: u64 = images.iter().map(|image| image.own_bytes).sum();
            let disk = Disk {
                capacity: 1000,
                available: 1000 - used,
                images: used,
            };
            Ok((images, disk))
        })
    }

    fn remove(&self, id: String) -> BoxFuture<'_, Result<Option<u64>, PruneFault>> {
        Box::pin(async move {
            self.leave.acquire().await.unwrap().forget();
            let mut images = self.images.lock().unwrap();
            let place = images.iter().position(|image| image.id == id);
            match place {
                Some(place) if images[place].protections.is_empty() => {
                    Ok(Some(images.remove(place).own_bytes))
                }
                _ => Ok(None),
            }
        })
    }

    fn reserve(&self, bytes: u64) {
        self.reserved.store(bytes, Ordering::Relaxed);
    }
}

/// An image of 100 bytes, pulled so many hours ago.
fn image(id: &str, hours: i64) -> Candidate {
    Candidate {
        id: id.to_owned(),
        names: vec![format!("r.io/{id}:1")],
        own_bytes: 100,
        layers: vec![Part {
            id: id.to_owned(),
            bytes: 0,
        }],
        pulled_at: Timestamp::from_second(Timestamp::now().as_second() - hours * 3600).unwrap(),
        ..Candidate::default()
    }
}

fn policy(name: &str, spec: &str, admitted: u64) -> PrunePolicy {
    let object = |status: &str| -> ImagePrunePolicy {
        serde_saphyr::from_str(&format!(
            "apiVersion: larder.dev/v1alpha1\nkind: ImagePrunePolicy\nmetadata: {{name: {name}, uid: uid-{name}, \
             generation: 1}}\nspec: {spec}\n{status}"
        ))
        .unwrap()
    };
    let revision = object("").spec.revision();
    PrunePolicy::of_api(&object(&format!(
        "status: {{rollout: {{revision: {revision}, observedGeneration: 1, admitted: {admitted}}}}}"
    )))
}

fn input(policies: &[PrunePolicy]) -> Arc<Input> {
    Arc::new(Input {
        node: "node".to_owned(),
        policies: policies.to_vec(),
        settled: true,
        ..Input::default()
    })
}

struct Running {
    inputs: watch::Sender<Arc<Input>>,
    messages: mpsc::Receiver<Message>,
    _task: tokio_util::task::AbortOnDropHandle<()>,
}

impl Running {
    fn start(node: &Arc<Pretended>, dir: &tempfile::TempDir, first: Arc<Input>) -> Self {
        let (inputs, read) = watch::channel(first);
        let (to, messages) = mpsc::channel(64);
        let pruner = Pruner {
            pruning: node.clone(),
            state: StateFile::new(dir.path().join("prunes.json")),
            timing: PruneTiming {
                settle: Duration::from_millis(10),
                apart: Duration::from_millis(20),
                most: Duration::from_millis(100),
            },
            metrics: Metrics::default(),
        };
        let task = tokio::spawn(pruner.run(read, Message::Pruned, to));
        Running {
            inputs,
            messages,
            _task: tokio_util::task::AbortOnDropHandle::new(task),
        }
    }

    /// Waits until something is told.
    async fn told(&mut self, wanted: impl Fn(&Output) -> bool) -> Output {
        let waiting = async {
            loop {
                match self.messages.recv().await.unwrap() {
                    Message::Pruned(output) if wanted(&output) => return (*output).clone(),
                    _ => {}
                }
            }
        };
        timeout(Duration::from_secs(60), waiting).await.unwrap()
    }
}

fn done(output: &Output) -> bool {
    !output.reports.is_empty()
        && output
            .reports
            .iter()
            .all(|told| told.report.state == PruneState::Done)
}

const OLD: &str = "{mode: Enforce, rules: [{unusedFor: 24h}]}";

#[tokio::test]
async fn what_is_old_goes_and_is_reported() {
    let dir = tempfile::tempdir().unwrap();
    let mut used = image("used", 48);
    used.protections.push(Protection::Mounted);
    let node = Pretended::new(vec![image("old", 48), used, image("new", 1)]);
    let spec = "{mode: Enforce, rules: [{unusedFor: 24h, reserved: 10%}]}";
    let mut running = Running::start(&node, &dir, input(&[policy("p", spec, ALL)]));
    let output = running.told(done).await;
    let report = &output.reports[0].report;
    assert_eq!((report.removed_images, report.freed_bytes), (1, 100));
    assert_eq!(report.top[0].image, "r.io/old:1");
    assert_eq!(report.top[0].rule, "unusedFor 24h, reserved 10%");
    assert!(report.last_run_time.is_some());
    assert!(output.ready.unwrap().met);
    assert_eq!(node.ids(), ["used", "new"]);
    assert_eq!(node.reserved.load(Ordering::Relaxed), 100);
    // No policy, no band.
    running.inputs.send_replace(input(&[]));
    running.told(|output| output.reports.is_empty()).await;
    assert_eq!(node.reserved.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn a_dry_run_and_a_node_that_waits_remove_nothing_and_say_what_would_go() {
    let dir = tempfile::tempdir().unwrap();
    let node = Pretended::new(vec![image("a", 48), image("b", 30)]);
    let dry = policy("dry", "{rules: [{unusedFor: 24h}]}", ALL);
    let waits = policy("waits", OLD, 0);
    let mut running = Running::start(&node, &dir, input(&[dry.clone(), waits]));
    let told = |output: &Output| {
        output.reports.len() == 2
            && output
                .reports
                .iter()
                .all(|told| told.report.would_remove_images == 2)
    };
    let output = running.told(told).await;
    let states: Vec<PruneState> = output
        .reports
        .iter()
        .map(|told| told.report.state)
        .collect();
    assert_eq!(states, [PruneState::Done, PruneState::Pending]);
    assert_eq!(output.reports[1].report.would_free_bytes, 200);
    assert_eq!(node.ids().len(), 2);
    // Its turn.
    running
        .inputs
        .send_replace(input(&[dry, policy("waits", OLD, ALL)]));
    let output = running.told(done).await;
    assert_eq!(output.reports[1].report.removed_images, 2);
    assert_eq!(node.ids().len(), 0);
}

#[tokio::test]
async fn while_it_is_not_known_what_is_used_or_declared_nothing_goes() {
    let dir = tempfile::tempdir().unwrap();
    let node = Pretended::new(vec![image("old", 48)]);
    *node.fault.lock().unwrap() = Some(PruneFault {
        reason: reason::RUNTIME_UNAVAILABLE,
        message: "/run/containerd.sock: connection refused".to_owned(),
    });
    let unsettled = Arc::new(Input {
        settled: false,
        ..(*input(&[policy("p", OLD, ALL)])).clone()
    });
    let mut running = Running::start(&node, &dir, unsettled);
    running.told(|output| output.ready.is_none()).await;
    running.inputs.send_replace(input(&[policy("p", OLD, ALL)]));
    let output = running
        .told(|output| output.ready.as_ref().is_some_and(|ready| !ready.met))
        .await;
    let report = &output.reports[0].report;
    assert_eq!(report.state, PruneState::Failed);
    assert_eq!(report.reason, reason::RUNTIME_UNAVAILABLE);
    assert!(report.message.contains("containerd.sock"));
    assert_eq!(node.ids(), ["old"]);
    *node.fault.lock().unwrap() = None;
    let output = running.told(done).await;
    assert!(output.ready.unwrap().met);
    assert_eq!(node.ids().len(), 0);
}

#[tokio::test]
async fn a_policy_that_is_taken_back_stops_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let node = Pretended::new((0..5).map(|n| image(&n.to_string(), 48 + n)).collect());
    // One removal, and no other before the policy is gone.
    node.leave.forget_permits(999);
    let mut running = Running::start(&node, &dir, input(&[policy("p", OLD, ALL)]));
    while node.ids().len() == 5 {
        tokio::task::yield_now().await;
    }
    running
        .inputs
        .send_replace(input(&[policy("p", "{rules: [{unusedFor: 24h}]}", ALL)]));
    node.leave.add_permits(1);
    let output = running.told(done).await;
    // At most the one that was under way.
    assert!(node.ids().len() >= 3, "{:?}", node.ids());
    let report = &output.reports[0].report;
    assert_eq!(report.would_remove_images, node.ids().len() as i64);
}

#[tokio::test]
async fn a_limit_holds_for_a_run_and_the_next_one_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let node = Pretended::new((0..5).map(|n| image(&n.to_string(), 48 + n)).collect());
    let spec = "{mode: Enforce, maxRemovalsPerRun: 2, rules: [{unusedFor: 24h}]}";
    let mut running = Running::start(&node, &dir, input(&[policy("p", spec, ALL)]));
    let output = running.told(done).await;
    assert_eq!(output.reports[0].report.removed_images, 2);
    while !node.ids().is_empty() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn after_a_kill_the_run_goes_on_and_nothing_is_counted_twice_or_lost() {
    let dir = tempfile::tempdir().unwrap();
    let node = Pretended::new((0..5).map(|n| image(&n.to_string(), 48 + n)).collect());
    let spec = "{mode: Enforce, maxRemovalsPerRun: 3, schedule: {interval: 6h}, rules: [{unusedFor: 24h}]}";
    let limited = policy("p", spec, ALL);
    node.leave.forget_permits(998);
    let running = Running::start(&node, &dir, input(std::slice::from_ref(&limited)));
    while node.ids().len() > 3 {
        tokio::task::yield_now().await;
    }
    drop(running);
    node.leave.add_permits(1000);
    let mut running = Running::start(&node, &dir, input(std::slice::from_ref(&limited)));
    let output = running.told(done).await;
    assert_eq!(node.ids().len(), 2);
    let report = &output.reports[0].report;
    assert_eq!((report.removed_images, report.freed_bytes), (3, 300));
    assert_eq!(report.top.len(), 3);
    drop(running);
    // A third start has nothing to do before the interval ends.
    let mut running = Running::start(&node, &dir, input(&[limited]));
    let output = running.told(done).await;
    assert_eq!(&output.reports[0].report, report);
    assert_eq!(node.ids().len(), 2);
}

#[tokio::test]
async fn two_policies_share_the_work() {
    let dir = tempfile::tempdir().unwrap();
    let node = Pretended::new(vec![image("a", 80), image("b", 70), image("c", 60)]);
    let one = policy(
        "one",
        "{mode: Enforce, rules: [{match: {images: ['r.io/b']}, unusedFor: 24h}]}",
        ALL,
    );
    let two = policy("two", "{mode: Enforce, rules: [{minFree: 850}]}", ALL);
    let mut running = Running::start(&node, &dir, input(&[two, one]));
    let output = running.told(done).await;
    assert_eq!(node.ids(), ["c"]);
    let removed: Vec<(&str, &str)> = output
        .reports
        .iter()
        .map(|told| {
            (
                told.report.policy.as_str(),
                told.report.top[0].image.as_str(),
            )
        })
        .collect();
    assert_eq!(removed, [("two", "r.io/a:1"), ("one", "r.io/b:1")]);
}
