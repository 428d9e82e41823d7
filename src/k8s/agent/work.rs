//! What the agent waits for: pulls, and the answer to whether an object is really gone.

use std::sync::Arc;
use std::time::Duration;

use kube::Resource;
use kube::api::GetParams;
use kube::core::Request;
use serde::Deserialize;
use tokio::time::timeout;

use super::plan::Start;
use super::prepull::{Identity, Kind, Unit};
use super::seam::{HeldImage, Images, PullFailure, Want};
use super::secrets::Secrets;
use crate::k8s::api::{ClusterImagePrepull, ImagePrepull, reason};
use crate::k8s::connect::{Connection, REQUEST_TIMEOUT};

/// Of one pull; who needs longer goes on from what is there.
const PULL_TIMEOUT: Duration = Duration::from_secs(2 * 3600);

/// Something that ended.
#[derive(Debug)]
pub(super) enum Done {
    /// A pull.
    Pulled(Unit, Result<HeldImage, PullFailure>),
    /// A question about an object.
    Checked(String, Verdict),
}

/// Whether an object is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is there.
    Present,
    /// Its kind is served, and it is not among them.
    Gone,
    /// Its kind is not served: that says nothing about what people want.
    KindMissing,
    /// No answer.
    Unsure,
}

/// Pulls one unit with the secrets that its prepull names.
pub(super) async fn pull(
    images: Arc<dyn Images>,
    secrets: Option<Arc<Secrets>>,
    start: Start,
) -> Done {
    let unit = start.unit.clone();
    let result = match timeout(PULL_TIMEOUT, attempt(images, secrets, start)).await {
        Ok(result) => result,
        Err(_) => Err(PullFailure {
            reason: reason::TIMEOUT,
            message: format!("{}: the pull took longer than two hours", unit.image),
            retry_after: None,
        }),
    };
    Done::Pulled(unit, result)
}

async fn attempt(
    images: Arc<dyn Images>,
    secrets: Option<Arc<Secrets>>,
    start: Start,
) -> Result<HeldImage, PullFailure> {
    let parsed = start.unit.parse().map_err(|message| PullFailure {
        reason: reason::INVALID_REFERENCE,
        message,
        retry_after: None,
    })?;
    let (credentials, faults) = match &secrets {
        Some(secrets) if !start.secrets.is_empty() => secrets.get(&start.secrets).await,
        _ => Default::default(),
    };
    let want = Want {
        reference: parsed.reference,
        digest: parsed.digest,
        platform: parsed.platform,
        priority: start.priority,
        credentials,
        node_wide: start.node_wide,
    };
    let result = images.pull(want).await;
    match result {
        // The registry refused, and what it was to be shown was not to be had: that is the cause to mend.
        Err(failure) if failure.reason == reason::UNAUTHORIZED => {
            if let Some(secrets) = &secrets {
                secrets.forget(&start.secrets);
            }
            match faults.first() {
                Some(fault) => Err(PullFailure {
                    reason: reason::SECRET_MISSING,
                    message: format!("{}: {fault}", start.unit.image),
                    ..failure
                }),
                None => Err(failure),
            }
        }
        other => other,
    }
}

#[derive(Deserialize)]
struct Found {
    metadata: FoundMetadata,
}

#[derive(Deserialize)]
struct FoundMetadata {
    #[serde(default)]
    uid: String,
}

/// Asks for one object by name.
pub(super) async fn check(connection: Arc<Connection>, identity: Identity) -> Done {
    let uid = identity.uid.clone();
    let verdict = verdict(&connection, &identity).await;
    Done::Checked(uid, verdict)
}

async fn verdict(connection: &Connection, identity: &Identity) -> Verdict {
    let path = match identity.kind {
        Kind::ClusterImagePrepull => ClusterImagePrepull::url_path(&(), None),
        Kind::ImagePrepull => ImagePrepull::url_path(&(), Some(&identity.namespace)),
    };
    let Ok(request) = Request::new(path).get(&identity.name, &GetParams::default()) else {
        return Verdict::Unsure;
    };
    let asked = async { connection.client().await?.request_text(request).await };
    match timeout(REQUEST_TIMEOUT, asked).await {
        Ok(Ok(text)) => match serde_json::from_str::<Found>(&text) {
            Ok(found) if found.metadata.uid == identity.uid => Verdict::Present,
            // Made anew under the same name: another object.
            Ok(_) => Verdict::Gone,
            Err(_) => Verdict::Unsure,
        },
        Ok(Err(kube::Error::Api(status))) if status.code == 404 => {
            // The answer for an object names it; the one for a kind has nothing to name.
            let named = status
                .details
                .as_ref()
                .is_some_and(|details| details.name == identity.name);
            if named {
                Verdict::Gone
            } else {
                Verdict::KindMissing
            }
        }
        _ => Verdict::Unsure,
    }
}
