//! The end of the machine.

use alloc::format;
use core::{
    fmt,
    sync::atomic::{AtomicBool, AtomicI32, Ordering},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fd::BorrowedFd,
    fs::{Mode, OFlags},
    net::{RecvFlags, SendFlags, Shutdown},
    system::{RebootCommand, reboot},
};
use servin_init::proto::{Encode as _, GuestMessage};

use crate::{failure::Failure, sys};

/// The control connection while there is one, else -1: [`die`] has no other way to it.
static CONTROL: AtomicI32 = AtomicI32::new(-1);
/// The initramfs, once the root was changed, else -1.
static INITRAMFS: AtomicI32 = AtomicI32::new(-1);
/// False where the agent runs without a machine of its own.
static OWNS_MACHINE: AtomicBool = AtomicBool::new(true);

/// Remembers the control connection for [`die`]. The number must stay open until it is replaced.
pub(crate) fn remember_control(fd: i32) {
    CONTROL.store(fd, Ordering::Relaxed);
}

/// Remembers the directory of the initramfs for [`die`]. The number must stay open.
pub(crate) fn remember_initramfs(fd: i32) {
    INITRAMFS.store(fd, Ordering::Relaxed);
}

/// The agent runs beside other programs, in a test: leave the hardware alone.
pub(crate) fn spare_the_machine() {
    OWNS_MACHINE.store(false, Ordering::Relaxed);
}

/// Writes everything back and powers off.
pub(crate) fn off() -> ! {
    rustix::fs::sync();
    if OWNS_MACHINE.load(Ordering::Relaxed) {
        sys::power_port();
    }
    // In a PID namespace that is not the first, as in a test, this ends the namespace.
    let _ = reboot(RebootCommand::PowerOff);
    // Returning from PID 1 is a kernel panic, which the monitor sees; nothing better is left.
    sys::exit_now(1)
}

/// Tells the failure to the console and to the host, and powers off.
pub(crate) fn fail(failure: &Failure) -> ! {
    log(&format!("servin-agent: {failure}\n"));
    if let Ok(frame) =
        (GuestMessage::Error { errno: failure.errno, message: failure.doing.clone() }).to_frame()
    {
        tell_host(&frame);
    }
    off()
}

/// [`fail`] with a text: what the panic handler calls.
pub fn die(what: fmt::Arguments<'_>) -> ! {
    fail(&Failure::new(what))
}

/// Writes to the kernel's log, from where it reaches the console.
fn log(text: &str) {
    let flags = OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOCTTY;
    let kmsg = match borrow(&INITRAMFS) {
        Some(initramfs) => rustix::fs::openat(initramfs, c"dev/kmsg", flags, Mode::empty()),
        None => rustix::fs::open(c"/dev/kmsg", flags, Mode::empty()),
    };
    // Without a log there is still the host.
    let _ = kmsg.and_then(|kmsg| rustix::io::write(&kmsg, text.as_bytes()));
}

/// Sends a last frame and waits until the host closes, so that it is not lost with the machine; two seconds at
/// most, for the host may be the one that failed.
fn tell_host(frame: &[u8]) {
    const PATIENCE: Timespec = Timespec { tv_sec: 2, tv_nsec: 0 };
    let Some(control) = borrow(&CONTROL) else { return };
    let mut writable = [PollFd::from_borrowed_fd(control, PollFlags::OUT)];
    if !matches!(poll(&mut writable, Some(&PATIENCE)), Ok(1..)) {
        return;
    }
    if rustix::net::send(control, frame, SendFlags::NOSIGNAL) != Ok(frame.len()) {
        return;
    }
    let _ = rustix::net::shutdown(control, Shutdown::Write);
    let mut rest = [0_u8; 512];
    loop {
        let mut readable = [PollFd::from_borrowed_fd(control, PollFlags::IN)];
        if !matches!(poll(&mut readable, Some(&PATIENCE)), Ok(1..)) {
            return;
        }
        match rustix::net::recv(control, &mut rest, RecvFlags::empty()) {
            Ok((_, 1..)) => {}
            _ => return,
        }
    }
}

fn borrow(slot: &AtomicI32) -> Option<BorrowedFd<'static>> {
    let fd = slot.load(Ordering::Relaxed);
    (fd >= 0).then(|| sys::borrow(fd))
}
