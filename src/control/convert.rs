//! Between the wire's types and the cache's.

use std::path::Path;

use tonic::Status;

use super::proto;
use crate::cache::{
    self, Credentials, Damage, FsckReport, ImageDetails, ImageView, Phase, PullProgress, Pulled,
    Removed, Secret, Usage,
};
use crate::image::{Platform, Reference};

pub(super) fn pull_request(request: proto::PullRequest) -> Result<cache::PullRequest, Status> {
    let invalid = |error: &dyn std::fmt::Display| Status::invalid_argument(error.to_string());
    let reference: Reference = request.reference.parse().map_err(|error| invalid(&error))?;
    let platform = match request.platform.as_str() {
        "" => None,
        text => Some(text.parse::<Platform>().map_err(|error| invalid(&error))?),
    };
    let credentials = credentials(request.credentials);
    Ok(cache::PullRequest {
        platform,
        credentials,
        plain_http: request.plain_http,
        ..cache::PullRequest::new(reference)
    })
}

/// The first that is filled counts.
fn credentials(given: Option<proto::Credentials>) -> Credentials {
    let given = given.unwrap_or_default();
    if !given.username.is_empty() {
        return Credentials::Basic {
            username: given.username,
            password: Secret::from(given.password),
        };
    }
    if !given.identity_token.is_empty() {
        return Credentials::Identity(Secret::from(given.identity_token));
    }
    if !given.registry_token.is_empty() {
        return Credentials::Bearer(Secret::from(given.registry_token));
    }
    Credentials::Anonymous
}

pub(super) fn image(view: &ImageView) -> proto::Image {
    proto::Image {
        id: view.id.to_string(),
        repo_tags: view.repo_tags.clone(),
        repo_digests: view.repo_digests.clone(),
        size: view.size,
        created: view.created.clone().unwrap_or_default(),
        pinned: view.pinned,
        platform: view.platform.to_string(),
        manifest: view.manifest.to_string(),
        pulled_at: rfc3339(view.pulled_at),
        staged: view.staged,
        declared_by: view.declared_by.clone(),
    }
}

fn rfc3339(milliseconds: i64) -> String {
    jiff::Timestamp::from_millisecond(milliseconds)
        .map(|time| time.to_string())
        .unwrap_or_default()
}

pub(super) fn progress(progress: &PullProgress) -> proto::PullEvent {
    let phase = match progress.phase {
        Phase::Resolving => proto::PullPhase::Resolving,
        Phase::Fetching => proto::PullPhase::Fetching,
        Phase::Committing => proto::PullPhase::Committing,
        Phase::Done => proto::PullPhase::Done,
        // The stream's own end says so.
        Phase::Failed => proto::PullPhase::Unspecified,
    };
    proto::PullEvent {
        phase: phase.into(),
        digest: progress
            .digest
            .as_ref()
            .map(ToString::to_string)
            .unwrap_or_default(),
        host: progress.host.clone(),
        layers: progress.layers.iter().map(layer).collect(),
        result: None,
    }
}

fn layer(layer: &cache::LayerProgress) -> proto::LayerProgress {
    let source = match layer.source {
        cache::LayerSource::Unknown => proto::LayerSource::Unspecified,
        cache::LayerSource::Present => proto::LayerSource::Present,
        cache::LayerSource::Registry => proto::LayerSource::Registry,
        cache::LayerSource::Shared => proto::LayerSource::Shared,
    };
    proto::LayerProgress {
        digest: layer.blob.to_string(),
        size: layer.size,
        fetched: layer.fetched,
        inflated: layer.inflated,
        deduplicated: layer.deduplicated,
        written: layer.written,
        source: source.into(),
        done: layer.done,
    }
}

pub(super) fn pulled(pulled: &Pulled) -> proto::PullResult {
    proto::PullResult {
        image: Some(image(&pulled.image)),
        digest: pulled.digest.to_string(),
        fetched_bytes: pulled.fetched_bytes,
        up_to_date: pulled.up_to_date,
    }
}

