//! What is run: the request joined with the image's configuration, by docker's rules.

use std::fmt::Write as _;
use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};
use servin_init::proto::{Configure, Exec, Mount, MountSource, WindowSize};

use super::limits::bound;
use super::{HealthCheck, Request, Text, signal};
use crate::image::Process;
use crate::monitor::merge_env;
use crate::network::{self, NetworkPlan, Published};
use crate::{Error, Result};

/// Bytes that the machine has above the container's limit, for the guest's kernel, with [`OVERHEAD_SHIFT`].
const OVERHEAD: u64 = 32 << 20;
/// The kernel's books about memory grow with it: one byte of 64.
const OVERHEAD_SHIFT: u32 = 6;
/// Machine memory is laid out in steps of this.
const STEP: u64 = 2 << 20;
/// Seconds that `stop` waits.
const STOP_TIMEOUT: u32 = 10;

/// Tag of the share that is the root file system.
pub(crate) const ROOT_TAG: &str = "root";

/// What is run. Kept in the container's record beside the request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// Program and arguments, never empty.
    pub argv: Vec<Text>,
    /// `NAME=value`; the guest adds what is missing of PATH, HOSTNAME, HOME and TERM.
    pub env: Vec<Text>,
    /// Absolute working directory, made if missing.
    pub cwd: Text,
    /// User as the image or the request names it; empty is root.
    pub user: String,
    /// Host name.
    pub hostname: String,
    /// Signal that `stop` sends.
    pub stop_signal: u8,
    /// Seconds that `stop` waits before it kills.
    pub stop_timeout: u32,
    /// The image's labels and the request's.
    pub labels: Vec<(String, String)>,
    /// How it is checked.
    #[serde(default)]
    pub health: Option<HealthCheck>,
    /// Published ports, as they were bound.
    #[serde(default)]
    pub ports: Vec<Published>,
    /// Exposed ports, the image's and the request's.
    #[serde(default)]
    pub exposed: Vec<String>,
    /// What a container that continues a saved one has as its machine-id, for that of the saved one would be its twin's.
    #[serde(default)]
    pub machine_id: Option<String>,
}

/// Where programs look for the machine-id (machine-id(5)).
const MACHINE_ID: &[u8] = b"/etc/machine-id";

impl Plan {
    /// Joins a request with the configuration of its image, if it has one.
    ///
    /// # Errors
    /// [`Error::NoCommand`] if nothing says what to run.
    pub fn new(request: &Request, image: &Process, id: &str) -> Result<Self> {
        let words = |list: &[String]| list.iter().map(|word| Text::from(word.as_str())).collect::<Vec<_>>();
        let (mut argv, cmd) = match &request.entrypoint {
            Some(program) if program.0.is_empty() => (Vec::new(), Vec::new()),
            Some(program) => (vec![program.clone()], Vec::new()),
            None => (words(&image.entrypoint), words(&image.cmd)),
        };
        argv.extend(if request.args.is_empty() { cmd } else { request.args.clone() });
        if argv.is_empty() {
            return Err(Error::NoCommand);
        }
        let base: Vec<Vec<u8>> = image.env.iter().map(|variable| variable.clone().into_bytes()).collect();
        let env = merge_env(&base, &request.env).into_iter().map(Text).collect();
        let cwd = match &request.cwd {
            Some(cwd) => cwd.clone(),
            None if image.working_dir.starts_with('/') => Text::from(image.working_dir.as_str()),
            None => Text::from(format!("/{}", image.working_dir)),
        };
        let mut labels: std::collections::BTreeMap<String, String> = image.labels.clone();
        labels.extend(request.labels.iter().cloned());
        let stop_signal = match request.stop_signal {
            Some(signal) => signal,
            // An image's word that means nothing is no reason not to run it.
            None => signal::number(&image.stop_signal).unwrap_or(15),
        };
        Ok(Plan {
            argv,
            env,
            cwd,
            user: request.user.clone().unwrap_or_else(|| image.user.clone()),
            hostname: request.hostname.clone().unwrap_or_else(|| short(id)),
            stop_signal,
            stop_timeout: request.stop_timeout.unwrap_or(STOP_TIMEOUT),
            labels: labels.into_iter().collect(),
            health: HealthCheck::new(&request.health, image.healthcheck.as_ref()),
            ports: Vec::new(),
            exposed: exposed(request, image),
            machine_id: None,
        })
    }

