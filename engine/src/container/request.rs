//! What a user asked for, checked but not yet joined with what the image says.
//!
//! The command line makes a [`Request`]; [`super::plan`] joins it with the image's configuration. It is kept in the
//! container's record as JSON.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{HealthRequest, Limits, Privileges};
use crate::monitor::log::LogOptions;
use crate::network::Networking;
use crate::volume::VolumeMount;

/// Memory of a container that was not given any, in bytes.
pub const DEFAULT_MEMORY: u64 = 512 << 20;
/// The smallest memory limit, in bytes: docker's.
pub const LEAST_MEMORY: u64 = 6 << 20;
/// The most virtual CPUs of a container.
pub const MOST_CPUS: u32 = 8;

/// Bytes that are nearly always text: an argument, a variable, a path. In JSON a string where it is UTF-8, else a
/// list of numbers.
#[derive(Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(from = "TextForm", into = "TextForm")]
pub struct Text(pub Vec<u8>);

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum TextForm {
    Text(String),
    Bytes(Vec<u8>),
}

impl From<TextForm> for Text {
    fn from(form: TextForm) -> Self {
        match form {
            TextForm::Text(text) => Text(text.into_bytes()),
            TextForm::Bytes(bytes) => Text(bytes),
        }
    }
}

impl From<Text> for TextForm {
    fn from(text: Text) -> Self {
        match String::from_utf8(text.0) {
            Ok(text) => TextForm::Text(text),
            Err(error) => TextForm::Bytes(error.into_bytes()),
        }
    }
}

impl Text {
    /// As a path of the host.
    #[must_use]
    pub fn as_path(&self) -> &Path {
        Path::new(OsStr::from_bytes(&self.0))
    }
}

impl fmt::Debug for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", String::from_utf8_lossy(&self.0))
    }
}

impl fmt::Display for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from_utf8_lossy(&self.0))
    }
}

impl From<&str> for Text {
    fn from(text: &str) -> Self {
        Text(text.as_bytes().to_vec())
    }
}

impl From<String> for Text {
    fn from(text: String) -> Self {
        Text(text.into_bytes())
    }
}

impl From<OsString> for Text {
    fn from(text: OsString) -> Self {
        Text(text.into_vec())
    }
}

impl From<PathBuf> for Text {
    fn from(path: PathBuf) -> Self {
        Text(path.into_os_string().into_vec())
    }
}

/// Where the root file system comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RootSource {
    /// An image by reference or id, as it was written.
    Image(String),
    /// An absolute directory of the host, shared read-only.
    Directory(Text),
}

impl RootSource {
    /// As it was written: the image or the directory.
    #[must_use]
    pub fn name(&self) -> String {
        match self {
            RootSource::Image(name) => name.clone(),
            RootSource::Directory(dir) => dir.to_string(),
        }
    }
}

/// Processor time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cpus {
    /// Billionths of a CPU, at least 10,000,000 (0.01).
    pub nano: u64,
}

impl Cpus {
    /// One whole CPU, the default.
    pub const ONE: Self = Self { nano: 1_000_000_000 };

    /// Virtual CPUs that the machine needs for it, 1 to [`MOST_CPUS`].
    #[must_use]
    pub fn count(self) -> u32 {
        let count = self.nano.div_ceil(1_000_000_000).clamp(1, u64::from(MOST_CPUS));
        u32::try_from(count).unwrap_or(MOST_CPUS)
    }

    /// So much of each period, both in microseconds; the period is not 0.
    #[must_use]
    pub fn of_quota(quota_us: u64, period_us: u32) -> Self {
        Self { nano: quota_us.saturating_mul(1_000_000_000).div_ceil(u64::from(period_us.max(1))) }
    }

    /// The quota in microseconds of every `period_us`, if it is not a whole number of CPUs.
    #[must_use]
    pub fn quota_us(self, period_us: u32) -> Option<u32> {
        if self.nano.is_multiple_of(1_000_000_000) {
            return None;
        }
        u32::try_from(self.nano.saturating_mul(period_us.into()) / 1_000_000_000).ok()
    }
}

