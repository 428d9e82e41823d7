//! The service: each call is a few lines over the cache's snapshots.

use std::pin::Pin;

use futures_util::{Stream, stream};
use tonic::{Request, Response, Status};

use super::convert;
use super::filter::Filters;
use super::proto::*;
use crate::cache::{NewSnapshot, Snapshots as Cached};

/// Snapshots of one message of a list.
const PAGE: usize = 100;

/// `containerd.services.snapshots.v1.Snapshots` over a cache.
#[derive(Clone, Debug)]
pub struct Snapshotter {
    snapshots: Cached,
}

impl Snapshotter {
    /// Over the snapshots of a cache.
    pub fn new(snapshots: Cached) -> Self {
        Snapshotter { snapshots }
    }

    /// As a gRPC service.
    pub fn server(self) -> SnapshotsServer<Self> {
        SnapshotsServer::new(self)
    }
}

/// The labels that an update names; `None` for all of them.
fn named(mask: Option<prost_types::FieldMask>) -> Result<Option<Vec<String>>, Status> {
    let paths = mask.unwrap_or_default().paths;
    if paths.is_empty() || paths.iter().any(|path| path == "labels") {
        return Ok(None);
    }
    let names = paths.into_iter().map(|path| {
        let name = path.strip_prefix("labels.").filter(|name| !name.is_empty());
        name.map(str::to_owned).ok_or_else(|| {
            let shown: String = path.chars().take(64).collect();
            Status::invalid_argument(format!(
                "field {shown:?} of a snapshot cannot be changed: labels can"
            ))
        })
    });
    names.collect::<Result<_, _>>().map(Some)
}

#[tonic::async_trait]
impl Snapshots for Snapshotter {
    type ListStream = Pin<Box<dyn Stream<Item = Result<ListSnapshotsResponse, Status>> + Send>>;

    async fn prepare(
        &self,
        request: Request<PrepareSnapshotRequest>,
    ) -> Result<Response<PrepareSnapshotResponse>, Status> {
        let request = request.into_inner();
        let new = NewSnapshot {
            key: request.key,
            parent: request.parent,
            labels: convert::labels(request.labels),
            now_ms: convert::now_ms(),
        };
        let mounts = self.snapshots.prepare(new).await?;
        Ok(Response::new(PrepareSnapshotResponse {
            mounts: convert::mounts(mounts),
        }))
    }

    async fn view(
        &self,
        request: Request<ViewSnapshotRequest>,
    ) -> Result<Response<ViewSnapshotResponse>, Status> {
        let request = request.into_inner();
        let new = NewSnapshot {
            key: request.key,
            parent: request.parent,
            labels: convert::labels(request.labels),
            now_ms: convert::now_ms(),
        };
        let mounts = self.snapshots.view(new).await?;
        Ok(Response::new(ViewSnapshotResponse {
            mounts: convert::mounts(mounts),
        }))
    }

    async fn mounts(
        &self,
        request: Request<MountsRequest>,
    ) -> Result<Response<MountsResponse>, Status> {
        let key = request.into_inner().key;
        let mounts = self.snapshots.mounts(key).await?;
        Ok(Response::new(MountsResponse {
            mounts: convert::mounts(mounts),
        }))
    }

    async fn commit(
        &self,
        request: Request<CommitSnapshotRequest>,
    ) -> Result<Response<()>, Status> {
        let request = request.into_inner();
        let new = NewSnapshot {
            key: request.name,
            parent: request.parent,
            labels: convert::labels(request.labels),
            now_ms: convert::now_ms(),
        };
        self.snapshots.commit(request.key, new).await?;
        Ok(Response::new(()))
    }

    async fn remove(
        &self,
        request: Request<RemoveSnapshotRequest>,
    ) -> Result<Response<()>, Status> {
        let key = request.into_inner().key;
        self.snapshots.remove(key).await?;
        Ok(Response::new(()))
    }

    async fn stat(
        &self,
        request: Request<StatSnapshotRequest>,
    ) -> Result<Response<StatSnapshotResponse>, Status> {
        let info = self.snapshots.stat(request.into_inner().key).await;
        Ok(Response::new(StatSnapshotResponse {
            info: Some(convert::info(info?)),
        }))
    }

    async fn update(
        &self,
        request: Request<UpdateSnapshotRequest>,
    ) -> Result<Response<UpdateSnapshotResponse>, Status> {
        let request = request.into_inner();
        let info = request
            .info
            .ok_or_else(|| Status::invalid_argument("the update names no snapshot"))?;
        let named = named(request.update_mask)?;
        let labels = convert::labels(info.labels);
        let changed = self
            .snapshots
            .label(info.name, labels, named, convert::now_ms());
        Ok(Response::new(UpdateSnapshotResponse {
            info: Some(convert::info(changed.await?)),
        }))
    }

    async fn list(
        &self,
        request: Request<ListSnapshotsRequest>,
    ) -> Result<Response<Self::ListStream>, Status> {
        let filters = Filters::parse(&request.into_inner().filters);
        let filters = filters.map_err(Status::invalid_argument)?;
        let mut infos = self.snapshots.list();
        infos.retain(|info| filters.matches(info));
        let mut infos = infos.into_iter();
        let pages = std::iter::from_fn(move || {
            let info: Vec<Info> = infos.by_ref().take(PAGE).map(convert::info).collect();
            (!info.is_empty()).then_some(Ok(ListSnapshotsResponse { info }))
        });
        Ok(Response::new(Box::pin(stream::iter(pages))))
    }

    async fn usage(
        &self,
        request: Request<UsageRequest>,
    ) -> Result<Response<UsageResponse>, Status> {
        let key = request.into_inner().key;
        let usage = self.snapshots.usage(key).await?;
        let number = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
        Ok(Response::new(UsageResponse {
            size: number(usage.bytes),
            inodes: number(usage.inodes),
        }))
    }

    async fn cleanup(&self, _: Request<CleanupRequest>) -> Result<Response<()>, Status> {
        self.snapshots.cleanup().await?;
        Ok(Response::new(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_labels_can_be_changed() {
        let mask = |paths: &[&str]| {
            let paths = paths.iter().map(ToString::to_string).collect();
            named(Some(prost_types::FieldMask { paths }))
        };
        assert_eq!(named(None).unwrap(), None);
        assert_eq!(mask(&[]).unwrap(), None);
        assert_eq!(mask(&["labels"]).unwrap(), None);
        let names = mask(&["labels.a.b/c", "labels.d"]).unwrap().unwrap();
        assert_eq!(names, ["a.b/c", "d"]);
        for bad in ["parent", "labels.", "name"] {
            let status = mask(&[bad]).unwrap_err();
            assert_eq!(status.code(), tonic::Code::InvalidArgument, "{bad}");
        }
    }
}
