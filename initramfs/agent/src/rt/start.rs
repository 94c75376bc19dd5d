//! The first instructions, and the arguments and environment on the first stack.
#![allow(unsafe_code)] // Reads the stack that the kernel made; nobody else can.

use core::{arch::global_asm, ffi::CStr, ffi::c_char};

// System V ABI, AMD64, 3.4.1: at entry rsp points to argc, and rbp is to be zeroed to end the frames.
#[cfg(target_arch = "x86_64")]
global_asm!(
    ".globl _start",
    "_start:",
    "xor ebp, ebp",
    "mov rdi, rsp",
    "and rsp, -16",
    "call {entry}",
    "ud2",
    entry = sym entry,
);

// The same on arm64, where the stack pointer is aligned already.
#[cfg(target_arch = "aarch64")]
global_asm!(
    ".globl _start",
    "_start:",
    "mov x29, xzr",
    "mov x30, xzr",
    "mov x0, sp",
    "bl {entry}",
    "brk 1",
    entry = sym entry,
);

/// The arguments, or the `NAME=value` strings, that the process was started with.
pub(crate) struct Words {
    next: *const *const c_char,
}

extern "C" fn entry(stack: *const usize) -> ! {
    // SAFETY: the kernel put argc there, then argc pointers, a null, and the environment's pointers with a null
    // at the end (System V ABI, AMD64, 3.4.1). `_start` passed the address on unchanged.
    let (arguments, environment) = unsafe { (stack.add(1).cast(), stack.add(1 + *stack + 1).cast()) };
    crate::main(Words { next: arguments }, Words { next: environment })
}

impl Iterator for Words {
    type Item = &'static CStr;

    fn next(&mut self) -> Option<&'static CStr> {
        // SAFETY: `next` stays within the null-terminated list, for it is not moved past the null.
        let pointer = unsafe { *self.next };
        if pointer.is_null() {
            return None;
        }
        // SAFETY: as above; the entry read was not the last.
        self.next = unsafe { self.next.add(1) };
        // SAFETY: the kernel terminates every string, and nobody writes to this part of the stack.
        Some(unsafe { CStr::from_ptr(pointer) })
    }
}
