//! W3C trace context: which trace a request belongs to (<https://www.w3.org/TR/trace-context/>, "traceparent").

use std::fmt;
use std::str::FromStr;

/// The caller's place in its trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceContext {
    trace: [u8; 16],
    parent: [u8; 8],
    sampled: bool,
}

/// The header is not a trace context.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a traceparent: {0}")]
pub struct TraceContextError(&'static str);

impl TraceContext {
    /// Of the whole trace, 32 hex digits.
    pub fn trace_id(&self) -> String {
        hex::encode(self.trace)
    }
    /// Of the caller's span, 16 hex digits.
    pub fn parent_id(&self) -> String {
        hex::encode(self.parent)
    }
    /// The caller records this trace.
    pub fn sampled(&self) -> bool {
        self.sampled
    }
}

fn lower_hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    if text.bytes().any(|byte| byte.is_ascii_uppercase()) {
        return None;
    }
    let mut bytes = [0; N];
    hex::decode_to_slice(text, &mut bytes).ok()?;
    Some(bytes)
}

impl FromStr for TraceContext {
    type Err = TraceContextError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut fields = text.trim().splitn(5, '-');
        let mut field = || {
            fields
                .next()
                .ok_or(TraceContextError("it has less than four fields"))
        };
        let (version, trace, parent, flags) = (field()?, field()?, field()?, field()?);
        let [version] = lower_hex::<1>(version)
            .ok_or(TraceContextError("the version is not two hex digits"))?;
        if version == 0xff {
            return Err(TraceContextError("version ff is reserved"));
        }
        // Later versions may add fields; version 00 has exactly four.
        if version == 0 && fields.next().is_some() {
            return Err(TraceContextError("version 00 has four fields"));
        }
        let trace = lower_hex::<16>(trace).ok_or(TraceContextError(
            "the trace id is not 32 lower-case hex digits",
        ))?;
        let parent = lower_hex::<8>(parent).ok_or(TraceContextError(
            "the parent id is not 16 lower-case hex digits",
        ))?;
        let [flags] =
            lower_hex::<1>(flags).ok_or(TraceContextError("the flags are not two hex digits"))?;
        if trace == [0; 16] || parent == [0; 8] {
            return Err(TraceContextError("an id of zeros means none"));
        }
        Ok(TraceContext {
            trace,
            parent,
            sampled: flags & 1 == 1,
        })
    }
}

impl fmt::Display for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "00-{}-{}-{:02x}",
            self.trace_id(),
            self.parent_id(),
            u8::from(self.sampled)
        )
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn parses_what_the_recommendation_shows() {
        let text = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let context: TraceContext = text.parse().unwrap();
        assert_eq!(context.trace_id(), "4bf92f3577b34da6a3ce929d0e0e4736");
        assert_eq!(context.parent_id(), "00f067aa0ba902b7");
        assert!(context.sampled());
        assert_eq!(context.to_string(), text);
        assert!(
            "cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-what-ever"
                .parse::<TraceContext>()
                .is_ok()
        );
    }

    #[test]
    fn refuses_the_rest() {
        for text in [
            "",
            "00",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-x",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4bf92f3577b34da6a3ce929d0e0e473-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-1",
        ] {
            assert!(text.parse::<TraceContext>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn never_panics(text in ".{0,80}") {
            let _ = text.parse::<TraceContext>();
        }
    }
}
