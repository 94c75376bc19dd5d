//! System calls and instructions of x86_64.
#![allow(unsafe_code)] // Raw system calls, port output and the time stamp counter.

use core::{arch::asm, ffi::c_void};

// arch/x86/entry/syscalls/syscall_64.tbl
pub(super) const IOCTL: usize = 16;
pub(super) const CONNECT: usize = 42;
pub(super) const DUP3: usize = 292;
pub(super) const SETSOCKOPT: usize = 54;
pub(super) const EXECVE: usize = 59;
pub(super) const EXIT: usize = 60;
pub(super) const KILL: usize = 62;
pub(super) const PRCTL: usize = 157;
const IOPERM: usize = 173;
pub(super) const PRLIMIT64: usize = 302;
pub(super) const UNSHARE: usize = 272;
pub(super) const FUTEX: usize = 202;
pub(super) const CLONE: usize = 56;
pub(super) const RT_SIGPROCMASK: usize = 14;
pub(super) const RT_SIGTIMEDWAIT: usize = 128;
const CLONE3: usize = 435;

/// A system call; gives the value or the negative error.
///
/// # Safety
/// The arguments must be what the call takes, and pointers must stay valid for what it does with them.
pub(super) unsafe fn syscall(number: usize, args: [usize; 5]) -> isize {
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
    // Registers are copied into the child, r12 among them.
    unsafe {
        asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "xor ebp, ebp",
            "mov rdi, r12",
            "call qword ptr [r12]",
            "ud2",
            "2:",
            inlateout("rax") CLONE3 => result,
            in("rdi") args,
            in("rsi") size,
            in("r12") start,
            lateout("rcx") _,
            lateout("r11") _,
        );
    }
    result
}

/// The time stamp counter.
pub(crate) fn cycles() -> u64 {
    // SAFETY: rdtsc is there on every x86_64 and, with CR4.TSD clear as Linux leaves it, allowed to everyone.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// Powers off through the port.
pub(crate) fn power_port() {
    const PORT: u16 = 0x600;
    // SAFETY: three numbers; asks the kernel for access to one port.
    let granted = unsafe { syscall(IOPERM, [usize::from(PORT), 1, 1, 0, 0]) };
    if granted == 0 {
        // SAFETY: the kernel granted the port. What a write does is the machine's business: it stops.
        unsafe { asm!("out dx, al", in("dx") PORT, in("al") 1_u8, options(nomem, nostack)) };
    }
}