/// A file or directory of the host, seen in the container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bind {
    /// Absolute path on the host.
    pub host: Text,
    /// Absolute path in the container.
    pub target: Text,
    /// The host refuses writes.
    pub read_only: bool,
    /// An error if the host has nothing there; else a directory is made.
    #[serde(default)]
    pub must_exist: bool,
    /// Whose view of it is right while both change it.
    #[serde(default)]
    pub consistency: Consistency,
}

/// How soon container and host see each other's changes of what they share; the names are docker's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Consistency {
    /// Both see everything at once: the container asks the host for each name and each size.
    Consistent,
    /// The host sees writes at once; the container believes what it knows for a second.
    #[default]
    Cached,
    /// The container alone changes it: it remembers all, and writes later, at the latest when a file is closed or synced.
    Delegated,
}

/// A tmpfs in the container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tmpfs {
    /// Absolute path in the container.
    pub target: Text,
    /// Greatest size in bytes; `None` is half of the memory.
    pub size: Option<u64>,
    /// Permissions of its root.
    pub mode: u32,
    /// No writing.
    pub read_only: bool,
    /// Nothing on it can be executed.
    pub no_exec: bool,
    /// Setuid bits have no effect.
    pub no_suid: bool,
    /// Device nodes have no effect.
    pub no_dev: bool,
}

/// What a container's monitor does when the program has ended by itself. A monitor that is killed, or whose host goes down,
/// starts nothing: there is no daemon.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Restart {
    /// Nothing.
    #[default]
    No,
    /// Starts it again if its exit code is not 0, at most so many times.
    OnFailure(Option<u32>),
    /// Starts it again.
    Always,
    /// The same: without a daemon there is nothing that would start one that was stopped.
    UnlessStopped,
}

impl Restart {
    /// Whether a program that ended with `code`, after it was started `restarts` times by its policy, is started again.
    #[must_use]
    pub fn again(self, code: u8, restarts: u32) -> bool {
        match self {
            Restart::No => false,
            Restart::OnFailure(most) => code != 0 && most.is_none_or(|most| restarts < most),
            Restart::Always | Restart::UnlessStopped => true,
        }
    }

    /// Docker's name, and the most times (0 for no limit).
    #[must_use]
    pub fn name(self) -> (&'static str, u32) {
        match self {
            Restart::No => ("no", 0),
            Restart::OnFailure(most) => ("on-failure", most.unwrap_or(0)),
            Restart::Always => ("always", 0),
            Restart::UnlessStopped => ("unless-stopped", 0),
        }
    }
}

/// What to run and in what.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// The wanted name; one is made up without.
    pub name: Option<String>,
    /// The root file system.
    pub root: RootSource,
    /// Arguments after the image: instead of the image's CMD.
    pub args: Vec<Text>,
    /// Instead of the image's ENTRYPOINT (its CMD is then dropped); empty for none at all.
    pub entrypoint: Option<Text>,
    /// `NAME=value` sets, `NAME` removes what the image sets. Later ones win.
    pub env: Vec<Text>,
    /// Instead of the image's WORKDIR; absolute.
    pub cwd: Option<Text>,
    /// Instead of the image's USER.
    pub user: Option<String>,
    /// Host name; the short id without.
    pub hostname: Option<String>,
    /// The container's memory limit in bytes, at least [`LEAST_MEMORY`].
    pub memory: u64,
    /// Processor time.
    pub cpus: Cpus,
    /// Files and directories of the host.
    pub binds: Vec<Bind>,
    /// Volumes.
    #[serde(default)]
    pub volumes: Vec<VolumeMount>,
    /// Memory file systems.
    pub tmpfs: Vec<Tmpfs>,
    /// The root cannot be written.
    pub read_only: bool,
    /// The program has a terminal.
    pub terminal: bool,
    /// The program has an input.
    pub stdin: bool,
    /// Remove the container when it ends.
    pub remove: bool,
    /// Nobody is attached from the start.
    pub detach: bool,
    /// A guest kernel instead of the installed one; absolute.
    pub kernel: Option<Text>,
    /// Signal that `stop` sends instead of the image's, by number.
    pub stop_signal: Option<u8>,
    /// Seconds that `stop` waits before it kills.
    pub stop_timeout: Option<u32>,
    /// Labels, in addition to the image's.
    pub labels: Vec<(String, String)>,
    /// The NIS domain name, and the host name's domain.
    #[serde(default)]
    pub domainname: Option<String>,
    /// More lines of /etc/hosts: name and address.
    #[serde(default)]
    pub hosts: Vec<(String, String)>,
    /// PID 1 is an init that starts the program.
    #[serde(default)]
    pub init: bool,
    /// What it may use.
    #[serde(default)]
    pub limits: Limits,
    /// What it may do.
    #[serde(default)]
    pub privileges: Privileges,
    /// How it is checked.
    #[serde(default)]
    pub health: HealthRequest,
    /// What is kept of its output.
    #[serde(default)]
    pub log: LogOptions,
    /// The network.
    #[serde(default)]
    pub network: Networking,
    /// Greatest size in bytes of what the container may change; [`super::DEFAULT_DISK`] without.
    #[serde(default)]
    pub disk: Option<u64>,
    /// What happens when the program ends.
    #[serde(default)]
    pub restart: Restart,
}