    /// What the guest makes of its file systems, names and limits.
    pub(crate) fn configure(&self, request: &Request, binds: &[BindShare]) -> Configure {
        let mut mounts: Vec<Mount> = request
            .tmpfs
            .iter()
            .map(|tmpfs| Mount {
                source: MountSource::Tmpfs { size: tmpfs.size, mode: tmpfs.mode },
                target: tmpfs.target.0.clone(),
                read_only: tmpfs.read_only,
                no_exec: tmpfs.no_exec,
                no_suid: tmpfs.no_suid,
                no_dev: tmpfs.no_dev,
            })
            .collect();
        mounts.extend(binds.iter().map(|bind| Mount {
            source: MountSource::Virtiofs { tag: bind.tag.clone(), path: bind.path.clone() },
            target: bind.target.0.clone(),
            read_only: bind.read_only,
            no_exec: false,
            no_suid: false,
            no_dev: false,
        }));
        // A mount point lies in what was mounted before it: the shorter path first.
        mounts.sort_by_key(|mount| mount.target.split(|byte| *byte == b'/').count());
        // Who lays a file or directory of the host there wants that.
        let is_given = binds.iter().any(|bind| {
            let rest = MACHINE_ID.strip_prefix(bind.target.0.as_slice());
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"))
        });
        let mut configure = Configure {
            machine_id: self
                .machine_id
                .as_ref()
                .filter(|_| !is_given)
                .map(|id| format!("{id}\n").into_bytes()),
            hostname: self.hostname.clone(),
            domainname: request.domainname.clone().unwrap_or_default(),
            read_only: request.read_only,
            forget_changes: request.remove,
            mounts,
            limits: request.limits.cgroup(request.memory, request.cpus),
            shm_size: request.limits.shm_size,
            sysctls: request.limits.sysctls(),
            ..Configure::default()
        };
        self.networks(request).tell(&mut configure);
        configure
    }

    /// What its networks are to its machine and its guest.
    pub(crate) fn networks(&self, request: &Request) -> NetworkPlan {
        NetworkPlan {
            networking: request.network.clone(),
            publish: request.network.wanted(&self.exposed),
            hosts: hosts(&self.hostname, request),
            resolv_conf: network::resolv_conf(&request.network),
        }
    }

    /// The main program.
    pub(crate) fn main(&self, request: &Request, id: u32, size: Option<WindowSize>) -> Exec {
        let exec = Exec {
            id,
            argv: self.argv.iter().map(|word| word.0.clone()).collect(),
            env: self.env.iter().map(|word| word.0.clone()).collect(),
            cwd: self.cwd.0.clone(),
            create_cwd: true,
            user: self.user.clone(),
            terminal: request.terminal.then(|| size.unwrap_or_default()),
            stdin: request.stdin,
            init: request.init,
            main: true,
            ..Exec::default()
        };
        bound(exec, &request.limits, &request.privileges)
    }
}

/// A bind mount as the guest finds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct BindShare {
    /// Tag of its share.
    pub(crate) tag: String,
    /// Name of the one file in the share, or empty for the whole of it.
    pub(crate) path: Vec<u8>,
    /// Where it is mounted.
    pub(crate) target: Text,
    /// No writing.
    pub(crate) read_only: bool,
}

/// Bytes of machine memory for a container with this limit.
#[must_use]
pub fn machine_memory(limit: u64) -> u64 {
    let whole = limit.saturating_add(OVERHEAD).saturating_add(limit >> OVERHEAD_SHIFT);
    whole.checked_next_multiple_of(STEP).unwrap_or(u64::MAX)
}

/// The highest limit in whole MiB of a container whose machine has so many bytes of memory.
#[must_use]
pub fn container_memory(machine: u64) -> u64 {
    let (mut fits, mut too_much) = (0, (machine >> 20) + 1);
    while too_much - fits > 1 {
        let middle = fits.midpoint(too_much);
        if machine_memory(middle << 20) <= machine {
            fits = middle;
        } else {
            too_much = middle;
        }
    }
    fits << 20
}

