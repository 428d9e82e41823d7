//! Logs to standard error: JSON for machines, text for people.

use std::io::{self, IsTerminal};
use std::str::FromStr;

use serde::Deserialize;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

/// How a log line looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Text where standard error is a terminal, JSON elsewhere.
    #[default]
    Auto,
    /// One JSON object a line.
    Json,
    /// Text.
    Human,
}

/// What is logged, and how.
#[derive(Clone, Debug)]
pub struct LogConfig {
    /// How a line looks.
    pub format: LogFormat,
    /// Filter in tracing's syntax: `info`, or `warn,larder::store=debug`.
    pub level: String,
}

impl Default for LogConfig {
    fn default() -> Self {
        LogConfig {
            format: LogFormat::Auto,
            level: "info".to_owned(),
        }
    }
}

/// Logging cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The filter is malformed.
    #[error(
        "log level {level:?}: {cause}; write a level (error, warn, info, debug, trace) or target=level, with commas"
    )]
    Level {
        /// What was given.
        level: String,
        /// What is wrong with it.
        cause: String,
    },
    /// The format is unknown.
    #[error("log format {0:?} is none of auto, json, human")]
    Format(String),
    /// Something else logs already.
    #[error("logging is set up already")]
    Taken,
}

impl FromStr for LogFormat {
    type Err = LogError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "auto" => Ok(LogFormat::Auto),
            "json" => Ok(LogFormat::Json),
            "human" => Ok(LogFormat::Human),
            other => Err(LogError::Format(other.chars().take(32).collect())),
        }
    }
}

impl LogConfig {
    /// Says what is wrong with the level, if anything is.
    pub fn validate(&self) -> Result<(), LogError> {
        self.filter().map(|_| ())
    }
    fn filter(&self) -> Result<EnvFilter, LogError> {
        let level = || self.level.chars().take(128).collect();
        if self.level.trim().is_empty() {
            return Err(LogError::Level {
                level: level(),
                cause: "it is empty".to_owned(),
            });
        }
        // A misspelt level would be taken for the name of a module, and nothing would be logged.
        let word = |part: &str| part.chars().all(|c| c.is_ascii_alphanumeric());
        for part in self.level.split(',').map(str::trim) {
            if word(part) && part.parse::<LevelFilter>().is_err() {
                return Err(LogError::Level {
                    level: level(),
                    cause: format!("{part:?} is no level"),
                });
            }
        }
        // The client logs each attempt that fails; who uses it says once that the API server is gone.
        EnvFilter::builder()
            .parse(format!("kube_client=off,{}", self.level))
            .map_err(|error| LogError::Level {
                level: level(),
                cause: error.to_string(),
            })
    }
}

/// Sets up logging for the whole process, once.
pub fn init(config: &LogConfig) -> Result<(), LogError> {
    let filter = config.filter()?;
    let terminal = io::stderr().is_terminal();
    let json = match config.format {
        LogFormat::Auto => !terminal,
        LogFormat::Json => true,
        LogFormat::Human => false,
    };
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr);
    let done = if json {
        builder
            .json()
            .flatten_event(true)
            .with_span_list(false)
            .try_init()
    } else {
        let colour = terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        builder.with_ansi(colour).with_target(false).try_init()
    };
    done.map_err(|_| LogError::Taken)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_and_filters_are_judged_before_use() {
        for (level, good) in [
            ("info", true),
            ("warn,larder::store=debug", true),
            ("off", true),
            ("WARN", true),
            ("larder::store", true),
            ("inof", false),
            ("warn,debgu", false),
            ("larder=warn,", true),
            ("", false),
            ("larder=loud", false),
            ("=", false),
        ] {
            let config = LogConfig {
                level: level.to_owned(),
                ..LogConfig::default()
            };
            assert_eq!(config.validate().is_ok(), good, "{level}");
        }
    }

    #[test]
    fn formats() {
        assert_eq!("json".parse::<LogFormat>().unwrap(), LogFormat::Json);
        let error = "yaml".parse::<LogFormat>().unwrap_err().to_string();
        assert_eq!(error, "log format \"yaml\" is none of auto, json, human");
    }
}
