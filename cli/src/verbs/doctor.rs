//! `servin doctor`: what the host offers, and what to do where something is missing.

use std::fs;
use std::path::Path;

use servin_engine::guest::Guest;
#[cfg(target_os = "linux")]
use servin_engine::host::{self, Device, Host, KVM, Kind};
use servin_engine::store;

use crate::args::Global;
use crate::error::Result;
#[cfg(not(target_os = "linux"))]
use crate::finding;
use crate::finding::{Finding, render};
use crate::output;

/// Prints the findings; 1 if one of them keeps containers from running.
pub(crate) fn run(global: &Global) -> Result<u8> {
    let mut findings = machines();
    findings.push(guest());
    findings.push(data_root(global));
    output::text(&render(&findings));
    Ok(u8::from(findings.iter().any(|finding| !finding.fine)))
}

/// What machines need of the host.
#[cfg(target_os = "linux")]
fn machines() -> Vec<Finding> {
    let host = Host::look();
    let mut findings = hypervisor(&host);
    if matches!(host.device, Device::Usable) {
        findings.push(capabilities());
    }
    findings.push(huge_pages(host.huge_pages.as_deref()));
    findings
}

/// What machines need of the host.
#[cfg(not(target_os = "linux"))]
fn machines() -> Vec<Finding> {
    vec![finding::hypervisor(finding::smallest_machine())]
}

#[cfg(target_os = "linux")]
fn hypervisor(host: &Host) -> Vec<Finding> {
    let topic = "hypervisor";
    let device = match &host.device {
        Device::Usable => Finding::good(topic, format!("{KVM} can be opened")),
        Device::Missing => {
            let (why, todo) = match (host.extensions, host.is_guest) {
                (Some(_), _) => {
                    ("the kvm module is not loaded", "load it: modprobe kvm-amd, or modprobe kvm-intel")
                }
                (None, true) => (
                    "this machine is a virtual one without nested virtualization",
                    "switch nested virtualization on where this machine is configured, or use another machine",
                ),
                (None, false) => (
                    "the processor shows no virtualization extensions",
                    "switch SVM or VT-x on in the firmware's setup",
                ),
            };
            Finding::bad(topic, format!("there is no {KVM}: {why}"), todo)
        }
        Device::Refused(error) => Finding::bad(
            topic,
            format!("{KVM} cannot be opened: {error}"),
            "join the group that owns it (sudo usermod -aG kvm $USER, then log in again)",
        ),
    };
    let mut findings = vec![device];
    match host.kind {
        Some(Kind::Pvm) => findings.push(Finding::good("kind", "kvm_pvm, without hardware extensions").and(
            "guest kernels are emulated here: a start takes many seconds, programs then run at full speed",
        )),
        Some(kind) => {
            let nested = if host.is_guest { ", nested: this host is a virtual machine itself" } else { "" };
            findings.push(Finding::good("kind", format!("{}{nested}", kind.name())));
        }
        None => {}
    }
    findings
}

/// Only asked of a device that can be opened: otherwise its own line says why not.
#[cfg(target_os = "linux")]
fn capabilities() -> Finding {
    match host::capabilities() {
        Ok(caps) => {
            let yes = |able: bool| if able { "yes" } else { "no" };
            let text = format!(
                "{}: up to {} CPUs for a container, doorbells {}, read-only memory {}",
                caps.name,
                caps.max_cpus,
                yes(caps.doorbells),
                yes(caps.read_only),
            );
            Finding::good("abilities", text)
        }
        Err(error) => Finding::bad(
            "abilities",
            output::chain(&error),
            "use a newer kernel, or a host whose KVM has what is missing",
        ),
    }
}

#[cfg(target_os = "linux")]
fn huge_pages(setting: Option<&str>) -> Finding {
    match setting {
        Some("always" | "madvise") => Finding::good("huge pages", "guest memory uses them"),
        Some(other) => Finding::good("huge pages", format!("switched off ({other})"))
            .and("starts are faster with: echo madvise > /sys/kernel/mm/transparent_hugepage/enabled"),
        None => Finding::good("huge pages", "this kernel has none"),
    }
}

