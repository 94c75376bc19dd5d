//! The few system calls and instructions that have no safe form elsewhere.
#![allow(unsafe_code)] // Raw system calls.

use alloc::{boxed::Box, ffi::CString, vec::Vec};
use core::{
    ffi::{CStr, c_char},
    fmt,
    mem::size_of,
    ptr::null,
    sync::atomic::{AtomicPtr, AtomicU32, Ordering},
};

use rustix::{
    fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd},
    io::{Errno, Result},
};

#[cfg(target_arch = "aarch64")]
mod aarch64;
#[cfg(target_arch = "x86_64")]
mod x86_64;

#[cfg(target_arch = "aarch64")]
use aarch64 as arch;
use arch::{
    CLONE, CONNECT, DUP3, EXECVE, EXIT, FUTEX, IOCTL, KILL, PRCTL, PRLIMIT64, RT_SIGPROCMASK,
    RT_SIGTIMEDWAIT, SETSOCKOPT, UNSHARE,
};
#[cfg(target_arch = "x86_64")]
use x86_64 as arch;

#[cfg(not(target_os = "linux"))]
compile_error!("the agent is PID 1 of a Linux");

/// The processor's counter of time: as fast as it counts, from the machine's start.
pub(crate) use arch::cycles;

/// Writes 1 to the port of servin's power device, on machines that have one. Returns where there is none, or it may not
/// be touched.
pub(crate) use arch::power_port;

/// `include/uapi/linux/sched.h`
const CLONE_VM: u64 = 0x100;
const CLONE_FILES: u64 = 0x400;
const CLONE_PIDFD: u64 = 0x1000;
const CLONE_VFORK: u64 = 0x4000;
const CLONE_CHILD_CLEARTID: u64 = 0x20_0000;
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
    // SAFETY: as the caller says.
    check(unsafe { arch::syscall(number, args) })
}

fn check(result: isize) -> Result<usize> {
    match usize::try_from(result) {
        Ok(value) => Ok(value),
        Err(_) => Err(Errno::from_raw_os_error(-(result as i32))),
    }
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

/// As execvp(3): the first file that can be executed; a file that may not be is remembered. Returns only an error.
pub(crate) fn execute(candidates: &[CString], argv: &Strings, env: &Strings) -> Errno {
    let mut worst = Errno::NOENT;
    for candidate in candidates {
        match execve(candidate, argv, env) {
            Errno::NOENT | Errno::NOTDIR if candidates.len() > 1 => {}
            Errno::ACCESS if candidates.len() > 1 => worst = Errno::ACCESS,
            errno => return errno,
        }
    }
    worst
}

/// fork(2), in a process of one thread: a child with a copy of its memory, where this gives 0.
pub(crate) fn fork() -> Result<i32> {
    // SAFETY: no stack and no addresses; the memory is copied, so each side goes on with its own.
    unsafe { syscall(CLONE, [SIGCHLD as usize]) }.map(|pid| pid as i32)
}

/// Every signal, as a set of the kernel's.
const ALL_SIGNALS: u64 = u64::MAX;

/// Blocks every signal that can be.
pub(crate) fn block_signals() {
    set_blocked(ALL_SIGNALS);
}

/// Blocks none.
pub(crate) fn unblock_signals() {
    set_blocked(0);
}

fn set_blocked(set: u64) {
    const SETMASK: usize = 2;
    // SAFETY: a set of eight bytes, and no old one is asked for. It cannot fail with a valid set.
    let _ = unsafe { syscall(RT_SIGPROCMASK, [SETMASK, (&raw const set) as usize, 0, 8]) };
}

/// Waits for the next of the blocked signals and gives its number.
pub(crate) fn next_signal() -> i32 {
    let set = ALL_SIGNALS;
    loop {
        // SAFETY: a set of eight bytes; no information and no timeout are asked for.
        if let Ok(signal) = unsafe { syscall(RT_SIGTIMEDWAIT, [(&raw const set) as usize, 0, 0, 8]) } {
            return signal as i32;
        }
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
    // SAFETY: `args` is a whole clone_args. The child gets a stack of its own, aligned (the heap aligns 64 KiB
    // objects to a page) and alive until the parent goes on. With CLONE_VFORK the parent goes on only when the
    // child has left this memory, so `start` and what it borrows are used by one of them at a time. The first field of
    // `start` is a function that takes its address and does not return.
    let result =
        unsafe { arch::clone3((&raw mut args).cast(), size_of::<CloneArgs>(), (&raw mut start).cast()) };
    let pid = check(result)?;
    // SAFETY: CLONE_PIDFD stored a new descriptor there, which nobody else owns.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    Ok((pid as i32, pidfd))
}

/// What a parked child and the agent tell each other.
#[repr(C)]
struct Meeting {
    run: extern "C" fn(&Meeting) -> !,
    /// What the child does first; true if it can go on.
    first: fn() -> bool,
    /// [`FIRST`], then [`PARKED`] or [`FAILED`], then [`GO`].
    step: AtomicU32,
    /// The kernel sets it to 0, and wakes who waits for it, when the child has left the agent's memory.
    inside: AtomicU32,
    /// Set before [`GO`]: what the child does then, and on what.
    then: AtomicPtr<()>,
    state: AtomicPtr<()>,
}

const FIRST: u32 = 0;
const PARKED: u32 = 1;
const FAILED: u32 = 2;
const GO: u32 = 3;

/// A child that has done its first part in the agent's memory, and sleeps until it is told the rest.
#[derive(Debug)]
pub(crate) struct Parked {
    pid: i32,
    pidfd: OwnedFd,
    /// Boxed, because the child knows its address.
    meeting: Box<Meeting>,
    /// The child runs on it.
    _stack: Vec<u8>,
}

impl fmt::Debug for Meeting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Meeting").field("step", &self.step).finish_non_exhaustive()
    }
}

