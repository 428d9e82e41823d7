//! `larder demo`: the main job, seen with one's own eyes, each claim checked.

use std::path::{Path, PathBuf};
use std::time::Instant;

use super::Done;
use super::client::Client;
use super::failure::{Failure, NOT_FOUND};
use super::interrupt::Interrupts;
use super::output;
use super::progress::Progress;
use super::run::Terminal;
use crate::app::demo::{self, Counts, DemoAgent, DemoRegistry, Folder, Images};
use crate::control::proto::{
    ListRequest, MountRequest, PullRequest, PullResult, RemoveRequest, UmountRequest, UsageRequest,
    UsageResponse,
};

pub(super) const AFTER: &str = "\
Builds a few related images, serves them from a registry on loopback, starts an
agent in a temporary folder, and pulls, compares and removes them. Each claim it
prints was checked. Needs no root, no network and no cluster.

Examples:
  larder demo
  larder demo --image registry.example/team/app:1";

/// Columns of a line.
const WIDTH: usize = 80;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
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

pub(super) async fn run(args: Args, terminal: &Terminal, interrupts: &Interrupts) -> Done {
    let began = Instant::now();
    let parent = args.dir.clone().unwrap_or_else(std::env::temp_dir);
    let folder = Folder::new(&parent)?;
    interrupts.leaves(folder.path());
    let outcome = on_stage(&args, terminal, interrupts, folder.path()).await;
    // However it ended: nothing works in the folder any more, and it goes.
    let removed = tokio::task::spawn_blocking(|| folder.remove()).await;
    outcome?;
    removed.map_err(Failure::new)??;
    // It may have come while all was cleared away.
    if let Some(failure) = interrupts.asked() {
        return Err(failure);
    }
    say(&format!(
        "\nAll of it took {:.1} s.",
        began.elapsed().as_secs_f64()
    ))
}

/// The demo between the making and the removal of its folder.
async fn on_stage(
    args: &Args,
    terminal: &Terminal,
    interrupts: &Interrupts,
    folder: &Path,
) -> Done {
    // Not to be broken off: a store that is being opened would go on to write.
    let agent = DemoAgent::start(folder, args.image.is_none()).await?;
    let story = async {
        let mut show = Show::new(&agent, terminal).await?;
        match &args.image {
            Some(image) => show.theirs(image, args.plain_http).await,
            None => {
                title("Four images of one team, built in memory")?;
                let (images, registry) = demo::serve().await?;
                introduce(&images, &registry)?;
                show.ours(&images, &registry, folder).await
            }
        }
    };
    let outcome = tokio::select! {
        biased;
        failure = interrupts.first() => Err(failure),
        outcome = story => outcome,
    };
    // Waits for threads in the middle of a pull or a mount.
    let stopped = agent.stop().await;
    outcome?;
    Ok(stopped?)
}

fn say(text: &str) -> Done {
    Ok(output::say(text)?)
}

fn title(text: &str) -> Done {
    say(&format!("\n== {text}"))
}

/// A claim that is printed is a claim that was checked.
fn claim(holds: bool, text: &str) -> Done {
    if holds {
        say(&format!("   {text}"))
    } else {
        Err(Failure::new(format!("this did not hold: {text}")))
    }
}

fn introduce(images: &Images, registry: &DemoRegistry) -> Done {
    let rows = images.built.iter().map(|image| {
        [
            image.name.to_owned(),
            output::size(image.tar_bytes),
            output::size(image.blob_bytes),
            image.about.to_owned(),
        ]
    });
    let header = ["IMAGE", "FILES", "COMPRESSED", "WHAT IT IS"];
    say(&output::table(header, rows, &[1, 2]))?;
    say(&format!(
        "Served by a registry of this process at {}. The agent is real.",
        registry.host()
    ))
}

/// The agent's client, and what to show it on.
struct Show<'a> {
    client: Client,
    terminal: &'a Terminal,
}

impl<'a> Show<'a> {
    async fn new(agent: &DemoAgent, terminal: &'a Terminal) -> Result<Self, Failure> {
        Ok(Show {
            client: Client::agent(agent.socket()).await?,
            terminal,
        })
    }

    async fn pull(
        &mut self,
        reference: &str,
        plain_http: bool,
    ) -> Result<(PullResult, f64), Failure> {
        let began = Instant::now();
        let request = PullRequest {
            reference: reference.to_owned(),
            plain_http,
            ..PullRequest::default()
        };
        let answer = self.client.images.pull(request).await;
        let mut events = self.client.answer(answer)?;
        let mut progress = Progress::new(reference, self.terminal);
        let mut result = None;
        loop {
            match events.message().await {
                Ok(Some(event)) => {
                    progress.update(&event, began.elapsed());
                    result = event.result.or(result);
                }
                Ok(None) => break,
                Err(status) => {
                    progress.abandon();
                    return Err(self.client.failure(&status));
                }
            }
        }
        let seconds = began.elapsed();
        match result {
            Some(result) => {
                progress.finish(&result, seconds);
                Ok((result, seconds.as_secs_f64()))
            }
            None => Err(Failure::new("the agent ended the pull without a result")),
        }
    }

