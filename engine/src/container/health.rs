//! Health checks: what is asked for, what the image says, and how a container is.

use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::Text;
use crate::{Error, Result};

/// The file in a container's directory that says how it is.
const FILE: &str = "health.json";
/// The default time between two checks, and the longest one may take.
const HALF_MINUTE: u64 = 30_000_000_000;
/// The default time between two checks while the container starts.
const FIVE_SECONDS: u64 = 5_000_000_000;
/// Failures in a row that make a container unhealthy.
const RETRIES: u32 = 3;

/// What the command line says about checks; times in nanoseconds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct HealthRequest {
    /// None at all, whatever the image says.
    pub disabled: bool,
    /// A line for the shell.
    pub command: Option<String>,
    /// Between two checks.
    pub interval: Option<u64>,
    /// The longest that one may take.
    pub timeout: Option<u64>,
    /// Failures in a row.
    pub retries: Option<u32>,
    /// Time to start in, during which failures do not count.
    pub start_period: Option<u64>,
    /// Between two checks during that time.
    pub start_interval: Option<u64>,
}

/// A container's check; times in nanoseconds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthCheck {
    /// The program and its arguments.
    pub argv: Vec<Text>,
    /// `argv` was made of a line for the shell.
    pub shell: bool,
    /// See [`HealthRequest`].
    pub interval: u64,
    /// See [`HealthRequest`].
    pub timeout: u64,
    /// See [`HealthRequest`].
    pub retries: u32,
    /// See [`HealthRequest`].
    pub start_period: u64,
    /// See [`HealthRequest`].
    pub start_interval: u64,
}

impl HealthCheck {
    /// Joins a request with the image's `HEALTHCHECK`; `None` if nothing is to be checked.
    pub(crate) fn new(request: &HealthRequest, image: Option<&Value>) -> Option<Self> {
        if request.disabled {
            return None;
        }
        let words = |value: &Value| -> Vec<String> {
            let list = value.get("Test").and_then(Value::as_array);
            list.into_iter().flatten().filter_map(|word| Some(word.as_str()?.to_owned())).collect()
        };
        let shell = |line: &str| ["/bin/sh", "-c", line].map(Text::from).to_vec();
        let (argv, is_shell) = match (&request.command, image.map(words).as_deref()) {
            (Some(line), _) => (shell(line), true),
            (None, Some([kind, line])) if kind == "CMD-SHELL" => (shell(line), true),
            (None, Some([kind, argv @ ..])) if kind == "CMD" && !argv.is_empty() => {
                (argv.iter().map(|word| Text::from(word.as_str())).collect(), false)
            }
            _ => return None,
        };
        // As docker has it, 0 is the default.
        let number = |own: Option<u64>, name: &str| {
            let image = || image?.get(name)?.as_u64();
            own.or_else(image).filter(|number| *number > 0)
        };
        let retries = number(request.retries.map(u64::from), "Retries");
        Some(HealthCheck {
            argv,
            shell: is_shell,
            interval: number(request.interval, "Interval").unwrap_or(HALF_MINUTE),
            timeout: number(request.timeout, "Timeout").unwrap_or(HALF_MINUTE),
            retries: retries.and_then(|number| u32::try_from(number).ok()).unwrap_or(RETRIES),
            start_period: number(request.start_period, "StartPeriod").unwrap_or(0),
            start_interval: number(request.start_interval, "StartInterval").unwrap_or(FIVE_SECONDS),
        })
    }

    /// As docker shows it in a container's configuration.
    #[must_use]
    pub fn describe(&self) -> Value {
        let words = |argv: &[Text]| argv.iter().map(ToString::to_string).collect::<Vec<_>>();
        let test = match self.argv.as_slice() {
            [_, _, line] if self.shell => vec!["CMD-SHELL".to_owned(), line.to_string()],
            argv => [vec!["CMD".to_owned()], words(argv)].concat(),
        };
        json!({
            "Test": test, "Interval": self.interval, "Timeout": self.timeout, "Retries": self.retries,
            "StartPeriod": self.start_period, "StartInterval": self.start_interval,
        })
    }