/// Makes a child in a new PID namespace, and in `cgroup` if given, that carries `first` out **in the agent's memory** and
/// then sleeps. The agent waits for that; `first` must not allocate and must leave nothing behind but in the kernel.
///
/// Until it goes on, the child shares the agent's descriptors.
pub(crate) fn park(cgroup: Option<BorrowedFd<'_>>, first: fn() -> bool) -> Result<Parked> {
    extern "C" fn run(meeting: &Meeting) -> ! {
        let done = (meeting.first)();
        meeting.step.store(if done { PARKED } else { FAILED }, Ordering::Release);
        futex_wake(&meeting.step);
        if done {
            while meeting.step.load(Ordering::Acquire) == PARKED {
                futex_wait(&meeting.step, PARKED);
            }
            // SAFETY: a number. What this child does with its copies of descriptors does not touch the agent's any more.
            if unsafe { syscall(UNSHARE, [CLONE_FILES as usize]) }.is_ok() {
                let (then, state) =
                    (meeting.then.load(Ordering::Relaxed), meeting.state.load(Ordering::Relaxed));
                // SAFETY: `go` stored a function of this type, and the state that it takes.
                let then: unsafe fn(*mut ()) = unsafe { core::mem::transmute(then) };
                // SAFETY: the agent waits and leaves the state alone until this child is gone.
                unsafe { then(state) };
            }
        }
        exit_now(127)
    }
    let mut stack: Vec<u8> = Vec::new();
    stack.try_reserve_exact(STACK).map_err(|_| Errno::NOMEM)?;
    let meeting = Box::new(Meeting {
        run,
        first,
        step: AtomicU32::new(FIRST),
        inside: AtomicU32::new(1),
        then: AtomicPtr::default(),
        state: AtomicPtr::default(),
    });
    let mut pidfd: RawFd = -1;
    let mut args = CloneArgs {
        flags: CLONE_VM | CLONE_FILES | CLONE_PIDFD | CLONE_CHILD_CLEARTID | CLONE_NEWPID,
        pidfd: (&raw mut pidfd) as u64,
        child_tid: meeting.inside.as_ptr() as u64,
        exit_signal: SIGCHLD,
        stack: stack.as_mut_ptr() as u64,
        stack_size: (STACK & !15) as u64,
        ..CloneArgs::default()
    };
    if let Some(cgroup) = cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = cgroup.as_raw_fd() as u64;
    }
    let start = (&raw const *meeting).cast_mut().cast();
    // SAFETY: as in `spawn`, but both go on: the child touches its own stack, and of the agent's memory only the meeting,
    // which is made of atomics and outlives it (`Parked` is dropped when the child is gone). Its first field is a function
    // that takes its address and does not return.
    let result = unsafe { arch::clone3((&raw mut args).cast(), size_of::<CloneArgs>(), start) };
    let pid = check(result)? as i32;
    // SAFETY: CLONE_PIDFD stored a new descriptor there, which nobody else owns.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    let parked = Parked { pid, pidfd, meeting, _stack: stack };
    while parked.meeting.step.load(Ordering::Acquire) == FIRST {
        futex_wait(&parked.meeting.step, FIRST);
    }
    if parked.meeting.step.load(Ordering::Acquire) == FAILED {
        parked.dismiss();
        return Err(Errno::CANCELED);
    }
    Ok(parked)
}

