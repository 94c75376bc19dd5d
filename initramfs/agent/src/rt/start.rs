//! The first instructions, and the environment on the first stack.
#![allow(unsafe_code)] // Reads the stack that the kernel made; nobody else can.

use core::{arch::global_asm, ffi::CStr, ffi::c_char};

// System V ABI, AMD64, 3.4.1: at entry rsp points to argc, and rbp is to be zeroed to end the frames.
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

/// The `NAME=value` strings that the process was started with; those that are not UTF-8 are left out.
pub(crate) struct Environment {
    next: *const *const c_char,
}

extern "C" fn entry(stack: *const usize) -> ! {
    // SAFETY: the kernel put argc there, then argc pointers, a null, and the environment's pointers with a null
    // at the end (System V ABI, AMD64, 3.4.1). `_start` passed the address on unchanged.
    let next = unsafe { stack.add(1 + *stack + 1) }.cast();
    crate::main(Environment { next })
}

impl Iterator for Environment {
    type Item = &'static str;

    fn next(&mut self) -> Option<&'static str> {
        loop {
            // SAFETY: `next` stays within the null-terminated list, for it is not moved past the null.
            let pointer = unsafe { *self.next };
            if pointer.is_null() {
                return None;
            }
            // SAFETY: as above; the entry read was not the last.
            self.next = unsafe { self.next.add(1) };
            // SAFETY: the kernel terminates every string, and nobody writes to this part of the stack.
            if let Ok(text) = unsafe { CStr::from_ptr(pointer) }.to_str() {
                return Some(text);
            }
        }
    }
}