/// The first twelve digits of an id.
#[must_use]
pub fn short(id: &str) -> String {
    id.chars().take(12).collect()
}

fn hosts(hostname: &str, request: &Request) -> Vec<u8> {
    let own = match &request.domainname {
        Some(domain) if !hostname.contains('.') => format!("{hostname}.{domain} {hostname}"),
        _ => hostname.to_owned(),
    };
    let networks = &request.network;
    let mut addresses = String::new();
    for one in &networks.attachments {
        let _ = writeln!(addresses, "{}\t{own}", Ipv4Addr::from(networks.network(one).address));
        // As docker has it: where containers have IPv6 among each other, both addresses have the name.
        let six = one.place.as_ref().and_then(|place| Some(place.v6?.address(place.address, place.subnet)));
        if let Some(address) = six {
            let _ = writeln!(addresses, "{address}\t{own}");
        }
    }
    if !networks.has_card() {
        // There is a name, and nowhere else to point it.
        addresses = format!("127.0.1.1\t{own}\n");
    }
    let more: String = request.hosts.iter().map(|(name, address)| format!("{address}\t{name}\n")).collect();
    format!(
        "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::0\tip6-localnet\nff00::0\tip6-mcastprefix\n\
         ff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n{addresses}{more}"
    )
    .into_bytes()
}