    async fn usage(&mut self) -> Result<UsageResponse, Failure> {
        let answer = self.client.images.usage(UsageRequest {}).await;
        self.client.answer(answer)
    }

    async fn list(&mut self) -> Done {
        let answer = self.client.images.list(ListRequest::default()).await;
        let images = self.client.answer(answer)?.images;
        let rows = images.iter().flat_map(|image| {
            image.repo_tags.iter().map(|tag| {
                [
                    output::familiar(tag),
                    output::short_id(&image.id).to_owned(),
                    output::size(image.size),
                ]
            })
        });
        say(&output::table(["IMAGE", "IMAGE ID", "SIZE"], rows, &[2]))
    }

    async fn remove(&mut self, name: &str) -> Result<u64, Failure> {
        let request = RemoveRequest {
            name: name.to_owned(),
            unless_used: false,
        };
        let answer = self.client.images.remove(request).await;
        Ok(self.client.answer(answer)?.freed_bytes)
    }

    /// The whole story on the images made for it.
    async fn ours(&mut self, images: &Images, registry: &DemoRegistry, folder: &Path) -> Done {
        let [web, worker, again, zstd] = images.built.as_slice() else {
            return Err(Failure::new("the demo lost an image"));
        };
        let at = |name: &str| format!("{}/{name}", registry.host());
        let empty = self.usage().await?.stored_bytes;

        title("A first pull: fetched, verified and durable in one pass")?;
        let (_, seconds) = self.pull(&at(web.name), false).await?;
        let first = self.usage().await?;
        say(&format!(
            "   {} in {seconds:.2} s, on disk and synced when the pull returned",
            output::size(web.tar_bytes)
        ))?;

        title("An image that shares: files it has in common are not stored again")?;
        let (_, seconds) = self.pull(&at(worker.name), false).await?;
        let both = self.usage().await?;
        let added = both.stored_bytes.saturating_sub(first.stored_bytes);
        claim(
            added * 4 < worker.tar_bytes,
            &format!(
                "{} of files in {seconds:.2} s added {}: its libraries\n   \
                 lie in another layer, with other times, and are the same bytes",
                output::size(worker.tar_bytes),
                output::size(added)
            ),
        )?;

        title("What is here")?;
        self.list().await?;
        let plain = web.own_bytes + worker.own_bytes;
        let stored = both.stored_bytes.saturating_sub(empty);
        claim(
            stored < plain,
            &format!(
                "{} on disk; compressed layers kept beside unpacked trees,\n   \
                 as containerd does by default, would take {}: {:.0}% less",
                output::size(stored),
                output::size(plain),
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
                output::size(result.fetched_bytes),
                output::size(added),
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
                Err(failure) if failure.code() == NOT_FOUND => {}
                Err(failure) => return Err(failure),
            }
        }
        let left = self.usage().await?;
        claim(
            left.images == 0 && left.layers == 0 && left.stored_bytes < empty + 2_000_000,
            &format!(
                "{} freed, {} left for the store's own records",
                output::size(freed),
                output::size(left.stored_bytes)
            ),
        )?;

        title("Next")?;
        say("   larder agent --help       run it on a node, for crictl or the kubelet")?;
        say("   larder --root DIR pull    use it without any agent")?;
        say("   larder demo --image REF   see the same with an image of yours")
    }

    /// The story on somebody's own image.
    async fn theirs(&mut self, image: &str, plain_http: bool) -> Done {
        let empty = self.usage().await?.stored_bytes;
        title("Pull")?;
        let (result, seconds) = self.pull(image, plain_http).await?;
        let usage = self.usage().await?;
        say(&format!(
            "   {} fetched in {seconds:.2} s, on disk and synced",
            output::size(result.fetched_bytes)
        ))?;
        title("What is here")?;
        self.list().await?;
        say(&format!(
            "   {} of files in {} layers take {} on disk",
            output::size(usage.logical_bytes),
            usage.layers,
            output::size(usage.stored_bytes.saturating_sub(empty))
        ))?;
        title("Pull again")?;
        let (again, seconds) = self.pull(image, plain_http).await?;
        claim(
            again.up_to_date && again.fetched_bytes == 0,
            &format!("nothing fetched, {:.0} ms", seconds * 1e3),
        )?;
        title("Remove")?;
        let began = Instant::now();
        let freed = self.remove(image).await?;
        let left = self.usage().await?;
        claim(
            left.images == 0,
            &format!(
                "{} freed in {:.2} s",
                output::size(freed),
                began.elapsed().as_secs_f64()
            ),
        )
    }

    async fn look_inside(&mut self, name: &str, folder: &Path) -> Done {
        let target = folder.join("mnt");
        let request = MountRequest {
            name: name.to_owned(),
            directory: target.display().to_string(),
        };
        if let Err(status) = self.client.images.mount(request).await {
            let text = format!("not here: {}", status.message());
            return say(&output::wrapped(&text, "   ", WIDTH));
        }
        let read = std::fs::read_to_string(target.join("etc/demo-release"));
        let request = UmountRequest {
            directory: target.display().to_string(),
        };
        let answer = self.client.images.umount(request).await;
        self.client.answer(answer)?;
        let text = read.map_err(|error| Failure::new(format!("read from the mount: {error}")))?;
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