    /// Time to the next check.
    pub(crate) fn pause(&self, is_starting: bool) -> Duration {
        Duration::from_nanos(if is_starting { self.start_interval } else { self.interval })
    }
}

/// How a container is, in docker's words and fields.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Health {
    /// `starting`, `healthy` or `unhealthy`.
    pub status: String,
    /// Failures in a row.
    pub failing_streak: u32,
    /// The last checks, the newest last.
    pub log: Vec<HealthResult>,
}

/// One check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct HealthResult {
    /// When it began, RFC 3339.
    pub start: String,
    /// When it ended.
    pub end: String,
    /// The program's exit code; -1 if it did not end in time or could not be started.
    pub exit_code: i32,
    /// The beginning of what it wrote.
    pub output: String,
}

impl Health {
    /// One that has not been checked yet.
    pub(crate) fn starting() -> Self {
        Health { status: "starting".into(), failing_streak: 0, log: Vec::new() }
    }

    /// Reads it from a container's directory; `None` if nothing is written there.
    #[must_use]
    pub fn read(dir: &Path) -> Option<Self> {
        serde_json::from_slice(&std::fs::read(dir.join(FILE)).ok()?).ok()
    }

    /// Writes it, whole or not at all.
    pub(crate) fn write(&self, dir: &Path) -> Result<()> {
        let (path, new) = (dir.join(FILE), dir.join("health.json.new"));
        let text = serde_json::to_vec(self)
            .map_err(|source| Error::Json { what: "the container's health".into(), source })?;
        std::fs::write(&new, text).map_err(|source| Error::io("write", &new, source))?;
        std::fs::rename(&new, &path).map_err(|source| Error::io("write", &path, source))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn argv(check: &HealthCheck) -> Vec<String> {
        check.argv.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn the_image_says_what_is_checked_unless_the_request_does() {
        let image = json!({ "Test": ["CMD-SHELL", "curl -f x || exit 1"], "Interval": 5_000_000_000_u64, "Retries": 0 });
        let check = HealthCheck::new(&HealthRequest::default(), Some(&image)).unwrap();
        assert_eq!(argv(&check), ["/bin/sh", "-c", "curl -f x || exit 1"]);
        assert_eq!((check.interval, check.timeout, check.retries), (5_000_000_000, HALF_MINUTE, 3));
        assert_eq!(check.describe()["Test"], json!(["CMD-SHELL", "curl -f x || exit 1"]));
        let own =
            HealthRequest { command: Some("true".into()), retries: Some(1), ..HealthRequest::default() };
        let check = HealthCheck::new(&own, Some(&image)).unwrap();
        assert_eq!((argv(&check)[2].as_str(), check.interval, check.retries), ("true", 5_000_000_000, 1));
        let exec = json!({ "Test": ["CMD", "/check", "-v"] });
        let check = HealthCheck::new(&HealthRequest::default(), Some(&exec)).unwrap();
        assert_eq!(argv(&check), ["/check", "-v"]);
        assert_eq!(check.describe()["Test"], json!(["CMD", "/check", "-v"]));
    }

    #[test]
    fn nothing_is_checked_where_nobody_asks_or_somebody_forbids() {
        let image = json!({ "Test": ["CMD-SHELL", "x"] });
        let disabled = HealthRequest { disabled: true, ..HealthRequest::default() };
        assert_eq!(HealthCheck::new(&disabled, Some(&image)), None);
        assert_eq!(HealthCheck::new(&HealthRequest::default(), None), None);
        for odd in [
            json!({ "Test": ["NONE"] }),
            json!({ "Test": [] }),
            json!({}),
            json!(7),
            json!({ "Test": ["CMD"] }),
        ] {
            assert_eq!(HealthCheck::new(&HealthRequest::default(), Some(&odd)), None, "{odd}");
        }
    }

    #[test]
    fn how_a_container_is_is_read_back_as_written() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Health::read(dir.path()), None);
        let mut health = Health::starting();
        health.log.push(HealthResult {
            start: "a".into(),
            end: "b".into(),
            exit_code: -1,
            output: "o".into(),
        });
        health.write(dir.path()).unwrap();
        assert_eq!(Health::read(dir.path()), Some(health));
    }
}
