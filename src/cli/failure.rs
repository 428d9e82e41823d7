//! How a verb ends when it does not end well: an exit code and one line for people.

use std::io::{self, IsTerminal, Write};
use std::path::Path;

use tonic::{Code, Status};

/// Anything that has no code of its own.
pub(super) const FAILED: u8 = 1;
/// The command line is wrong.
pub(super) const USAGE: u8 = 2;
/// What was asked for is not there.
pub(super) const NOT_FOUND: u8 = 3;

/// Why a verb failed.
#[derive(Debug)]
pub(super) struct Failure {
    code: u8,
    /// Empty where all was said already.
    message: String,
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl Failure {
    pub(super) fn new(message: impl std::fmt::Display) -> Self {
        Failure {
            code: FAILED,
            message: message.to_string(),
        }
    }

    pub(super) fn usage(message: impl std::fmt::Display) -> Self {
        Failure {
            code: USAGE,
            message: message.to_string(),
        }
    }

    pub(super) fn not_found(message: impl std::fmt::Display) -> Self {
        Failure {
            code: NOT_FOUND,
            message: message.to_string(),
        }
    }

    /// Everything was printed; only the exit code is left.
    pub(super) fn silent(code: u8) -> Self {
        Failure {
            code,
            message: String::new(),
        }
    }

    /// An answer of the agent, or of the store behind the same interface.
    pub(super) fn of_status(status: &Status, agent: Option<&Path>) -> Self {
        use std::error::Error;
        let Some(socket) = agent.map(Path::display) else {
            return Failure {
                code: code(status.code()),
                message: status.message().to_owned(),
            };
        };
        let message = match status.code() {
            Code::Unimplemented => format!(
                "{socket} does not speak larder.v1: is it the socket of a larder agent, and is the agent as new as this program?"
            ),
            // An answer has no cause; a broken connection has.
            _ if status.source().is_some() => {
                format!("the agent at {socket} went away before it answered; its log says why")
            }
            _ => status.message().to_owned(),
        };
        Failure {
            code: code(status.code()),
            message,
        }
    }

    pub(super) fn code(&self) -> u8 {
        self.code
    }

    /// One line, `larder: MESSAGE`. That nobody reads it changes nothing.
    pub(super) fn print(&self, to: &mut impl Write) {
        if self.message.is_empty() {
            return;
        }
        let name = program();
        let begin = if coloured(&io::stderr()) {
            format!("\x1b[1;31m{name}:\x1b[0m")
        } else {
            format!("{name}:")
        };
        let _ = writeln!(to, "{begin} {}", self.message);
    }
}

/// As a person calls it.
fn program() -> &'static str {
    let called = std::env::args_os().next().unwrap_or_default();
    let plugin = Path::new(&called)
        .file_name()
        .is_some_and(|name| name == "kubectl-larder");
    if plugin { "kubectl larder" } else { "larder" }
}

/// Failures of a verb that goes on with its other images after one.
#[derive(Debug, Default)]
pub(super) struct Failures {
    worst: Option<u8>,
}

impl Failures {
    /// Prints it at once, and keeps the code that the verb will end with: any other failure outweighs "not found".
    pub(super) fn note(&mut self, failure: &Failure) {
        failure.print(&mut io::stderr().lock());
        self.worst = match self.worst {
            None | Some(NOT_FOUND) => Some(failure.code),
            worst => worst,
        };
    }

    pub(super) fn end(self) -> Result<(), Failure> {
        self.worst.map_or(Ok(()), |code| Err(Failure::silent(code)))
    }
}

/// Printing failed. A reader that hung up, such as `head`, has what it wanted.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            return Self::silent(0);
        }
        Self::new(format!("standard output: {error}"))
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::new(format!("{error:#}"))
    }
}

fn code(code: Code) -> u8 {
    match code {
        Code::NotFound => NOT_FOUND,
        _ => FAILED,
    }
}

/// Whether colours may be used there: a terminal that can, and nobody said no (<https://no-color.org>).
pub(super) fn coloured(stream: &impl IsTerminal) -> bool {
    let set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    stream.is_terminal()
        && !set("NO_COLOR")
        && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes() {
        let socket = Path::new("/run/larder.sock");
        let answer = Status::not_found("busybox: no such image");
        for agent in [None, Some(socket)] {
            let failure = Failure::of_status(&answer, agent);
            assert_eq!(
                (failure.code(), failure.message.as_str()),
                (NOT_FOUND, answer.message())
            );
        }
        let failure = Failure::of_status(&Status::unimplemented(""), Some(socket));
        assert_eq!(failure.code(), FAILED);
        assert!(failure.message.contains("/run/larder.sock"));
        let lost = Status::from_error(Box::new(io::Error::other("connection reset")));
        assert!(
            Failure::of_status(&lost, Some(socket))
                .message
                .contains("went away")
        );
        assert_eq!(
            Failure::from(io::Error::from(io::ErrorKind::BrokenPipe)).code(),
            0
        );
        assert_eq!(Failure::from(io::Error::other("full")).code(), FAILED);
    }

    #[test]
    fn the_worst_counts() {
        let ends = |codes: &[u8]| {
            let mut failures = Failures::default();
            codes
                .iter()
                .for_each(|code| failures.note(&Failure::silent(*code)));
            failures.end().map_or_else(|failure| failure.code(), |()| 0)
        };
        assert_eq!(ends(&[]), 0);
        assert_eq!(ends(&[NOT_FOUND, NOT_FOUND]), NOT_FOUND);
        assert_eq!(ends(&[NOT_FOUND, FAILED]), FAILED);
        assert_eq!(ends(&[FAILED, NOT_FOUND]), FAILED);
    }

    #[test]
    fn one_line_or_none() {
        let mut out = Vec::new();
        Failure::silent(3).print(&mut out);
        assert!(out.is_empty());
        Failure::new("no").print(&mut out);
        assert!(String::from_utf8(out).unwrap().ends_with(" no\n"));
    }
}
