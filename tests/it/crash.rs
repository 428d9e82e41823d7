//! An agent that is killed at random moments of pulls and removals: every start afterwards is clean by itself.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use larder::control::proto::images_client::ImagesClient;
use larder::control::proto::{
    FsckRequest, InspectRequest, ListRequest, PullRequest, RemoveRequest, UsageRequest,
    UsageResponse,
};
use tonic::transport::Channel;

use crate::doors::connect;
use crate::support::build::{self, BuiltImage, BuiltLayer};
use crate::support::hub::Hub;
use crate::support::process::AgentProcess;

type Client = ImagesClient<Channel>;

/// Rounds unless `LARDER_CRASH_ROUNDS` says otherwise.
const ROUNDS: u64 = 40;

/// Numbers that look random and are the same for the same seed.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

/// A layer of a few large and some hundred small files, a part of which other layers have too.
fn layer(seed: u64, zstd: bool) -> BuiltLayer {
    let mut files: Vec<(String, Vec<u8>)> = Vec::new();
    for n in 0..2 {
        files.push((
            format!("big/{seed}-{n}"),
            build::noise(seed * 100 + n, 700_000),
        ));
    }
    for n in 0..150 {
        files.push((
            format!("own/{seed}/{n}"),
            build::noise(seed * 1000 + n, 3000),
        ));
        files.push((format!("shared/{seed}/{n}"), build::noise(n + 1, 2500)));
    }
    let files: Vec<(&str, &[u8])> = files
        .iter()
        .map(|(path, bytes)| (path.as_str(), bytes.as_slice()))
        .collect();
    let tar = build::tar(&files);
    if zstd {
        build::zstd(&tar)
    } else {
        build::gzip(&tar)
    }
}

/// What a store must show. An image whose pull or removal was cut off may be there or not.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Expected {
    There,
    Absent,
    Either,
}

fn blocks(path: &Path) -> u64 {
    let meta = std::fs::symlink_metadata(path).unwrap();
    let below: u64 = if meta.is_dir() {
        let entries = std::fs::read_dir(path).unwrap();
        entries.map(|entry| blocks(&entry.unwrap().path())).sum()
    } else {
        0
    };
    below + meta.blocks() * 512
}

fn names(path: &Path) -> BTreeSet<String> {
    let entries = std::fs::read_dir(path).unwrap();
    entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect()
}

async fn usage(client: &mut Client) -> UsageResponse {
    client.usage(UsageRequest {}).await.unwrap().into_inner()
}

async fn pull(client: &mut Client, reference: &str) -> Result<(), tonic::Status> {
    let request = PullRequest {
        reference: reference.to_owned(),
        ..PullRequest::default()
    };
    let mut events = client.pull(request).await?.into_inner();
    while let Some(event) = events.message().await? {
        if event.result.is_some() {
            return Ok(());
        }
    }
    Err(tonic::Status::unknown("the stream ended without a result"))
}

/// Removes an image, or finds it gone already.
async fn remove(client: &mut Client, name: &str) -> Result<(), tonic::Status> {
    let request = RemoveRequest {
        name: name.to_owned(),
        unless_used: false,
    };
    match client.remove(request).await {
        Err(status) if status.code() != tonic::Code::NotFound => Err(status),
        _ => Ok(()),
    }
}

/// Verifies everything and fails on any complaint.
async fn verify(client: &mut Client, context: &str) {
    let request = FsckRequest { repair: false };
    let mut events = client.fsck(request).await.unwrap().into_inner();
    let mut report = None;
    while let Some(event) = events.message().await.unwrap() {
        report = event.report.or(report);
    }
    let report = report.unwrap();
    assert!(report.damaged.is_empty(), "{context}: {report:?}");
}

