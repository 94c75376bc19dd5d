//! System calls and instructions of arm64.
#![allow(unsafe_code)] // Raw system calls and the timer's counter.

use core::{arch::asm, ffi::c_void};

// include/uapi/asm-generic/unistd.h
pub(super) const IOCTL: usize = 29;
pub(super) const EXIT: usize = 93;
pub(super) const KILL: usize = 129;
pub(super) const PRCTL: usize = 167;
pub(super) const CONNECT: usize = 203;
pub(super) const DUP3: usize = 24;
pub(super) const SETSOCKOPT: usize = 208;
pub(super) const EXECVE: usize = 221;
pub(super) const PRLIMIT64: usize = 261;
pub(super) const UNSHARE: usize = 97;
pub(super) const FUTEX: usize = 98;
pub(super) const CLONE: usize = 220;
pub(super) const RT_SIGPROCMASK: usize = 135;
pub(super) const RT_SIGTIMEDWAIT: usize = 137;
const CLONE3: usize = 435;

/// A system call; gives the value or the negative error.
///
/// # Safety
/// The arguments must be what the call takes, and pointers must stay valid for what it does with them.
pub(super) unsafe fn syscall(number: usize, args: [usize; 5]) -> isize {
    let result: isize;
    // SAFETY: svc changes x0 only; the rest is the caller's.
    unsafe {
        asm!(
            "svc 0",
            in("x8") number,
            inlateout("x0") args[0] => result,
            in("x1") args[1],
            in("x2") args[2],
            in("x3") args[3],
            in("x4") args[4],
            options(nostack),
        );
    }
    result
}

/// clone3(2), whose child calls the function that `start` points to with `start` itself.
///
/// # Safety
/// `args` are a whole clone_args of `size` bytes with a stack of its own for the child; the function never returns, and
/// shares what it uses with nobody, or by atomics.
pub(super) unsafe fn clone3(args: *mut c_void, size: usize, start: *mut c_void) -> isize {
    let result: isize;
    // SAFETY: from the parent's view the whole run of the child happens inside this asm block, which may change memory.
    // Registers are copied into the child, x20 among them.
    unsafe {
        asm!(
            "svc 0",
            "cbnz x0, 2f",
            "mov x29, xzr",
            "mov x30, xzr",
            "mov x0, x20",
            "ldr x1, [x20]",
            "blr x1",
            "brk 1",
            "2:",
            in("x8") CLONE3,
            inlateout("x0") args => result,
            in("x1") size,
            in("x20") start,
            // blr changes it in the child; the compiler is told, for it sees one program.
            lateout("x30") _,
        );
    }
    result
}

/// The counter of the virtual timer.
pub(crate) fn cycles() -> u64 {
    let count;
    // SAFETY: reads a register that Linux lets every program read.
    unsafe { asm!("mrs {}, cntvct_el0", out(reg) count, options(nomem, nostack)) };
    count
}

/// There is no port: the kernel powers off by PSCI.
pub(crate) fn power_port() {}