impl Parked {
    /// Has the child carry `body` out on `state`, with descriptors of its own, while the agent stands still until the child
    /// has executed a program or returned. Gives its PID and a pidfd, as [`spawn`] does.
    pub(crate) fn go<T>(self, state: &mut T, body: fn(&mut T)) -> (i32, OwnedFd) {
        struct Call<'a, T>(&'a mut T, fn(&mut T));
        fn then<T>(call: *mut ()) {
            // SAFETY: it is the call below, which this child alone uses.
            let call = unsafe { &mut *call.cast::<Call<'_, T>>() };
            (call.1)(call.0);
        }
        let mut call = Call(state, body);
        let meeting = &*self.meeting;
        meeting.then.store(then::<T> as fn(*mut ()) as *mut (), Ordering::Relaxed);
        meeting.state.store((&raw mut call).cast(), Ordering::Relaxed);
        meeting.step.store(GO, Ordering::Release);
        futex_wake(&meeting.step);
        self.gone();
        (self.pid, self.pidfd)
    }

    /// Ends a child that is not needed.
    pub(crate) fn dismiss(self) {
        let _ = kill(self.pid, 9);
        self.gone();
        let options = rustix::process::WaitIdOptions::EXITED;
        let _ = rustix::process::waitid(rustix::process::WaitId::PidFd(self.pidfd.as_fd()), options);
    }

    /// Waits until the child has left the agent's memory.
    fn gone(&self) {
        while self.meeting.inside.load(Ordering::Acquire) != 0 {
            futex_wait(&self.meeting.inside, 1);
        }
    }
}

/// Waits while `word` is `value`, or shorter. Not private: the kernel's own wake of a thread's end is not either.
fn futex_wait(word: &AtomicU32, value: u32) {
    const FUTEX_WAIT: usize = 0;
    // SAFETY: the address of a living word, and numbers; no timeout. Whatever comes of it, the caller looks again.
    let _ = unsafe { syscall(FUTEX, [word.as_ptr() as usize, FUTEX_WAIT, value as usize, 0]) };
}

fn futex_wake(word: &AtomicU32) {
    const FUTEX_WAKE: usize = 1;
    // SAFETY: the address of a living word, and numbers.
    let _ = unsafe { syscall(FUTEX, [word.as_ptr() as usize, FUTEX_WAKE, 1]) };
}

/// Ends the process at once.
pub(crate) fn exit_now(code: u8) -> ! {
    loop {
        // SAFETY: exit takes a number and does not return.
        let _ = unsafe { syscall(EXIT, [usize::from(code)]) };
    }
}

/// dup3(2) of a process that is about to execute a program, which gets the number: it belongs to nobody who would miss it.
pub(crate) fn dup(fd: BorrowedFd<'_>, number: RawFd) -> Result<()> {
    if fd.as_raw_fd() == number {
        return rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::empty());
    }
    // SAFETY: two numbers. Should `number` be open, its owner is the agent, whose table of descriptors is another since the
    // child was made without CLONE_FILES.
    unsafe { syscall(DUP3, [fd.as_raw_fd() as usize, number as usize, 0]) }.map(drop)
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

/// The number of the network interface `name`, which has at most 15 bytes (netdevice(7), SIOCGIFINDEX).
pub(crate) fn interface_index(socket: BorrowedFd<'_>, name: &CStr) -> Result<u32> {
    const SIOCGIFINDEX: usize = 0x8933;
    let mut request = [0_u8; 40];
    for (place, byte) in request.iter_mut().zip(name.to_bytes().iter().take(15)) {
        *place = *byte;
    }
    // SAFETY: a struct ifreq, 40 bytes: 16 of name; the kernel writes the number behind them.
    unsafe { syscall(IOCTL, [socket.as_raw_fd() as usize, SIOCGIFINDEX, request.as_mut_ptr() as usize]) }?;
    let [.., a, b, c, d] = *request.first_chunk::<20>().unwrap_or(&[0; 20]);
    Ok(u32::from_ne_bytes([a, b, c, d]))
}

/// A descriptor that is known by its number only.
pub(crate) fn borrow(fd: RawFd) -> BorrowedFd<'static> {
    // SAFETY: `power` keeps the numbers of descriptors that live as long as the agent (the control connection is
    // replaced there before the old one is closed), `files` and `init` those that their process was started with. A wrong
    // number would be an error of a call, not of memory.
    unsafe { BorrowedFd::borrow_raw(fd) }
}

/// unshare(2) of the cgroup namespace: the caller's cgroup becomes the root that it sees.
pub(crate) fn unshare_cgroup() -> Result<()> {
    // SAFETY: of the flags of unshare only CLONE_FILES endangers memory safety (descriptors owned elsewhere).
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWCGROUP) }
}