impl Request {
    /// A request for the image or directory, with everything else at its default.
    #[must_use]
    pub fn new(root: RootSource) -> Self {
        Request {
            name: None,
            root,
            args: Vec::new(),
            entrypoint: None,
            env: Vec::new(),
            cwd: None,
            user: None,
            hostname: None,
            memory: DEFAULT_MEMORY,
            cpus: Cpus::ONE,
            binds: Vec::new(),
            volumes: Vec::new(),
            tmpfs: Vec::new(),
            read_only: false,
            terminal: false,
            stdin: false,
            remove: false,
            detach: false,
            kernel: None,
            stop_signal: None,
            stop_timeout: None,
            labels: Vec::new(),
            domainname: None,
            hosts: Vec::new(),
            init: false,
            limits: Limits::default(),
            privileges: Privileges::default(),
            health: HealthRequest::default(),
            log: LogOptions::default(),
            network: Networking::default(),
            disk: None,
            restart: Restart::No,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_a_string_in_json_unless_it_is_not_utf_8() {
        let both = vec![Text::from("plain"), Text(vec![0xff, 0x41])];
        let json = serde_json::to_string(&both).unwrap();
        assert_eq!(json, r#"["plain",[255,65]]"#);
        assert_eq!(serde_json::from_str::<Vec<Text>>(&json).unwrap(), both);
    }

    #[test]
    fn a_policy_starts_again_what_ended_as_it_says() {
        let on_failure = Restart::OnFailure(Some(2));
        for (policy, code, restarts, again) in [
            (Restart::No, 1, 0, false),
            (Restart::Always, 0, 1000, true),
            (Restart::UnlessStopped, 0, 0, true),
            (Restart::OnFailure(None), 0, 0, false),
            (Restart::OnFailure(None), 3, 1000, true),
            (on_failure, 3, 1, true),
            (on_failure, 3, 2, false),
        ] {
            assert_eq!(policy.again(code, restarts), again, "{policy:?} {code} {restarts}");
        }
    }

    #[test]
    fn cpus_round_up_to_virtual_cpus_and_a_fraction_is_a_quota() {
        let of = |nano| (Cpus { nano }.count(), Cpus { nano }.quota_us(100_000));
        assert_eq!(of(1_000_000_000), (1, None));
        assert_eq!(of(500_000_000), (1, Some(50_000)));
        assert_eq!(of(1_500_000_000), (2, Some(150_000)));
        assert_eq!(of(8_000_000_000), (8, None));
        assert_eq!(of(10_000_000), (1, Some(1_000)));
        for (quota, period) in [(10_000, 30_000), (1_001, 1_000_000), (7_999, 1_000)] {
            assert_eq!(Cpus::of_quota(quota.into(), period).quota_us(period), Some(quota), "of {period}");
        }
    }
}
