//! The few system calls and instructions that have no safe form elsewhere.
#![allow(unsafe_code)] // Raw system calls, port output and the time stamp counter.

use alloc::{ffi::CString, vec::Vec};
use core::{
    arch::asm,
    ffi::{CStr, c_char},
    mem::size_of,
    ptr::null,
};

use rustix::{
    fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd},
    io::{Errno, Result},
};

#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
compile_error!("the agent is written for x86_64 Linux so far");

// arch/x86/entry/syscalls/syscall_64.tbl
const IOCTL: usize = 16;
const CONNECT: usize = 42;
const SETSOCKOPT: usize = 54;
const EXECVE: usize = 59;
const EXIT: usize = 60;
const KILL: usize = 62;
const PRCTL: usize = 157;
const IOPERM: usize = 173;
const PRLIMIT64: usize = 302;
const CLONE3: usize = 435;

/// `include/uapi/linux/sched.h`
const CLONE_VM: u64 = 0x100;
const CLONE_PIDFD: u64 = 0x1000;
const CLONE_VFORK: u64 = 0x4000;
const CLONE_NEWPID: u64 = 0x2000_0000;
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
const SIGCHLD: u64 = 17;

/// A system call of up to five arguments.
///
/// # Safety
/// The arguments must be what the call takes, and pointers must stay valid for what it does with them.
unsafe fn syscall<const N: usize>(number: usize, given: [usize; N]) -> Result<usize> {
    let mut args = [0; 5];
    for (argument, given) in args.iter_mut().zip(given) {
        *argument = given;
    }
    let result: isize;
    // SAFETY: the syscall instruction changes rax, rcx and r11 only; the rest is the caller's.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") number => result,
            in("rdi") args[0],
            in("rsi") args[1],
            in("rdx") args[2],
            in("r10") args[3],
            in("r8") args[4],
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    check(result)
}

fn check(result: isize) -> Result<usize> {
    match usize::try_from(result) {
        Ok(value) => Ok(value),
        Err(_) => Err(Errno::from_raw_os_error(-(result as i32))),
    }
}

