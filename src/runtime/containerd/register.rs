//! Making an image known: lease, snapshots, documents, names.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use futures_util::StreamExt;
use futures_util::stream;
use prost_types::FieldMask;
use tonic::metadata::MetadataValue;
use tonic::{Code, Request};

use super::SNAPSHOTTER;
use super::client::{Containerd, Step, wire};
use super::error::ContainerdError as Error;
use super::plan::{ContainerdImage, Document};
use super::proto::content::v1::content_client::ContentClient;
use super::proto::content::v1::{Info, UpdateRequest, WriteAction, WriteContentRequest};
use super::proto::images::v1::{CreateImageRequest, Image, UpdateImageRequest};
use super::proto::leases::v1::leases_client::LeasesClient;
use super::proto::leases::v1::{CreateRequest, DeleteRequest};
use super::proto::snapshots::v1::snapshots_client::SnapshotsClient;
use super::proto::snapshots::v1::{
    PrepareSnapshotRequest, RemoveSnapshotRequest, StatSnapshotRequest,
};
use super::proto::types::Descriptor;

/// How long what is half registered is kept, should nobody come back to it.
const LEASE_FOR: Duration = Duration::from_secs(3600);
/// Room for a manifest of the largest size.
const MAX_MESSAGE: usize = 16 << 20;

/// Names the chain that a snapshot is to show.
const REF: &str = "containerd.io/snapshot.ref";

impl Containerd {
    /// Makes an image known by these of its names. Done again it changes nothing; done in part it is finished. Nothing of
    /// a registration that failed outlives its lease.
    ///
    /// # Errors
    /// [`Error::NoSnapshotter`] where containerd is not configured for it, [`Error::NotOurs`] where the snapshots that it
    /// asks have no such layers.
    pub async fn register(&self, image: &ContainerdImage, names: &[String]) -> Result<(), Error> {
        let lease = self.lease(image).await?;
        let outcome = self.register_under(image, names, &lease).await;
        let ended = self.end_lease(&lease).await;
        // What keeps it from now on are the names.
        outcome.and(ended)
    }

    async fn register_under(
        &self,
        image: &ContainerdImage,
        names: &[String],
        lease: &str,
    ) -> Result<(), Error> {
        let mut parent = String::new();
        for (chain, layer) in image.chains.iter().zip(&image.layers) {
            let chain = chain.to_string();
            self.snapshot(image, &chain, &parent, &layer.to_string(), lease)
                .await?;
            parent = chain;
        }
        for (document, labels) in image.contents() {
            self.write(document, labels, lease).await?;
        }
        for (name, document) in image.records() {
            if names.contains(&name) {
                self.name(image, name, document, lease).await?;
            }
        }
        Ok(())
    }

    async fn lease(&self, image: &ContainerdImage) -> Result<String, Error> {
        let now = SystemTime::now();
        let since = now
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        let id = format!("larder-{}-{}", image.names.id.0.hex(), since.as_nanos());
        let expires = jiff::Timestamp::try_from(now.checked_add(LEASE_FOR).unwrap_or(now));
        let expires = expires.unwrap_or(jiff::Timestamp::UNIX_EPOCH).to_string();
        let mut client = LeasesClient::new(self.channel.clone());
        let request = self.request(CreateRequest {
            id: id.clone(),
            labels: wire([("containerd.io/gc.expire".to_owned(), expires)]),
        });
        let call = async move { client.create(request).await };
        self.call(("leases.Create", "give a lease"), call).await?;
        Ok(id)
    }

    async fn end_lease(&self, lease: &str) -> Result<(), Error> {
        let mut client = LeasesClient::new(self.channel.clone());
        let request = self.request(DeleteRequest {
            id: lease.to_owned(),
            sync: false,
        });
        let call = async move { client.delete(request).await };
        self.call(("leases.Delete", "end a lease"), call).await
    }

    fn leased<T>(&self, message: T, lease: &str) -> Request<T> {
        let mut request = self.request(message);
        // Digits, letters and dashes.
        if let Ok(lease) = MetadataValue::try_from(lease) {
            request.metadata_mut().insert("containerd-lease", lease);
        }
        request
    }

