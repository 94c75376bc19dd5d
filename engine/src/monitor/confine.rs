//! The monitor's filter of system calls: what it never needs, a guest that took it over shall not have.
//!
//! Installed once, for all threads, when everything is open. It takes away new programs and processes, other
//! processes' memory, mounts and namespaces, kernel modules and the like, and every socket but Unix ones and, for a
//! container with a network, those of TCP, UDP and ping; such calls fail with EPERM. It is a list of refusals and not
//! of permissions: the C library may choose other calls with the next version, and a container that dies of that would
//! be worse.

use std::io;

use seccompiler::{BpfProgram, sock_filter};

/// Calls that no part of the monitor makes once the machine is there.
const REFUSED: &[libc::c_long] = &[
    // New programs and processes; threads are made by clone and clone3. Newer architectures have no calls of their own
    // for what clone does, and no ports.
    libc::SYS_execve,
    libc::SYS_execveat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_fork,
    #[cfg(target_arch = "x86_64")]
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
    #[cfg(target_arch = "x86_64")]
    libc::SYS_iopl,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_ioperm,
    libc::SYS_syslog,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
];

/// Installs the filter for every thread of this process, for good; new programs could not gain privileges either.
///
/// With `network`, sockets of the Internet protocols can still be made.
///
/// # Errors
/// The kernel has no seccomp filters.
pub(super) fn confine(network: bool) -> io::Result<()> {
    seccompiler::apply_filter_all_threads(&filter(network)).map_err(io::Error::other)
}

/// What becomes of a range of calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Allow,
    Refuse,
    /// Only Unix sockets.
    Socket,
    /// Unix sockets, and those of the Internet protocols but raw ones.
    NetworkSocket,
}

/// Numbers from here on are calls of the x32 ABI, by which every refusal could be walked around.
#[cfg(target_arch = "x86_64")]
const FOREIGN: u32 = 0x4000_0000;
#[cfg(not(target_arch = "x86_64"))]
const FOREIGN: u32 = u32::MAX;

/// `AUDIT_ARCH_*` (linux/audit.h) of this program.
#[cfg(target_arch = "x86_64")]
const ARCH: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const ARCH: u32 = 0xc000_00b7;

/// The filter as a binary search over ranges of numbers. The kernel runs a new filter once for every number there is,
/// to know which calls need not be asked about later: a list that is looked through one by one cost more of a warm
/// start than the clone of its machine (1.6 million instructions).
fn filter(network: bool) -> BpfProgram {
    // Offsets in struct seccomp_data (linux/seccomp.h).
    const NUMBER: u32 = 0;
    const ARCHITECTURE: u32 = 4;
    let mut program = vec![load(ARCHITECTURE), jump(JUMP_EQUAL, ARCH, 1, 0), give(RETURN_KILL), load(NUMBER)];
    program.extend(search(&ranges(network)));
    program
}

/// Verdicts with the number that each begins at, ascending; the first begins at 0.
fn ranges(network: bool) -> Vec<(u32, Verdict)> {
    let socket = if network { Verdict::NetworkSocket } else { Verdict::Socket };
    let mut marked: Vec<(u32, Verdict)> = REFUSED
        .iter()
        .map(|&number| (number, Verdict::Refuse))
        .chain([(libc::SYS_socket, socket)])
        .filter_map(|(number, verdict)| Some((u32::try_from(number).ok()?, verdict)))
        .collect();
    marked.sort_unstable_by_key(|(number, _)| *number);
    let mut ranges = vec![(0, Verdict::Allow)];
    let mut begin = |at: u32, verdict: Verdict| {
        match ranges.last_mut() {
            // The range that would begin here is empty.
            Some(last) if last.0 == at => last.1 = verdict,
            _ => ranges.push((at, verdict)),
        }
    };
    for (number, verdict) in marked {
        begin(number, verdict);
        begin(number + 1, Verdict::Allow);
    }
    begin(FOREIGN, Verdict::Refuse);
    ranges.dedup_by_key(|(_, verdict)| *verdict);
    ranges
}