/// A freshly started agent's store: what must be visible is, nothing is left over, what it says it occupies it does.
async fn check(
    client: &mut Client,
    dir: &Path,
    images: &BTreeMap<String, BuiltImage>,
    expected: &BTreeMap<String, Expected>,
    context: &str,
) {
    let list = client
        .list(ListRequest::default())
        .await
        .unwrap()
        .into_inner();
    let visible: BTreeSet<String> = list
        .images
        .iter()
        .flat_map(|image| image.repo_tags.clone())
        .collect();
    assert_eq!(visible.len(), list.images.len(), "{context}: one tag each");
    for (name, expected) in expected {
        let found = visible.contains(name);
        match expected {
            Expected::There => assert!(found, "{context}: {name} was lost"),
            Expected::Absent => assert!(!found, "{context}: {name} came back"),
            Expected::Either => {}
        }
    }
    verify(client, context).await;

    let shown: Vec<&BuiltImage> = visible.iter().filter_map(|name| images.get(name)).collect();
    let hex = |digest: &str| digest.trim_start_matches("sha256:").to_owned();
    let layers: BTreeSet<String> = shown
        .iter()
        .flat_map(|image| &image.layers)
        .flat_map(|layer| ["erofs", "idx"].map(|end| format!("{}.{end}", hex(&layer.diff_id))))
        .collect();
    let blobs: BTreeSet<String> = shown
        .iter()
        .flat_map(|image| [hex(&image.id()), hex(&image.digest())])
        .collect();
    let root = dir.join("root");
    assert_eq!(names(&root.join("layers")), layers, "{context}: layers");
    assert_eq!(names(&root.join("blobs/sha256")), blobs, "{context}: blobs");
    let nothing = BTreeSet::new();
    for folder in ["staging", "mounts", "blobs/sha512"] {
        assert_eq!(names(&root.join(folder)), nothing, "{context}: {folder}");
    }
    let reported = usage(client).await;
    assert_eq!(reported.stored_bytes, blocks(&root), "{context}: du");
    if visible.is_empty() {
        assert_eq!(names(&root.join("packs")), nothing, "{context}: packs");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_agent_starts_clean() {
    let rounds = std::env::var("LARDER_CRASH_ROUNDS").map_or(ROUNDS, |text| text.parse().unwrap());
    let seed = std::env::var("LARDER_CRASH_SEED").map_or_else(
        |_| u64::from(std::process::id()) << 20 | 1,
        |text| text.parse().unwrap(),
    );
    eprintln!("seed: {seed}");
    let mut dice = Dice(seed);

    let hub = Hub::start().await;
    let layers: Vec<BuiltLayer> = (1..=8).map(|n| layer(n, n % 2 == 0)).collect();
    let pick = |chosen: [usize; 4]| BuiltImage::new(&chosen.map(|n| layers[n].clone()));
    let images: BTreeMap<String, BuiltImage> = [
        ("a", pick([0, 1, 2, 3])),
        ("b", pick([0, 1, 4, 5])),
        ("c", pick([6, 7, 2, 5])),
    ]
    .into_iter()
    .map(|(name, image)| {
        hub.push(name, "1", &image);
        (hub.reference(&format!("{name}:1")), image)
    })
    .collect();
    let all: Vec<String> = images.keys().cloned().collect();

    let dir = tempfile::tempdir().unwrap();
    let mut agent = AgentProcess::start(dir.path());
    let mut client = ImagesClient::new(connect(&agent.socket).await);
    let mut expected: BTreeMap<String, Expected> = all
        .iter()
        .map(|name| (name.clone(), Expected::Absent))
        .collect();
    let empty = usage(&mut client).await.stored_bytes;
    // How long a pull and a removal take here, so that moments are spread over all of one.
    let begun = Instant::now();
    pull(&mut client, &all[0]).await.unwrap();
    let mut pull_time = begun.elapsed();
    let begun = Instant::now();
    remove(&mut client, &all[0]).await.unwrap();
    let mut remove_time = begun.elapsed();

    let (mut cut_pulls, mut cut_removals) = (0, 0);
    for round in 0..rounds {
        // Something else is there, or not; the victim is as its operation needs it.
        let victim = &all[dice.below(all.len() as u64) as usize];
        let other = &all[dice.below(all.len() as u64) as usize];
        let pulling = dice.below(2) == 0;
        for name in &all {
            let wanted = match (name == victim, pulling) {
                (true, pulling) => !pulling,
                (false, _) => name == other && dice.below(3) > 0,
            };
            let begun = Instant::now();
            let known = expected[name];
            if wanted && known != Expected::There {
                pull(&mut client, name).await.unwrap();
                pull_time = (pull_time + begun.elapsed()) / 2;
            } else if !wanted && known != Expected::Absent {
                remove(&mut client, name).await.unwrap();
                remove_time = (remove_time + begun.elapsed()) / 2;
            }
            expected.insert(
                name.clone(),
                if wanted {
                    Expected::There
                } else {
                    Expected::Absent
                },
            );
        }

        let span = if pulling { pull_time } else { remove_time };
        let moment = span.mul_f64(1.1) * dice.below(1000) as u32 / 1000;
        let operation = {
            let (mut client, victim) = (client.clone(), victim.clone());
            tokio::spawn(async move {
                if pulling {
                    pull(&mut client, &victim).await
                } else {
                    remove(&mut client, &victim).await
                }
            })
        };
        tokio::time::sleep(moment).await;
        agent.kill();
        let finished = operation.await.unwrap().is_ok();
        let state = match (finished, pulling) {
            (true, true) => Expected::There,
            (true, false) => Expected::Absent,
            (false, _) => Expected::Either,
        };
        expected.insert(victim.clone(), state);
        if !finished {
            *(if pulling {
                &mut cut_pulls
            } else {
                &mut cut_removals
            }) += 1;
        }

        let what = if pulling { "pull" } else { "removal" };
        let context = format!("seed {seed}, round {round}, {what} of {victim} cut at {moment:?}");
        let started = Instant::now();
        agent = AgentProcess::start(dir.path());
        assert!(
            started.elapsed() < Duration::from_secs(20),
            "{context}: a slow start"
        );
        client = ImagesClient::new(connect(&agent.socket).await);
        check(&mut client, dir.path(), &images, &expected, &context).await;
        for (name, state) in &mut expected {
            if *state == Expected::Either {
                let request = InspectRequest { name: name.clone() };
                let found = client.inspect(request).await.is_ok();
                *state = if found {
                    Expected::There
                } else {
                    Expected::Absent
                };
            }
        }
    }
    eprintln!("{rounds} rounds: {cut_pulls} pulls and {cut_removals} removals were cut off");

    for name in &all {
        pull(&mut client, name).await.unwrap();
        expected.insert(name.clone(), Expected::There);
    }
    check(&mut client, dir.path(), &images, &expected, "at the end").await;
    for name in &all {
        remove(&mut client, name).await.unwrap();
    }
    // The database keeps its size.
    let left = usage(&mut client).await.stored_bytes;
    assert!(
        left <= empty + (2 << 20),
        "{left} bytes stay, {empty} before"
    );
    agent.terminate();
}
