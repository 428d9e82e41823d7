//! `larder demo`: the main job, seen with one's own eyes, each claim checked.

use std::path::PathBuf;
use std::time::Instant;

use clap::Args;

use super::client::{self, Client};
use super::failure::Failure;
use super::progress::Watcher;
use super::{Global, output};
use crate::app::demo::{self, Counts, DemoAgent, DemoRegistry, Folder, Images};
use crate::control::proto::{
    ListRequest, MountRequest, PullRequest, PullResult, RemoveRequest, UmountRequest, UsageRequest,
    UsageResponse,
};

/// Shows what larder does, on images made for it or on one of yours. Needs no root, network or cluster.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  larder demo\n  larder demo --image registry.example/team/app:1"
)]
pub(super) struct Demo {
    /// Show it on this image instead
    #[arg(long, value_name = "REF")]
    image: Option<String>,
    /// With --image: speak plain HTTP to its registry
    #[arg(long, requires = "image")]
    plain_http: bool,
    /// Folder to work below; all is removed at the end [default: the system's temporary folder]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

impl Demo {
    pub(super) fn run(self, global: &Global) -> Result<(), Failure> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .map_err(|error| Failure::failed(format!("start the runtime: {error}")))?;
        let began = Instant::now();
        runtime.block_on(client::interruptible(self.play(global)))?;
        say(&format!(
            "\nAll of it took {:.1} s.",
            began.elapsed().as_secs_f64()
        ))
    }

    async fn play(self, global: &Global) -> Result<(), Failure> {
        let parent = self.dir.clone().unwrap_or_else(std::env::temp_dir);
        let folder = Folder::new(&parent)?;
        match self.image.clone() {
            Some(image) => {
                let agent = DemoAgent::start(folder.path(), false).await?;
                let show = Show::new(&agent, global).await?;
                let outcome = show.theirs(image, self.plain_http).await;
                agent.stop().await?;
                outcome
            }
            None => {
                title("Four images of one team, built in memory")?;
                let (images, registry) = demo::serve().await?;
                introduce(&images, &registry)?;
                let agent = DemoAgent::start(folder.path(), true).await?;
                let show = Show::new(&agent, global).await?;
                let outcome = show.ours(&images, &registry, folder.path()).await;
                agent.stop().await?;
                outcome
            }
        }
    }
}

fn say(text: &str) -> Result<(), Failure> {
    output::line(text)
}

fn title(text: &str) -> Result<(), Failure> {
    say(&format!("\n== {text}"))
}

/// A claim that is printed is a claim that was checked.
fn claim(holds: bool, text: &str) -> Result<(), Failure> {
    if holds {
        say(&format!("   {text}"))
    } else {
        Err(Failure::failed(format!("this did not hold: {text}")))
    }
}

fn introduce(images: &Images, registry: &DemoRegistry) -> Result<(), Failure> {
    let rows = images.built.iter().map(|image| {
        vec![
            image.name.to_owned(),
            output::bytes(image.tar_bytes),
            output::bytes(image.blob_bytes),
            image.about.to_owned(),
        ]
    });
    let header = ["IMAGE", "FILES", "COMPRESSED", "WHAT IT IS"];
    say(&output::table(&header, &[1, 2], rows.collect()))?;
    say(&format!(
        "Served by a registry of this process at {}; the agent is a real one.",
        registry.host()
    ))
}

/// The agent's client, and how to watch it.
struct Show {
    client: Client,
    quiet: bool,
}

impl Show {
    async fn new(agent: &DemoAgent, global: &Global) -> Result<Self, Failure> {
        Ok(Show {
            client: client::connect(agent.socket()).await?,
            quiet: global.quiet,
        })
    }