fn guest() -> Finding {
    let topic = "guest";
    let guest = match Guest::find(None) {
        Ok(guest) => guest,
        Err(error) => {
            // What to do stands in a line of its own here.
            let text = error.to_string();
            let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with("build it ")).collect();
            let todo = "build it (make guest), or name a directory in SERVIN_GUEST_DIR";
            return Finding::bad(topic, lines.join("\n"), todo);
        }
    };
    match guest.verify() {
        Ok(manifest) => {
            Finding::good(topic, format!("Linux {} in {}", manifest.version, guest.kernel.display()))
        }
        Err(error) => Finding::bad(topic, output::chain(&error), "build it again: make guest"),
    }
}

fn data_root(global: &Global) -> Finding {
    let topic = "data root";
    let root = match global.data_root.clone().map_or_else(store::default_root, Ok) {
        Ok(root) => root,
        Err(error) => return Finding::bad(topic, output::chain(&error), "name one: --data-root DIR"),
    };
    // Nothing is made here: the nearest directory that exists decides.
    let Some(place) = root.ancestors().find(|path| path.exists()).map(Path::to_path_buf) else {
        return Finding::bad(
            topic,
            format!("{} has no parent", root.display()),
            "name another: --data-root DIR",
        );
    };
    let writable = rustix::fs::access(&place, rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK);
    if let Err(error) = writable {
        let text = format!("{} cannot be written: {error}", root.display());
        return Finding::bad(topic, text, "name another: --data-root DIR");
    }
    if fs::metadata(&place).is_ok_and(|meta| !meta.is_dir()) {
        let text = format!("{} is not a directory", place.display());
        return Finding::bad(topic, text, "name another: --data-root DIR");
    }
    let free = match rustix::fs::statvfs(&place) {
        Ok(stat) => stat.f_bavail.saturating_mul(stat.f_frsize),
        Err(error) => {
            return Finding::bad(
                topic,
                format!("{}: {error}", root.display()),
                "name another: --data-root DIR",
            );
        }
    };
    let text = format!("{}, {} MiB free", root.display(), free >> 20);
    match free >> 20 {
        0..64 => Finding::bad(topic, text, "free some space, or name another: --data-root DIR"),
        _ => Finding::good(topic, text),
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    fn host(device: Device) -> Host {
        Host { device, kind: None, is_guest: false, extensions: None, huge_pages: None }
    }

    #[test]
    fn a_refused_device_says_which_group_to_join() {
        let error = std::io::Error::from(std::io::ErrorKind::PermissionDenied);
        let text = render(&hypervisor(&host(Device::Refused(error))));
        assert!(
            text.starts_with("FAIL  hypervisor  /dev/kvm cannot be opened: permission denied\n"),
            "{text}"
        );
        assert!(text.contains("usermod -aG kvm"), "{text}");
        assert!(text.ends_with("Containers cannot run here yet.\n"), "{text}");
    }

    #[test]
    fn a_missing_device_says_why_as_far_as_it_can_be_seen() {
        let mut host = host(Device::Missing);
        assert!(render(&hypervisor(&host)).contains("firmware's setup"));
        host.is_guest = true;
        assert!(render(&hypervisor(&host)).contains("nested virtualization"));
        host.extensions = Some("svm");
        assert!(render(&hypervisor(&host)).contains("modprobe kvm-amd"));
    }

    #[test]
    fn the_slow_kind_is_fine_and_explained() {
        let mut host = host(Device::Usable);
        host.kind = Some(Kind::Pvm);
        let text = render(&hypervisor(&host));
        assert!(text.contains("a start takes many seconds"), "{text}");
        assert!(text.ends_with("Containers can run here.\n"), "{text}");
    }
}
