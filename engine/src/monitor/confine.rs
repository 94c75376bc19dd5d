//! The monitor's filter of system calls: what it never needs, a guest that took it over shall not have.
//!
//! Installed once, for all threads, when everything is open. It takes away new programs and processes, other
//! processes' memory, mounts and namespaces, kernel modules and the like, and every socket but Unix ones; such calls
//! fail with EPERM. It is a list of refusals and not of permissions: the C library may choose other calls with the
//! next version, and a container that dies of that would be worse.

use std::collections::BTreeMap;
use std::io;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};

/// Calls that no part of the monitor makes once the machine is there.
const REFUSED: &[libc::c_long] = &[
    // New programs and processes; threads are made by clone and clone3.
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_fork,
    libc::SYS_vfork,
    // Other processes.
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_process_madvise,
    libc::SYS_pidfd_getfd,
    libc::SYS_kcmp,
    // Mounts, roots and namespaces.
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_move_mount,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_open_tree,
    libc::SYS_mount_setattr,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_unshare,
    libc::SYS_setns,
    // Other identities.
    libc::SYS_setuid,
    libc::SYS_setgid,
    libc::SYS_setreuid,
    libc::SYS_setregid,
    libc::SYS_setresuid,
    libc::SYS_setresgid,
    libc::SYS_setgroups,
    libc::SYS_capset,
    // The kernel and the machine.
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_kexec_file_load,
    libc::SYS_reboot,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_io_uring_setup,
    libc::SYS_open_by_handle_at,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_acct,
    libc::SYS_quotactl,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_clock_adjtime,
    libc::SYS_adjtimex,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_iopl,
    libc::SYS_ioperm,
    libc::SYS_syslog,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
];

/// Installs the filter for every thread of this process, for good; new programs could not gain privileges either.
///
/// # Errors
/// The kernel has no seccomp filters.
pub(super) fn confine() -> io::Result<()> {
    seccompiler::apply_filter_all_threads(&filter().map_err(io::Error::other)?).map_err(io::Error::other)
}

fn filter() -> Result<BpfProgram, seccompiler::BackendError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        REFUSED.iter().map(|&number| (number, Vec::new())).collect();
    let unix = libc::AF_UNIX as u64;
    let other = SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Ne, unix)?;
    rules.insert(libc::SYS_socket, vec![SeccompRule::new(vec![other])?]);
    let refuse = SeccompAction::Errno(libc::EPERM.cast_unsigned());
    SeccompFilter::new(rules, SeccompAction::Allow, refuse, std::env::consts::ARCH.try_into()?)?.try_into()
}

#[cfg(test)]
mod tests {
    use std::net::TcpStream;
    use std::os::unix::net::UnixStream;
    use std::process::Command;

    use super::*;

    /// The filter holds for the whole process and for ever: the test runs itself once more, confined.
    #[test]
    fn a_confined_process_cannot_run_programs_or_reach_the_network() {
        const INSIDE: &str = "SERVIN_TEST_CONFINED";
        if std::env::var_os(INSIDE).is_none() {
            let name = "monitor::confine::tests::a_confined_process_cannot_run_programs_or_reach_the_network";
            let status = Command::new(std::env::current_exe().unwrap())
                .args(["--exact", name, "--test-threads", "1"])
                .env(INSIDE, "1")
                .status()
                .unwrap();
            assert!(status.success());
            return;
        }
        confine().unwrap();
        let refused = |error: io::Error| assert_eq!(error.kind(), io::ErrorKind::PermissionDenied, "{error}");
        refused(Command::new("/bin/true").status().unwrap_err());
        refused(TcpStream::connect("127.0.0.1:9").unwrap_err());
        refused(rustix::process::chroot("/").unwrap_err().into());
        UnixStream::pair().unwrap();
        std::thread::spawn(|| std::fs::read("/proc/self/status").unwrap()).join().unwrap();
        let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        assert!(status.contains("Seccomp:\t2") && status.contains("NoNewPrivs:\t1"), "{status}");
    }
}