    async fn pull(&self, reference: &str, plain_http: bool) -> Result<(PullResult, f64), Failure> {
        let began = Instant::now();
        let request = PullRequest {
            reference: reference.to_owned(),
            plain_http,
            ..PullRequest::default()
        };
        let mut client = self.client.clone();
        let mut events = client.pull(request).await?.into_inner();
        let mut watcher = Watcher::for_terminal(self.quiet, reference);
        let mut result = None;
        while let Some(event) = events.message().await? {
            watcher.show(&event);
            result = event.result.or(result);
        }
        watcher.finish();
        let result =
            result.ok_or_else(|| Failure::failed("the agent ended the pull without a result"))?;
        Ok((result, began.elapsed().as_secs_f64()))
    }

    async fn usage(&self) -> Result<UsageResponse, Failure> {
        let mut client = self.client.clone();
        Ok(client.usage(UsageRequest {}).await?.into_inner())
    }

    async fn list(&self) -> Result<(), Failure> {
        let mut client = self.client.clone();
        let answer = client.list(ListRequest::default()).await?.into_inner();
        let rows = answer.images.into_iter().flat_map(|image| {
            let id = output::short(&image.id).to_owned();
            let size = output::bytes(image.size);
            let tags = image.repo_tags.into_iter();
            tags.map(move |tag| vec![output::familiar(&tag), id.clone(), size.clone()])
                .collect::<Vec<_>>()
        });
        say(&output::table(
            &["IMAGE", "IMAGE ID", "SIZE"],
            &[2],
            rows.collect(),
        ))
    }

    async fn remove(&self, name: &str) -> Result<u64, Failure> {
        let mut client = self.client.clone();
        let request = RemoveRequest {
            name: name.to_owned(),
        };
        Ok(client.remove(request).await?.into_inner().freed_bytes)
    }

    /// The whole story on the images made for it.
    async fn ours(
        &self,
        images: &Images,
        registry: &DemoRegistry,
        folder: &std::path::Path,
    ) -> Result<(), Failure> {
        let [web, worker, again, zstd] = images.built.as_slice() else {
            return Err(Failure::failed("the demo lost an image"));
        };
        let at = |name: &str| format!("{}/{name}", registry.host());
        let empty = self.usage().await?.stored_bytes;

        title("A first pull: fetched, verified and durable in one pass")?;
        let (_, seconds) = self.pull(&at(web.name), false).await?;
        let first = self.usage().await?;
        say(&format!(
            "   {} in {seconds:.2} s, on disk and synced when the pull returned",
            output::bytes(web.tar_bytes)
        ))?;

        title("An image that shares: files it has in common are not stored again")?;
        let (_, seconds) = self.pull(&at(worker.name), false).await?;
        let both = self.usage().await?;
        let added = both.stored_bytes.saturating_sub(first.stored_bytes);
        claim(
            added * 4 < worker.tar_bytes,
            &format!(
                "{} of files in {seconds:.2} s added {}: its libraries lie in another layer, with\n   \
                 other times, and are the same bytes",
                output::bytes(worker.tar_bytes),
                output::bytes(added)
            ),
        )?;

        title("What is here")?;
        self.list().await?;
        let plain = web.own_bytes + worker.own_bytes;
        let stored = both.stored_bytes.saturating_sub(empty);
        claim(
            stored < plain,
            &format!(
                "{} on disk; compressed layers kept beside unpacked trees, as containerd does\n   \
                 by default, would take {}: {:.0}% less",
                output::bytes(stored),
                output::bytes(plain),
                100.0 - 100.0 * stored as f64 / plain as f64
            ),
        )?;

        title("Pulling again: one question to the registry, nothing fetched")?;
        let before = registry.counts();
        let (result, seconds) = self.pull(&at(web.name), false).await?;
        let asked = since(before, registry.counts());
        claim(
            result.up_to_date && asked.requests == 1 && asked.blobs == 0,
            &format!("1 request, 0 bytes of layers, {:.0} ms", seconds * 1e3),
        )?;

        title("The same build again: every digest is new, every file is old")?;
        let before = self.usage().await?.stored_bytes;
        let (result, _) = self.pull(&at(again.name), false).await?;
        let added = self.usage().await?.stored_bytes.saturating_sub(before);
        claim(
            added * 50 < again.tar_bytes,
            &format!(
                "{} fetched, {} added to the disk ({:.1}% of the image)",
                output::bytes(result.fetched_bytes),
                output::bytes(added),
                100.0 * added as f64 / again.tar_bytes as f64
            ),
        )?;

        title("The same layers compressed otherwise: known by what they contain")?;
        let before = registry.counts();
        self.pull(&at(zstd.name), false).await?;
        let asked = since(before, registry.counts());
        claim(
            asked.blobs == 1 && asked.blob_bytes < 10_000,
            &format!("only the config was fetched: {} bytes", asked.blob_bytes),
        )?;

        title("A look inside, without a copy")?;
        self.look_inside(&at(web.name), folder).await?;

        title("Removing gives the space back, before the answer comes")?;
        let mut freed = 0;
        for image in &images.built {
            match self.remove(&at(image.name)).await {
                Ok(bytes) => freed += bytes,
                // An image with several names went with the first of them.
                Err(failure) if failure.code() == 3 => {}
                Err(failure) => return Err(failure),
            }
        }
        let left = self.usage().await?;
        claim(
            left.images == 0 && left.layers == 0 && left.stored_bytes < empty + 2_000_000,
            &format!(
                "{} freed, {} left for the store's own records",
                output::bytes(freed),
                output::bytes(left.stored_bytes)
            ),
        )?;

        title("Next")?;
        say(
            "   larder agent --help       run it on a node, point crictl or the kubelet at its socket",
        )?;
        say("   larder --root DIR pull    use it without any agent")?;
        say("   larder demo --image REF   see the same with an image of yours")
    }

