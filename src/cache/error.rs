//! What a use case can fail with, and what kind of failure that is for a door.

use std::sync::Arc;

use crate::image::{DiffId, Digest};
use crate::{registry, store};

/// What a use case can fail with.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The registry said no, or nothing.
    #[error("{}", with_subject(reference, source))]
    Registry {
        /// What was pulled.
        reference: String,
        /// Why.
        source: registry::Error,
    },
    /// The manifest or config is not acceptable.
    #[error("{reference}: {cause}")]
    Image {
        /// What was pulled.
        reference: String,
        /// Why.
        cause: String,
    },
    /// No image for the platform.
    #[error("{reference}: {cause}")]
    Platform {
        /// What was pulled.
        reference: String,
        /// Lists what is offered.
        cause: String,
    },
    /// A layer is not what the config says.
    #[error(
        "{reference}: layer {blob} unpacks to {found}, the config says {expected}; the image is broken, push it again"
    )]
    DiffIdMismatch {
        /// What was pulled.
        reference: String,
        /// The layer.
        blob: Digest,
        /// Per config.
        expected: DiffId,
        /// Computed.
        found: DiffId,
    },
    /// The store said no. The cause is shared: several pulls can wait for one layer.
    #[error("{}", with_subject(subject, source))]
    Store {
        /// Image or path.
        subject: String,
        /// Why.
        source: Arc<store::Error>,
    },
    /// An id prefix names several images.
    #[error("{prefix} is the beginning of {count} image ids: give more digits")]
    Ambiguous {
        /// What was given.
        prefix: String,
        /// How many match.
        count: usize,
    },
    /// A container uses it, or something else protects it.
    #[error("{name} is in use by {by}")]
    InUse {
        /// What was to go.
        name: String,
        /// For people.
        by: String,
    },
    /// Who uses images cannot be told, so none may go.
    #[error("who uses images is not known, so none is removed: {cause}")]
    UsersUnknown {
        /// Why not.
        cause: String,
    },
    /// A pull does not fit beside what is reserved.
    #[error(
        "{reference}: InsufficientSpace: {needed} bytes are needed for this and other pulls, {free} are free, of which {reserve} are reserved; larder prune frees what is not needed"
    )]
    InsufficientSpace {
        /// What was pulled.
        reference: String,
        /// Bytes that the pulls under way are expected to write yet, this one among them.
        needed: u64,
        /// Bytes that may be written to the file system.
        free: u64,
        /// Bytes that must stay free.
        reserve: u64,
    },
    /// No such image.
    #[error("{name}: no such image; larder images lists what is here")]
    NotFound {
        /// What was given.
        name: String,
    },
    /// The pull was given up: nobody waits, or the agent stops.
    #[error("{reference}: the pull was cancelled")]
    Cancelled {
        /// What was pulled.
        reference: String,
    },
    /// The container runtime was not told of an image.
    #[error("{image} is in the cache, and not usable by containers: {cause}")]
    Runtime {
        /// Which.
        image: String,
        /// Why not.
        cause: String,
    },
    /// The machine could not do its part: no thread to be had, or a thread that ended without a result.
    #[error("{subject}: {cause}")]
    Internal {
        /// What was being done.
        subject: String,
        /// Why not.
        cause: String,
    },
    /// The registry does not answer, and nobody who shows this has proven anything to it.
    #[error(
        "{reference}: the registry does not answer; show credentials that it took before, or try again later"
    )]
    Unproven {
        /// What was asked for.
        reference: String,
    },
    /// A caller's argument cannot be.
    #[error("{0}")]
    Invalid(String),
}

/// A failure by what the caller can do about it. Doors map it to their status codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The name or another argument cannot be.
    InvalidReference,
    /// No such image, here or at the registry.
    NotFound,
    /// The registry wants other credentials, or any.
    Unauthenticated,
    /// The credentials are known and not enough.
    Denied,
    /// The registry cannot be reached, or is ill.
    RegistryUnavailable,
    /// The registry wants fewer requests.
    RateLimited,
    /// The registry does not speak the protocol.
    Protocol,
    /// Manifest, config or a layer is broken: data loss at the other side.
    BadImage,
    /// The image exceeds a configured limit.
    LimitExceeded,
    /// The disk is full.
    NoSpace,
    /// The image has nothing for the platform asked for.
    Platform,
    /// This machine or this version cannot do it.
    Unsupported,
    /// Given up.
    Cancelled,
    /// Something uses it.
    Busy,
    /// The store's own bytes are damaged.
    Damaged,
    /// Anything else: input or output, the database, a missing thread.
    Internal,
}

