//! ImageFsInfo: what the store occupies, from counters. kubelet asks every ten seconds.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use tonic::Status;

use super::proto::{FilesystemIdentifier, FilesystemUsage, ImageFsInfoResponse, UInt64Value};
use super::service::ImageService;
use crate::cache::Usage;

pub(super) fn handle(service: &ImageService) -> Result<ImageFsInfoResponse, Status> {
    Ok(answer(
        &service.cache.usage(),
        &service.mount_point,
        SystemTime::now(),
    ))
}

fn answer(usage: &Usage, mount_point: &Path, now: SystemTime) -> ImageFsInfoResponse {
    let since = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    let usage = FilesystemUsage {
        // Must be above zero, whatever the clock says.
        timestamp: i64::try_from(since.as_nanos()).unwrap_or(i64::MAX).max(1),
        fs_id: Some(FilesystemIdentifier {
            mountpoint: mount_point.to_string_lossy().into_owned(),
        }),
        used_bytes: Some(UInt64Value {
            value: usage.stored_bytes,
        }),
        inodes_used: Some(UInt64Value {
            value: usage.inodes,
        }),
    };
    // kubelet with separate disk collection wants both lists, on every runtime.
    ImageFsInfoResponse {
        image_filesystems: vec![usage.clone()],
        container_filesystems: vec![usage],
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn both_lists_are_filled() {
        let usage = Usage {
            stored_bytes: 4096,
            inodes: 3,
            ..Usage::default()
        };
        let now = UNIX_EPOCH + Duration::from_secs(5);
        let answer = answer(&usage, Path::new("/var"), now);
        assert_eq!(answer.image_filesystems, answer.container_filesystems);
        let [entry] = &answer.image_filesystems[..] else {
            panic!("one entry")
        };
        assert_eq!(entry.timestamp, 5_000_000_000);
        assert_eq!(entry.fs_id.as_ref().unwrap().mountpoint, "/var");
        assert_eq!(entry.used_bytes.as_ref().unwrap().value, 4096);
        assert_eq!(entry.inodes_used.as_ref().unwrap().value, 3);
    }

    #[test]
    fn a_clock_before_the_epoch_is_still_above_zero() {
        let answer = answer(
            &Usage::default(),
            Path::new("/"),
            UNIX_EPOCH - Duration::from_secs(1),
        );
        assert_eq!(answer.image_filesystems[0].timestamp, 1);
    }
}