fn search(ranges: &[(u32, Verdict)]) -> BpfProgram {
    let (low, high) = ranges.split_at(ranges.len() / 2);
    match (low, high) {
        (_, [(_, verdict)]) if low.is_empty() => decide(*verdict),
        (_, [(begin, _), ..]) => {
            let low = search(low);
            // About two instructions a range: far from the 255 that a jump reaches.
            let skip = u8::try_from(low.len()).unwrap_or(u8::MAX);
            let mut program = vec![jump(JUMP_GREATER_EQUAL, *begin, skip, 0)];
            program.extend(low);
            program.extend(search(high));
            program
        }
        (_, []) => vec![give(RETURN_REFUSE)],
    }
}

fn decide(verdict: Verdict) -> BpfProgram {
    const FIRST_ARGUMENT: u32 = if cfg!(target_endian = "little") { 16 } else { 20 };
    const SECOND_ARGUMENT: u32 = FIRST_ARGUMENT + 8;
    match verdict {
        Verdict::Allow => vec![give(RETURN_ALLOW)],
        Verdict::Refuse => vec![give(RETURN_REFUSE)],
        Verdict::Socket => vec![
            load(FIRST_ARGUMENT),
            jump(JUMP_EQUAL, libc::AF_UNIX.cast_unsigned(), 1, 0),
            give(RETURN_REFUSE),
            give(RETURN_ALLOW),
        ],
        Verdict::NetworkSocket => vec![
            load(FIRST_ARGUMENT),
            jump(JUMP_EQUAL, libc::AF_UNIX.cast_unsigned(), 6, 0),
            jump(JUMP_EQUAL, libc::AF_INET.cast_unsigned(), 2, 0),
            jump(JUMP_EQUAL, libc::AF_INET6.cast_unsigned(), 1, 0),
            give(RETURN_REFUSE),
            load(SECOND_ARGUMENT),
            // The type is in the low bits; above them are flags.
            sock_filter { code: AND, jt: 0, jf: 0, k: 0xf },
            jump(JUMP_EQUAL, libc::SOCK_RAW.cast_unsigned(), 1, 0),
            give(RETURN_ALLOW),
            give(RETURN_REFUSE),
        ],
    }
}

// Classic BPF (linux/bpf_common.h, linux/filter.h) and what a filter gives (linux/seccomp.h).
const LOAD_WORD: u16 = 0x20;
const JUMP_EQUAL: u16 = 0x15;
const JUMP_GREATER_EQUAL: u16 = 0x35;
const AND: u16 = 0x54;
const RETURN: u16 = 0x06;
const RETURN_KILL: u32 = 0x8000_0000;
const RETURN_ALLOW: u32 = 0x7fff_0000;
const RETURN_REFUSE: u32 = 0x0005_0000 | libc::EPERM.cast_unsigned();

fn load(offset: u32) -> sock_filter {
    sock_filter { code: LOAD_WORD, jt: 0, jf: 0, k: offset }
}

fn jump(code: u16, k: u32, jt: u8, jf: u8) -> sock_filter {
    sock_filter { code, jt, jf, k }
}

fn give(k: u32) -> sock_filter {
    sock_filter { code: RETURN, jt: 0, jf: 0, k }
}

#[cfg(test)]
mod tests {
    use std::net::TcpStream;
    use std::os::unix::net::UnixStream;
    use std::process::Command;

    use super::*;

