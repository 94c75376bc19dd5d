//! Sticky kicks: bringing a thread out of `KVM_RUN` without touching anything of the process.
//!
//! The vCPU's thread blocks [`SIGNAL`]; `KVM_SET_SIGNAL_MASK` opens it for the time inside `KVM_RUN` only. A kick
//! is a flag and that signal to that thread: inside `KVM_RUN` the pending signal ends the run with `EINTR`, outside
//! it stays pending and ends the next one at once. It is then taken from the queue with `sigtimedwait`, never
//! delivered: no handler is installed, and no other thread sees anything.
//!
//! ```text
//! kick:  pending := true; was it false and is the vCPU bound? then tgkill
//! run:   pending? then run with immediate_exit (finishes a pending access), return Kicked
//!        KVM_RUN -> EINTR: take the signal; pending? then Kicked, else it was somebody else's signal: go on
//! ```
//! The price against `immediate_exit` alone is two changes of the signal mask in a `KVM_RUN`, about 0.1 us.

// A leaf that may use unsafe: signal sets, tgkill and one ioctl have no safe wrapper.
#![allow(unsafe_code)]

use std::io;
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use kvm_ioctls::VcpuFd;

use crate::hv;

/// A signal that is ignored by default (a stray one harms nobody) and always finds room in the queue, which
/// real-time signals do not.
const SIGNAL: libc::c_int = libc::SIGURG;

/// `KVM_SET_SIGNAL_MASK`: `_IOW(KVMIO, 0x8b, struct kvm_signal_mask)`.
const KVM_SET_SIGNAL_MASK: libc::c_ulong = 0x4004_ae8b;

/// `struct kvm_signal_mask` with the kernel's own set of 64 signals.
#[repr(C, packed)]
struct KvmSignalMask {
    len: u32,
    set: u64,
}

/// The kicks of one vCPU.
#[derive(Debug, Default)]
pub(super) struct Kicks {
    pending: AtomicBool,
    /// Process and thread of the bound vCPU. Locked around `tgkill`, so that the thread cannot end (and its number be
    /// used again) in between.
    thread: Mutex<Option<(libc::pid_t, libc::pid_t)>>,
}

impl Kicks {
    /// Takes the kick away; true when there was one.
    pub(super) fn take(&self) -> bool {
        // The load alone is the common case.
        self.pending.load(Ordering::Relaxed) && self.pending.swap(false, Ordering::AcqRel)
    }

    /// Keeps a kick that was taken but not reported.
    pub(super) fn put_back(&self) {
        self.pending.store(true, Ordering::Release);
    }

    fn set_thread(&self, thread: Option<(libc::pid_t, libc::pid_t)>) {
        *self.thread.lock().unwrap_or_else(PoisonError::into_inner) = thread;
    }
}

impl hv::Kick for Kicks {
    fn kick(&self) {
        if self.pending.swap(true, Ordering::AcqRel) {
            return;
        }
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((pid, tid)) = *thread {
            // SAFETY: plain numbers; the lock keeps the thread bound (see `Binding::drop`).
            let result = unsafe { libc::syscall(libc::SYS_tgkill, pid, tid, SIGNAL) };
            if result != 0 {
                log::error!("kicking a vCPU thread: {}", io::Error::last_os_error());
            }
        }
    }
}

/// The calling thread as a vCPU's thread; undone on drop.
pub(super) struct Binding {
    kicks: Arc<Kicks>,
    /// [`SIGNAL`] was open before: opened again on drop.
    was_open: bool,
    /// The signal mask belongs to this thread.
    not_send: PhantomData<*mut ()>,
}

impl Binding {
    /// Blocks the signal in this thread and opens it inside `KVM_RUN` of `vcpu`.
    pub(super) fn new(vcpu: &VcpuFd, kicks: Arc<Kicks>) -> io::Result<Self> {
        let old = change_mask(libc::SIG_BLOCK)?;
        let binding = Self { kicks, was_open: !contains(&old, SIGNAL), not_send: PhantomData };
        let mut set = 0_u64;
        for signal in (1..=64).filter(|&signal| signal != SIGNAL && contains(&old, signal)) {
            set |= 1 << (signal - 1);
        }
        let mask = KvmSignalMask { len: 8, set };
        // SAFETY: the kernel reads `mask.len` and as many bytes behind it, which the structure has.
        let result = unsafe { libc::ioctl(vcpu.as_raw_fd(), KVM_SET_SIGNAL_MASK, &raw const mask) };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: no arguments, no memory.
        let tid = unsafe { libc::gettid() };
        binding.kicks.set_thread(Some((std::process::id().cast_signed(), tid)));
        Ok(binding)
    }

    /// Takes the pending signal from the queue, after `KVM_RUN` returned `EINTR`.
    pub(super) fn drain(&self) {
        let none = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        let set = signal_set();
        // SAFETY: both structures outlive the call; a null info is allowed.
        unsafe { libc::sigtimedwait(&raw const set, std::ptr::null_mut(), &raw const none) };
    }
}

impl Drop for Binding {
    fn drop(&mut self) {
        self.kicks.set_thread(None);
        self.drain();
        if self.was_open {
            // It worked in the other direction on this thread.
            let _ = change_mask(libc::SIG_UNBLOCK);
        }
    }
}

fn signal_set() -> libc::sigset_t {
    let mut set = MaybeUninit::uninit();
    // SAFETY: `sigemptyset` fills the set; the signal number is valid.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        libc::sigaddset(set.as_mut_ptr(), SIGNAL);
        set.assume_init()
    }
}

fn contains(set: &libc::sigset_t, signal: libc::c_int) -> bool {
    // SAFETY: the set is initialised; an invalid number is answered with -1.
    unsafe { libc::sigismember(set, signal) == 1 }
}

/// Blocks or opens the signal in this thread; returns the mask before.
fn change_mask(how: libc::c_int) -> io::Result<libc::sigset_t> {
    let set = signal_set();
    let mut old = MaybeUninit::uninit();
    // SAFETY: `set` is initialised, `old` is filled on success.
    match unsafe { libc::pthread_sigmask(how, &raw const set, old.as_mut_ptr()) } {
        // SAFETY: filled by the call above.
        0 => Ok(unsafe { old.assume_init() }),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}