/// What the image and the request expose, as `80/tcp`, each once.
fn exposed(request: &Request, image: &Process) -> Vec<String> {
    let asked = request.network.expose.iter().map(|(port, protocol)| format!("{port}/{protocol}"));
    let published = request.network.publish.iter().map(|one| format!("{}/{}", one.guest, one.protocol));
    let all: std::collections::BTreeSet<String> =
        image.exposed_ports.iter().cloned().chain(asked).chain(published).collect();
    all.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use servin_init::proto::CpuLimit;

    use crate::container::{Cpus, RootSource, Tmpfs};

    fn image() -> Process {
        Process {
            entrypoint: vec!["/entry".into(), "-e".into()],
            cmd: vec!["cmd".into(), "arg".into()],
            env: vec!["PATH=/bin".into(), "A=image".into(), "B=image".into()],
            user: "app".into(),
            working_dir: "/srv".into(),
            ..Process::default()
        }
    }

    fn plan(change: impl FnOnce(&mut Request)) -> Plan {
        let mut request = Request::new(RootSource::Image("x".into()));
        change(&mut request);
        Plan::new(&request, &image(), "0123456789abcdef").unwrap()
    }

    fn argv(plan: &Plan) -> Vec<String> {
        plan.argv.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn the_image_says_what_to_run_unless_the_request_does() {
        assert_eq!(argv(&plan(|_| {})), ["/entry", "-e", "cmd", "arg"]);
        assert_eq!(argv(&plan(|r| r.args = vec!["x".into()])), ["/entry", "-e", "x"]);
    }

    #[test]
    fn another_entrypoint_drops_the_images_cmd() {
        assert_eq!(argv(&plan(|r| r.entrypoint = Some("sh".into()))), ["sh"]);
        let both = plan(|r| (r.entrypoint, r.args) = (Some("sh".into()), vec!["-c".into(), "x".into()]));
        assert_eq!(argv(&both), ["sh", "-c", "x"]);
    }

    #[test]
    fn an_empty_entrypoint_runs_the_arguments_themselves() {
        let plan = plan(|r| (r.entrypoint, r.args) = (Some(Text::default()), vec!["ls".into()]));
        assert_eq!(argv(&plan), ["ls"]);
        let mut request = Request::new(RootSource::Image("x".into()));
        request.entrypoint = Some(Text::default());
        assert!(matches!(Plan::new(&request, &image(), "0"), Err(Error::NoCommand)));
    }

    #[test]
    fn nothing_to_run_is_an_error() {
        let request = Request::new(RootSource::Image("x".into()));
        assert!(matches!(Plan::new(&request, &Process::default(), "0"), Err(Error::NoCommand)));
    }

    #[test]
    fn variables_of_the_request_replace_add_and_remove() {
        let plan =
            plan(|r| r.env = vec!["A=mine".into(), "B".into(), "C=1".into(), "C=2".into(), "D".into()]);
        let env: Vec<String> = plan.env.iter().map(ToString::to_string).collect();
        assert_eq!(env, ["PATH=/bin", "A=mine", "C=2"]);
    }

    #[test]
    fn user_directory_and_names_come_from_the_image_unless_given() {
        let given = plan(|_| {});
        assert_eq!((given.user.as_str(), given.cwd.to_string().as_str()), ("app", "/srv"));
        assert_eq!(given.hostname, "0123456789ab");
        assert_eq!((given.stop_signal, given.stop_timeout), (15, 10));
        let own = plan(|r| {
            (r.user, r.cwd, r.hostname) = (Some("0".into()), Some("/x".into()), Some("box".into()));
            (r.stop_signal, r.stop_timeout) = (Some(2), Some(3));
        });
        assert_eq!(
            (own.user.as_str(), own.cwd.to_string().as_str(), own.hostname.as_str()),
            ("0", "/x", "box")
        );
        assert_eq!((own.stop_signal, own.stop_timeout), (2, 3));
    }

    #[test]
    fn mount_points_come_after_what_they_lie_in() {
        let mut request = Request::new(RootSource::Image("x".into()));
        let tmpfs = |target: &str| Tmpfs {
            target: target.into(),
            size: None,
            mode: 0o1777,
            read_only: false,
            no_exec: true,
            no_suid: true,
            no_dev: true,
        };
        request.tmpfs = vec![tmpfs("/a/b/c"), tmpfs("/z")];
        request.cpus = Cpus { nano: 500_000_000 };
        let plan = Plan::new(&request, &image(), "0").unwrap();
        let bind = BindShare { tag: "v0".into(), path: Vec::new(), target: "/a/b".into(), read_only: true };
        let configure = plan.configure(&request, &[bind]);
        let targets: Vec<_> = configure.mounts.iter().map(|mount| mount.target.as_slice()).collect();
        assert_eq!(targets, [&b"/z"[..], b"/a/b", b"/a/b/c"]);
        assert_eq!(configure.limits.cpu, Some(CpuLimit { quota_us: 50_000, period_us: 100_000 }));
        assert_eq!(configure.limits.memory_max, Some(512 << 20));
    }

    #[test]
    fn a_machine_id_is_told_unless_something_of_the_host_lies_there() {
        let mut plan = plan(|_| {});
        let request = Request::new(RootSource::Image("x".into()));
        let at = |target: &str| {
            [BindShare { tag: "v0".into(), path: Vec::new(), target: target.into(), read_only: true }]
        };
        assert_eq!(plan.configure(&request, &[]).machine_id, None);
        plan.machine_id = Some("0123".into());
        for target in ["/var", "/etc/machine", "/etc/machine-id.d", "/e"] {
            assert_eq!(plan.configure(&request, &at(target)).machine_id.as_deref(), Some(&b"0123\n"[..]));
        }
        for target in ["/etc", "/etc/machine-id"] {
            assert_eq!(plan.configure(&request, &at(target)).machine_id, None, "{target}");
        }
    }

    #[test]
    fn the_hosts_file_has_the_domain_and_the_lines_that_were_asked_for() {
        let mut request = Request::new(RootSource::Image("x".into()));
        request.domainname = Some("example.org".into());
        request.hosts = vec![("db".into(), "10.0.0.5".into()), ("v6".into(), "::2".into())];
        let file = String::from_utf8(hosts("box", &request)).unwrap();
        assert!(file.ends_with("10.0.2.15\tbox.example.org box\n10.0.0.5\tdb\n::2\tv6\n"), "{file}");
    }

    #[test]
    fn the_machine_has_more_memory_than_the_container() {
        assert_eq!(machine_memory(512 << 20), (512 + 32 + 8) << 20);
        assert_eq!(machine_memory(6 << 20) % STEP, 0);
        assert_eq!(machine_memory(u64::MAX), u64::MAX);
        for limit in [6_u64, 64, 500, 512, 4096] {
            let machine = machine_memory(limit << 20);
            assert_eq!(machine_memory(container_memory(machine)), machine, "{limit} MiB");
        }
    }
}