    /// Makes a chain known. containerd asks larder for it, which says that it exists.
    async fn snapshot(
        &self,
        image: &ContainerdImage,
        chain: &str,
        parent: &str,
        layer: &str,
        lease: &str,
    ) -> Result<(), Error> {
        let snapshotter = || SNAPSHOTTER.to_owned();
        // Known to containerd and not to larder: larder's data directory is another than it was. What containerd has goes,
        // and is made anew.
        for again in [true, false] {
            let key = format!("larder-{lease}-{chain}");
            let request = PrepareSnapshotRequest {
                snapshotter: snapshotter(),
                key: key.clone(),
                parent: parent.to_owned(),
                labels: wire([
                    (REF.to_owned(), chain.to_owned()),
                    (
                        "containerd.io/snapshot/diff-id".to_owned(),
                        layer.to_owned(),
                    ),
                ]),
            };
            let mut client = SnapshotsClient::new(self.channel.clone());
            let request = self.leased(request, lease);
            let call = async move { client.prepare(request).await };
            const PREPARE: Step = ("snapshots.Prepare", "prepare a snapshot");
            match self.try_call(PREPARE, call).await? {
                Err(status) if status.code() == Code::AlreadyExists => {}
                Err(status) => return Err(Error::of(self.socket(), PREPARE.1, &status)),
                Ok(_) => {
                    // A writable one: larder has no such layer.
                    self.remove_snapshot(&key).await?;
                    return Err(Error::NotOurs {
                        socket: self.socket().to_owned(),
                        image: image.names.id.to_string(),
                        chain: chain.to_owned(),
                    });
                }
            }
            let mut client = SnapshotsClient::new(self.channel.clone());
            let request = self.leased(
                StatSnapshotRequest {
                    snapshotter: snapshotter(),
                    key: chain.to_owned(),
                },
                lease,
            );
            let call = async move { client.stat(request).await };
            const STAT: Step = ("snapshots.Stat", "look at a snapshot");
            match self.try_call(STAT, call).await? {
                Ok(_) => return Ok(()),
                Err(status) if status.code() == Code::NotFound && again => {
                    self.remove_snapshot(chain).await?;
                }
                Err(status) => return Err(Error::of(self.socket(), STAT.1, &status)),
            }
        }
        Ok(())
    }

    async fn remove_snapshot(&self, key: &str) -> Result<(), Error> {
        let mut client = SnapshotsClient::new(self.channel.clone());
        let request = self.request(RemoveSnapshotRequest {
            snapshotter: SNAPSHOTTER.to_owned(),
            key: key.to_owned(),
        });
        let call = async move { client.remove(request).await };
        self.call(("snapshots.Remove", "remove a snapshot"), call)
            .await
    }

    /// Writes a document with its labels; one that is there gets the labels.
    async fn write(
        &self,
        document: &Document,
        labels: BTreeMap<String, String>,
        lease: &str,
    ) -> Result<(), Error> {
        const WRITE: Step = ("content.Write", "write a manifest");
        let digest = document.digest.to_string();
        let size = i64::try_from(document.bytes.len()).unwrap_or(i64::MAX);
        let request = WriteContentRequest {
            action: WriteAction::Commit.into(),
            r#ref: format!("larder-{digest}"),
            total: size,
            expected: digest.clone(),
            offset: 0,
            data: document.bytes.to_vec(),
            labels: wire(labels.clone()),
        };
        let mut client =
            ContentClient::new(self.channel.clone()).max_encoding_message_size(MAX_MESSAGE);
        let request = self.leased(stream::iter([request]), lease);
        let call = async move {
            let mut answers = client.write(request).await?.into_inner();
            // The last one tells of the commit, an error in its place of what kept it away.
            let mut last = None;
            while let Some(answer) = answers.next().await {
                last = Some(answer?);
            }
            let last = last.ok_or_else(|| tonic::Status::unknown("it ended without an answer"))?;
            Ok(tonic::Response::new(last))
        };
        match self.try_call(WRITE, call).await? {
            Ok(_) => return Ok(()),
            Err(status) if status.code() == Code::AlreadyExists => {}
            Err(status) => return Err(Error::of(self.socket(), WRITE.1, &status)),
        }
        let paths = labels.keys().map(|key| format!("labels.{key}")).collect();
        let mut client = ContentClient::new(self.channel.clone());
        let request = self.leased(
            UpdateRequest {
                info: Some(Info {
                    digest,
                    labels: wire(labels),
                    ..Info::default()
                }),
                update_mask: Some(FieldMask { paths }),
            },
            lease,
        );
        let call = async move { client.update(request).await };
        self.call(("content.Update", "label a manifest"), call)
            .await
            .map(drop)
    }

    /// Gives a name to an image; one that is there moves.
    async fn name(
        &self,
        image: &ContainerdImage,
        name: String,
        document: &Document,
        lease: &str,
    ) -> Result<(), Error> {
        const NAME: Step = ("images.Create", "name an image");
        let record = Image {
            name,
            labels: wire(image.names.labels()),
            target: Some(Descriptor {
                media_type: document.media_type.clone(),
                digest: document.digest.to_string(),
                size: i64::try_from(document.bytes.len()).unwrap_or(i64::MAX),
                annotations: wire([]),
            }),
            ..Image::default()
        };
        let mut client = self.images();
        let request = self.leased(
            CreateImageRequest {
                image: Some(record.clone()),
            },
            lease,
        );
        let call = async move { client.create(request).await };
        match self.try_call(NAME, call).await? {
            Ok(_) => return Ok(()),
            Err(status) if status.code() == Code::AlreadyExists => {}
            Err(status) => return Err(Error::of(self.socket(), NAME.1, &status)),
        }
        let labels = image.names.labels().into_keys();
        let labels = labels.chain(
            image
                .names
                .surplus_labels()
                .iter()
                .map(|label| (*label).to_owned()),
        );
        let mut paths = vec!["target".to_owned()];
        paths.extend(labels.map(|label| format!("labels.{label}")));
        let mut client = self.images();
        let request = self.leased(
            UpdateImageRequest {
                image: Some(record),
                update_mask: Some(FieldMask { paths }),
            },
            lease,
        );
        let call = async move { client.update(request).await };
        self.call(("images.Update", NAME.1), call).await.map(drop)
    }
}