pub(super) fn details(details: &ImageDetails) -> proto::InspectResponse {
    let layers = details
        .layers
        .iter()
        .map(|layer| proto::LayerDetail {
            diff_id: layer.diff_id.to_string(),
            digest: layer.blob.to_string(),
            size: layer.size,
            tar_bytes: layer.tar_bytes,
            users: layer.users,
        })
        .collect();
    proto::InspectResponse {
        image: Some(image(&details.image)),
        config: details.config_json.to_vec(),
        manifest: details.manifest_json.to_vec(),
        layers,
        chain_id: details.chain_id.to_string(),
    }
}

pub(super) fn removed(image: &ImageView, removed: Removed) -> proto::RemoveResponse {
    proto::RemoveResponse {
        id: image.id.to_string(),
        names: removed.names,
        layers: removed.layers.iter().map(ToString::to_string).collect(),
        freed_bytes: removed.freed_bytes,
        declared_by: image.declared_by.clone(),
    }
}

pub(super) fn usage(usage: &Usage, root: &Path) -> proto::UsageResponse {
    proto::UsageResponse {
        logical_bytes: usage.logical_bytes,
        stored_bytes: usage.stored_bytes,
        kept_bytes: usage.kept_bytes,
        inodes: usage.inodes,
        images: usage.images,
        layers: usage.layers,
        segments: usage.segments,
        root: root.to_string_lossy().into_owned(),
    }
}

pub(super) fn report(report: FsckReport) -> proto::FsckReport {
    proto::FsckReport {
        layers: report.layers,
        extents: report.extents,
        bytes: report.bytes,
        damaged: report.damaged.into_iter().map(damage).collect(),
    }
}

fn damage(damage: Damage) -> proto::Damage {
    proto::Damage {
        kind: damage.kind,
        subject: damage.subject,
        cause: damage.cause,
        images: damage.images,
        repaired: damage.repaired,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_references_and_platforms_are_the_callers() {
        let request = |reference: &str, platform: &str| {
            let (reference, platform) = (reference.to_owned(), platform.to_owned());
            pull_request(proto::PullRequest {
                reference,
                platform,
                ..proto::PullRequest::default()
            })
        };
        assert_eq!(
            request("UPPER CASE", "").unwrap_err().code(),
            tonic::Code::InvalidArgument
        );
        assert_eq!(
            request("busybox", "linux/amd64/v2/x").unwrap_err().code(),
            tonic::Code::InvalidArgument
        );
        assert!(request("busybox", "").unwrap().platform.is_none());
        assert_eq!(
            request("busybox", "linux/arm64")
                .unwrap()
                .platform
                .unwrap()
                .architecture,
            "arm64"
        );
    }

    #[test]
    fn the_first_credentials_count_and_are_not_shown() {
        let given = proto::Credentials {
            username: "ann".to_owned(),
            password: "secret".to_owned(),
            identity_token: "secret".to_owned(),
            registry_token: "secret".to_owned(),
        };
        assert!(!format!("{given:?}").contains("secret"));
        assert!(matches!(
            credentials(Some(given.clone())),
            Credentials::Basic { .. }
        ));
        let given = proto::Credentials {
            username: String::new(),
            ..given
        };
        assert!(matches!(
            credentials(Some(given.clone())),
            Credentials::Identity(_)
        ));
        let given = proto::Credentials {
            identity_token: String::new(),
            ..given
        };
        assert!(matches!(credentials(Some(given)), Credentials::Bearer(_)));
        assert!(matches!(credentials(None), Credentials::Anonymous));
    }

    #[test]
    fn times_are_rfc3339() {
        assert_eq!(rfc3339(1_700_000_000_000), "2023-11-14T22:13:20Z");
        assert_eq!(rfc3339(i64::MAX), "");
    }
}