/// The time stamp counter.
pub(crate) fn cycles() -> u64 {
    // SAFETY: rdtsc is there on every x86_64 and, with CR4.TSD clear as Linux leaves it, allowed to everyone.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// Strings as execve(2) takes them: terminated, and a null-terminated list of pointers to them.
#[derive(Debug)]
pub(crate) struct Strings {
    _owned: Vec<CString>,
    pointers: Vec<*const c_char>,
}

impl Strings {
    pub(crate) fn new(owned: Vec<CString>) -> Self {
        let pointers = owned.iter().map(|s| s.as_ptr()).chain([null()]).collect();
        Self { _owned: owned, pointers }
    }
}

/// Replaces the process by the program at `path`; returns only an error.
pub(crate) fn execve(path: &CStr, argv: &Strings, env: &Strings) -> Errno {
    let args = [path.as_ptr() as usize, argv.pointers.as_ptr() as usize, env.pointers.as_ptr() as usize];
    // SAFETY: a terminated path and two lists of terminated strings with a null at their ends, all borrowed
    // for the call.
    match unsafe { syscall(EXECVE, args) } {
        Ok(_) => Errno::NOEXEC,
        Err(errno) => errno,
    }
}

/// `struct clone_args` of clone3(2), 88 bytes.
#[repr(C)]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// Size of the stack that a child runs on until it executes a program.
const STACK: usize = 64 * 1024;

/// A state and the function that a child runs on it.
#[repr(C)]
struct Start<'a, T> {
    run: extern "C" fn(&mut Start<'_, T>) -> !,
    state: &'a mut T,
    body: fn(&mut T),
}

/// Makes a child process that runs `body` on `state` **in the memory of the agent**, which stands still until the
/// child has executed a program or returned from `body`. What `body` leaves in `state` is seen afterwards.
///
/// In a new PID namespace if `new_pid_namespace`, in `cgroup` if given. Returns its PID and a pidfd.
pub(crate) fn spawn<T>(
    new_pid_namespace: bool,
    cgroup: Option<BorrowedFd<'_>>,
    state: &mut T,
    body: fn(&mut T),
) -> Result<(i32, OwnedFd)> {
    extern "C" fn run<T>(start: &mut Start<'_, T>) -> ! {
        (start.body)(start.state);
        exit_now(127)
    }
    let mut stack: Vec<u8> = Vec::new();
    stack.try_reserve_exact(STACK).map_err(|_| Errno::NOMEM)?;
    let mut start = Start { run: run::<T>, state, body };
    let mut pidfd: RawFd = -1;
    let mut args = CloneArgs {
        flags: CLONE_VM | CLONE_VFORK | CLONE_PIDFD,
        pidfd: (&raw mut pidfd) as u64,
        exit_signal: SIGCHLD,
        stack: stack.as_mut_ptr() as u64,
        // The ABI wants 16 byte alignment at the call in the child.
        stack_size: (STACK & !15) as u64,
        ..CloneArgs::default()
    };
    if new_pid_namespace {
        args.flags |= CLONE_NEWPID;
    }
    if let Some(cgroup) = cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = cgroup.as_raw_fd() as u64;
    }
    let result: isize;
    // SAFETY: `args` is a whole clone_args. The child gets a stack of its own, aligned (the heap aligns 64 KiB
    // objects to a page) and alive until the parent goes on. With CLONE_VFORK the parent goes on only when the
    // child has left this memory, so `start` and what it borrows are used by one of them at a time; from the
    // parent's view the whole run of the child happens inside this asm block, which may change memory.
    // Registers are copied into the child, r12 among them; `run` does not return.
    unsafe {
        asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "xor ebp, ebp",
            "mov rdi, r12",
            "call qword ptr [r12]", // Start::run
            "ud2",
            "2:",
            inlateout("rax") CLONE3 => result,
            in("rdi") &raw mut args,
            in("rsi") size_of::<CloneArgs>(),
            in("r12") &raw mut start,
            lateout("rcx") _,
            lateout("r11") _,
        );
    }
    let pid = check(result)?;
    // SAFETY: CLONE_PIDFD stored a new descriptor there, which nobody else owns.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    Ok((pid as i32, pidfd))
}

/// Ends the process at once.
pub(crate) fn exit_now(code: u8) -> ! {
    loop {
        // SAFETY: exit takes a number and does not return.
        let _ = unsafe { syscall(EXIT, [usize::from(code)]) };
    }
}

/// kill(2), with real-time signals too.
pub(crate) fn kill(pid: i32, signal: u8) -> Result<()> {
    // SAFETY: two numbers.
    unsafe { syscall(KILL, [pid as usize, usize::from(signal)]) }.map(drop)
}

/// Takes capability number `capability` out of the bounding set (prctl(2), PR_CAPBSET_DROP).
pub(crate) fn drop_from_bounding_set(capability: u32) -> Result<()> {
    // SAFETY: two numbers.
    unsafe { syscall(PRCTL, [24, capability as usize]) }.map(drop)
}

/// prlimit64(2) on the calling process.
pub(crate) fn set_rlimit(limit: &servin_init::proto::Rlimit) -> Result<()> {
    let new: [u64; 2] = [limit.soft, limit.hard];
    // SAFETY: `new` is a struct rlimit64, and no old one is asked for.
    unsafe { syscall(PRLIMIT64, [0, usize::from(limit.resource), new.as_ptr() as usize, 0]) }.map(drop)
}

/// Starts connecting a socket to a vsock address (`struct sockaddr_vm`, linux/vm_sockets.h).
///
/// The kernel gives up after two seconds by itself, which a busy host can take. The host is there as long as the
/// guest is, so it gets ten minutes.
pub(crate) fn connect_vsock(socket: BorrowedFd<'_>, cid: u32, port: u32) -> Result<()> {
    const AF_VSOCK: u32 = 40;
    const SO_VM_SOCKETS_CONNECT_TIMEOUT: usize = 6;
    let (fd, patience) = (socket.as_raw_fd() as usize, [600_i64, 0]);
    let (value, length) = (patience.as_ptr() as usize, size_of_val(&patience));
    let args = [fd, AF_VSOCK as usize, SO_VM_SOCKETS_CONNECT_TIMEOUT, value, length];
    // SAFETY: the option takes a struct timeval: seconds and microseconds.
    unsafe { syscall(SETSOCKOPT, args) }?;
    let address: [u32; 4] = [AF_VSOCK, port, cid, 0];
    // SAFETY: family and a reserved half-word (little-endian), port, CID, flags and padding: a sockaddr_vm.
    unsafe { syscall(CONNECT, [fd, address.as_ptr() as usize, size_of_val(&address)]) }.map(drop)
}