impl ErrorKind {
    /// A word for metric labels and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            ErrorKind::InvalidReference => "invalid",
            ErrorKind::NotFound => "not_found",
            ErrorKind::Unauthenticated => "unauthenticated",
            ErrorKind::Denied => "denied",
            ErrorKind::RegistryUnavailable => "registry_unavailable",
            ErrorKind::RateLimited => "rate_limited",
            ErrorKind::Protocol => "protocol",
            ErrorKind::BadImage => "bad_image",
            ErrorKind::LimitExceeded => "limit_exceeded",
            ErrorKind::NoSpace => "no_space",
            ErrorKind::Platform => "platform",
            ErrorKind::Unsupported => "unsupported",
            ErrorKind::Cancelled => "cancelled",
            ErrorKind::Busy => "busy",
            ErrorKind::Damaged => "damaged",
            ErrorKind::Internal => "internal",
        }
    }
}

impl Error {
    /// What kind of failure this is.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Error::Registry { source, .. } => of_registry(source.class()),
            Error::Image { .. } | Error::DiffIdMismatch { .. } => ErrorKind::BadImage,
            Error::Platform { .. } => ErrorKind::Platform,
            Error::Store { source, .. } => of_store(source),
            Error::Ambiguous { .. } | Error::Invalid(_) => ErrorKind::InvalidReference,
            Error::NotFound { .. } => ErrorKind::NotFound,
            Error::Cancelled { .. } => ErrorKind::Cancelled,
            Error::InUse { .. } | Error::UsersUnknown { .. } => ErrorKind::Busy,
            Error::InsufficientSpace { .. } => ErrorKind::NoSpace,
            Error::Internal { .. } => ErrorKind::Internal,
            Error::Unproven { .. } => ErrorKind::Unauthenticated,
            Error::Runtime { .. } => ErrorKind::Unsupported,
        }
    }

    /// True where the same pull may succeed later without a change.
    pub fn is_transient(&self) -> bool {
        matches!(self, Error::Registry { source, .. } if source.is_transient())
    }

    /// What kind of failure of the store this is.
    pub(super) fn of_store(error: &store::Error) -> ErrorKind {
        of_store(error)
    }

    /// True where something protects an image from removal.
    pub(super) fn is_protection(&self) -> bool {
        match self {
            Error::InUse { .. } => true,
            Error::Store { source, .. } => matches!(**source, store::Error::Busy { .. }),
            _ => false,
        }
    }

    pub(super) fn store(subject: impl Into<String>, source: store::Error) -> Self {
        Error::Store {
            subject: subject.into(),
            source: Arc::new(source),
        }
    }
}

/// Some causes name the subject themselves.
fn with_subject(subject: &str, cause: &dyn std::fmt::Display) -> String {
    let text = cause.to_string();
    match text.strip_prefix(subject) {
        Some(rest) if rest.starts_with([':', ' ']) => text,
        _ => format!("{subject}: {text}"),
    }
}

fn of_registry(class: registry::ErrorClass) -> ErrorKind {
    use registry::ErrorClass;
    match class {
        ErrorClass::Unavailable | ErrorClass::Server | ErrorClass::Broken => {
            ErrorKind::RegistryUnavailable
        }
        ErrorClass::Unauthenticated => ErrorKind::Unauthenticated,
        ErrorClass::Denied => ErrorKind::Denied,
        ErrorClass::NotFound => ErrorKind::NotFound,
        ErrorClass::RateLimited => ErrorKind::RateLimited,
        ErrorClass::Protocol => ErrorKind::Protocol,
        ErrorClass::Config => ErrorKind::Internal,
    }
}

fn of_store(error: &store::Error) -> ErrorKind {
    use store::Error as E;
    match error {
        E::NoSpace { .. } | E::Reserved { .. } => ErrorKind::NoSpace,
        E::Io { cause, .. } if cause.kind() == std::io::ErrorKind::StorageFull => {
            ErrorKind::NoSpace
        }
        E::DigestMismatch { .. } | E::SizeMismatch { .. } | E::BadLayer { .. } => {
            ErrorKind::BadImage
        }
        E::Limit { .. } => ErrorKind::LimitExceeded,
        E::Damaged { .. } => ErrorKind::Damaged,
        E::MountUnsupported { .. } | E::Format { .. } => ErrorKind::Unsupported,
        E::Busy { .. } | E::Locked { .. } => ErrorKind::Busy,
        E::Invalid(_) => ErrorKind::InvalidReference,
        E::Source { .. } => ErrorKind::RegistryUnavailable,
        _ => ErrorKind::Internal,
    }
}