    /// Carries the program out as the kernel does.
    fn verdict(program: &[sock_filter], number: u32, argument: u32, second: u32) -> u32 {
        let (mut at, mut word, mut steps) = (0, 0, 0);
        loop {
            let instruction = &program[at];
            at += 1;
            steps += 1;
            assert!(steps < 20, "{number}: not a search");
            let jumps = match instruction.code {
                LOAD_WORD => {
                    word = match instruction.k {
                        0 => number,
                        4 => ARCH,
                        16 => argument,
                        24 => second,
                        offset => panic!("a load from {offset}"),
                    };
                    continue;
                }
                AND => {
                    word &= instruction.k;
                    continue;
                }
                RETURN => return instruction.k,
                JUMP_EQUAL => word == instruction.k,
                JUMP_GREATER_EQUAL => word >= instruction.k,
                code => panic!("code {code:#x}"),
            };
            at += usize::from(if jumps { instruction.jt } else { instruction.jf });
        }
    }

    #[test]
    fn exactly_the_listed_calls_are_refused_after_a_few_steps() {
        let (inet, unix) = (libc::AF_INET.cast_unsigned(), libc::AF_UNIX.cast_unsigned());
        let socket = u32::try_from(libc::SYS_socket).unwrap();
        for network in [false, true] {
            let program = filter(network);
            assert!(program.len() < 255, "{} instructions", program.len());
            for number in (0..1024).chain([FOREIGN - 1, FOREIGN, FOREIGN + 59, u32::MAX]) {
                let listed =
                    REFUSED.contains(&number.into()) || number >= FOREIGN || (number == socket && !network);
                let expected = if listed { RETURN_REFUSE } else { RETURN_ALLOW };
                assert_eq!(verdict(&program, number, inet, 1), expected, "call {number}");
            }
            assert_eq!(verdict(&program, socket, unix, 1), RETURN_ALLOW);
            // Raw ones, with a flag; and packets.
            assert_eq!(verdict(&program, socket, inet, 0x80003), RETURN_REFUSE);
            assert_eq!(verdict(&program, socket, libc::AF_PACKET.cast_unsigned(), 2), RETURN_REFUSE);
        }
    }

    /// The filter holds for the whole process and for ever: the test runs itself once more, confined.
    fn confined(name: &str, network: bool) -> bool {
        const INSIDE: &str = "SERVIN_TEST_CONFINED";
        if std::env::var_os(INSIDE).is_some() {
            confine(network).unwrap();
            return true;
        }
        let name = format!("monitor::confine::tests::{name}");
        let status = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", &name, "--test-threads", "1"])
            .env(INSIDE, "1")
            .status()
            .unwrap();
        assert!(status.success());
        false
    }

    fn refused(error: io::Error) {
        assert_eq!(error.kind(), io::ErrorKind::PermissionDenied, "{error}");
    }

    #[test]
    fn a_confined_process_cannot_run_programs_or_reach_the_network() {
        if !confined("a_confined_process_cannot_run_programs_or_reach_the_network", false) {
            return;
        }
        refused(Command::new("/bin/true").status().unwrap_err());
        refused(TcpStream::connect("127.0.0.1:9").unwrap_err());
        refused(rustix::process::chroot("/").unwrap_err().into());
        UnixStream::pair().unwrap();
        std::thread::spawn(|| std::fs::read("/proc/self/status").unwrap()).join().unwrap();
        let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        assert!(status.contains("Seccomp:\t2") && status.contains("NoNewPrivs:\t1"), "{status}");
    }

    #[test]
    fn a_process_with_a_network_reaches_it_by_the_usual_sockets_alone() {
        if !confined("a_process_with_a_network_reaches_it_by_the_usual_sockets_alone", true) {
            return;
        }
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        refused(Command::new("/bin/true").status().unwrap_err());
        use rustix::net::{AddressFamily, SocketType, ipproto, socket};
        refused(socket(AddressFamily::INET, SocketType::RAW, Some(ipproto::ICMP)).unwrap_err().into());
        refused(socket(AddressFamily::PACKET, SocketType::DGRAM, None).unwrap_err().into());
        refused(socket(AddressFamily::NETLINK, SocketType::DGRAM, None).unwrap_err().into());
    }
}
