//! Entry point, heap and memory functions.

mod heap;
mod memory;
pub(crate) mod start;

/// What the precompiled `alloc` names for unwinding. A panic ends the machine, so nothing ever unwinds.
mod unwind {
    #![allow(unsafe_code)] // Defines symbols.

    core::arch::global_asm!(
        ".globl _Unwind_Resume",
        ".globl rust_eh_personality",
        "_Unwind_Resume:",
        "rust_eh_personality:",
        #[cfg(target_arch = "x86_64")]
        "ud2",
        #[cfg(target_arch = "aarch64")]
        "brk 1",
    );
}