/// Adds `bytes` to the kernel's random pool, credits them fully, and has the generator take its key from the pool at once
/// (random(4), RNDADDENTROPY and RNDRESEEDCRNG): it would do so within a minute, and a clone of a machine would give
/// the same numbers as its sisters until then.
pub(crate) fn add_entropy(random: BorrowedFd<'_>, bytes: &[u8]) -> Result<()> {
    const RNDADDENTROPY: usize = 0x4008_5203;
    const RNDRESEEDCRNG: usize = 0x5207;
    let mut request = Vec::with_capacity(8 + bytes.len());
    request.extend_from_slice(&(8 * bytes.len() as u32).to_ne_bytes());
    request.extend_from_slice(&(bytes.len() as u32).to_ne_bytes());
    request.extend_from_slice(bytes);
    // SAFETY: a struct rand_pool_info: entropy in bits, size of the buffer, the buffer.
    unsafe { syscall(IOCTL, [random.as_raw_fd() as usize, RNDADDENTROPY, request.as_ptr() as usize]) }?;
    // SAFETY: takes no argument.
    match unsafe { syscall(IOCTL, [random.as_raw_fd() as usize, RNDRESEEDCRNG, 0]) } {
        // The generator has never been seeded: it will be by what was just added.
        Ok(_) | Err(Errno::NODATA) => Ok(()),
        Err(errno) => Err(errno),
    }
}

/// Sets the flags IFF_UP and IFF_RUNNING of the loopback interface (netdevice(7)).
pub(crate) fn loopback_up(socket: BorrowedFd<'_>) -> Result<()> {
    const SIOCSIFFLAGS: usize = 0x8914;
    const IFF_UP_RUNNING: u16 = 0x41;
    let mut request = [0_u8; 40];
    if let Some(name) = request.get_mut(..2) {
        name.copy_from_slice(b"lo");
    }
    if let Some(flags) = request.get_mut(16..18) {
        flags.copy_from_slice(&IFF_UP_RUNNING.to_ne_bytes());
    }
    // SAFETY: a struct ifreq: 16 bytes of name, then the flags; 40 bytes in all.
    unsafe { syscall(IOCTL, [socket.as_raw_fd() as usize, SIOCSIFFLAGS, request.as_ptr() as usize]) }
        .map(drop)
}

/// Writes 1 to the port of servin's power device. Returns if there is none, or the port may not be touched.
pub(crate) fn power_port() {
    const PORT: u16 = 0x600;
    // SAFETY: three numbers; asks the kernel for access to one port.
    if unsafe { syscall(IOPERM, [usize::from(PORT), 1, 1]) }.is_ok() {
        // SAFETY: the kernel granted the port. What a write does is the machine's business: it stops.
        unsafe { asm!("out dx, al", in("dx") PORT, in("al") 1_u8, options(nomem, nostack)) };
    }
}

/// A descriptor that is known by its number only.
pub(crate) fn borrow(fd: RawFd) -> BorrowedFd<'static> {
    // SAFETY: `power` keeps the numbers of descriptors that live as long as the agent (the control connection is
    // replaced there before the old one is closed). A wrong number would be an error of a call, not of memory.
    unsafe { BorrowedFd::borrow_raw(fd) }
}

/// unshare(2) of the cgroup namespace: the caller's cgroup becomes the root that it sees.
pub(crate) fn unshare_cgroup() -> Result<()> {
    // SAFETY: of the flags of unshare only CLONE_FILES endangers memory safety (descriptors owned elsewhere).
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWCGROUP) }
}
