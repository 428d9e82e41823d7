//! Between the wire's values and the cache's. Pure.

use std::collections::{BTreeMap, HashMap};

use prost_types::Timestamp;

use super::proto::{Info, Kind, Mount};
use crate::cache::{SnapshotInfo, SnapshotKind, SnapshotMount};

pub(super) fn info(info: SnapshotInfo) -> Info {
    let kind = match info.kind {
        SnapshotKind::View => Kind::View,
        SnapshotKind::Active => Kind::Active,
        SnapshotKind::Committed => Kind::Committed,
    };
    Info {
        name: info.name,
        parent: info.parent.unwrap_or_default(),
        kind: kind.into(),
        created_at: Some(timestamp(info.created_at)),
        updated_at: Some(timestamp(info.updated_at)),
        labels: info.labels.into_iter().collect(),
    }
}

fn timestamp(ms: i64) -> Timestamp {
    let nanos = ms.rem_euclid(1000).saturating_mul(1_000_000);
    Timestamp {
        seconds: ms.div_euclid(1000),
        nanos: i32::try_from(nanos).unwrap_or_default(),
    }
}

pub(super) fn mounts(mounts: Vec<SnapshotMount>) -> Vec<Mount> {
    let mounts = mounts.into_iter();
    mounts
        .map(|mount| Mount {
            r#type: mount.kind.to_owned(),
            source: mount.source,
            target: String::new(),
            options: mount.options,
        })
        .collect()
}

pub(super) fn labels(labels: HashMap<String, String>) -> BTreeMap<String, String> {
    labels.into_iter().collect()
}

/// Milliseconds since the epoch.
pub(super) fn now_ms() -> i64 {
    let since = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_keep_their_milliseconds() {
        for (ms, seconds, nanos) in [(1_500, 1, 500_000_000), (0, 0, 0), (-1, -1, 999_000_000)] {
            let time = timestamp(ms);
            assert_eq!((time.seconds, time.nanos), (seconds, nanos), "{ms}");
        }
    }
}