    /// The story on somebody's own image.
    async fn theirs(&self, image: String, plain_http: bool) -> Result<(), Failure> {
        let empty = self.usage().await?.stored_bytes;
        title("Pull")?;
        let (result, seconds) = self.pull(&image, plain_http).await?;
        let usage = self.usage().await?;
        say(&format!(
            "   {} fetched in {seconds:.2} s, on disk and synced",
            output::bytes(result.fetched_bytes)
        ))?;
        title("What is here")?;
        self.list().await?;
        say(&format!(
            "   {} of files in {} layers take {} on disk",
            output::bytes(usage.logical_bytes),
            usage.layers,
            output::bytes(usage.stored_bytes.saturating_sub(empty))
        ))?;
        title("Pull again")?;
        let (again, seconds) = self.pull(&image, plain_http).await?;
        claim(
            again.up_to_date && again.fetched_bytes == 0,
            &format!("nothing fetched, {:.0} ms", seconds * 1e3),
        )?;
        title("Remove")?;
        let began = Instant::now();
        let freed = self.remove(&image).await?;
        let left = self.usage().await?;
        claim(
            left.images == 0,
            &format!(
                "{} freed in {:.2} s",
                output::bytes(freed),
                began.elapsed().as_secs_f64()
            ),
        )
    }

    async fn look_inside(&self, name: &str, folder: &std::path::Path) -> Result<(), Failure> {
        let target = folder.join("mnt");
        let mut client = self.client.clone();
        let request = MountRequest {
            name: name.to_owned(),
            directory: target.display().to_string(),
        };
        if let Err(status) = client.mount(request).await {
            return say(&format!("   not here: {}", status.message()));
        }
        let read = std::fs::read_to_string(target.join("etc/demo-release"));
        let request = UmountRequest {
            directory: target.display().to_string(),
        };
        client.umount(request).await?;
        let text =
            read.map_err(|error| Failure::failed(format!("read from the mount: {error}")))?;
        claim(
            text == "larder demo 1\n",
            &format!("mounted; etc/demo-release says {:?}", text.trim()),
        )
    }
}

fn since(before: Counts, now: Counts) -> Counts {
    Counts {
        requests: now.requests - before.requests,
        blobs: now.blobs - before.blobs,
        blob_bytes: now.blob_bytes - before.blob_bytes,
    }
}
