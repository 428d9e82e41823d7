//! How a verb ends when it does not succeed.

use tonic::{Code, Status};

/// Exit code and what to say.
#[derive(Debug)]
pub(super) struct Failure {
    code: u8,
    text: Option<String>,
}

impl Failure {
    pub(super) fn failed(text: impl Into<String>) -> Self {
        Failure {
            code: 1,
            text: Some(text.into()),
        }
    }

    pub(super) fn usage(text: impl Into<String>) -> Self {
        Failure {
            code: 2,
            text: Some(text.into()),
        }
    }

    /// What was found has been printed; only the code is left to tell.
    pub(super) fn told(code: u8) -> Self {
        Failure { code, text: None }
    }

    pub(super) fn code(&self) -> u8 {
        self.code
    }

    pub(super) fn text(&self) -> Option<&str> {
        self.text.as_deref()
    }
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        let code = match status.code() {
            Code::NotFound => 3,
            Code::InvalidArgument => 2,
            _ => 1,
        };
        let text = match status.message() {
            "" => format!("the agent answers {:?}", status.code()),
            text => text.to_owned(),
        };
        Failure {
            code,
            text: Some(text),
        }
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        // Whoever reads has read enough, as `head` does.
        if error.kind() == std::io::ErrorKind::BrokenPipe {
            return Failure::told(0);
        }
        Failure::failed(error.to_string())
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Failure::failed(format!("{error:#}"))
    }
}
