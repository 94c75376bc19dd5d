//! The guest programs in arm64 machine code. They run at [`CODE`] at EL1 with the MMU off.

// A leaf that may use unsafe: the assembler's labels are read as bytes.
#![allow(unsafe_code)]

use servin_devices::mem::GuestRam;

use super::program::program;
use super::rig::CODE;
use crate::hv::{Arm64Entry, Entry};

/// Puts into memory what every program needs: nothing.
pub(super) fn prepare(_: &GuestRam) {}

/// Where the first vCPU begins.
pub(super) fn entry() -> Entry {
    Entry::Arm64(Arm64Entry { pc: CODE, x0: 0 })
}

/// A program that powers off through the hypervisor.
pub(super) fn power_off() -> Option<&'static [u8]> {
    Some(system_off())
}

program! {
    /// Writes each value that it reads 16 bytes behind.
    mmio:
    "mov x1, 0x20000000"
    "ldrb w0, [x1, 1]"
    "strb w0, [x1, 0x11]"
    "ldrh w0, [x1, 2]"
    "strh w0, [x1, 0x12]"
    "ldr w0, [x1, 4]"
    "str w0, [x1, 0x14]"
    "ldr x0, [x1, 8]"
    "str x0, [x1, 0x18]"
    "mov x2, 0x21000000"
    "strb w0, [x2, 0xf4]"
    "2: b 2b"
}

program! {
    /// Echoes a port in each width, then puts out a string.
    pio:
    "mov x2, 0x21000000"
    "ldrb w0, [x2, 0x50]"
    "strb w0, [x2, 0x54]"
    "ldrh w0, [x2, 0x50]"
    "strh w0, [x2, 0x54]"
    "ldr w0, [x2, 0x50]"
    "str w0, [x2, 0x54]"
    "adr x1, 3f"
    "4: ldrb w0, [x1], 1"
    "cbz w0, 5f"
    "strb w0, [x2, 0x58]"
    "b 4b"
    "5: strb w0, [x2, 0xf4]"
    "2: b 2b"
    "3: .asciz \"abc\""
    ".balign 4"
}

program! {
    /// Does nothing, for ever.
    spin:
    "2: b 2b"
}

program! {
    /// Waits until line 5 (interrupt 37) of a GICv3 interrupts.
    halt:
    "b 1f"
    // The vectors, on a multiple of 0x800; an interrupt at EL1 with its own stack takes the one at 0x280.
    ".space 0x7fc"
    "3: .space 0x280"
    "mrs x0, ICC_IAR1_EL1"
    "cmp x0, 37"
    "b.ne 2f"
    "mov x2, 0x21000000"
    "strb w0, [x2, 0xf4]"
    "2: b 2b"
    "1: adr x0, 3b"
    "msr VBAR_EL1, x0"
    "mov x1, 0x08000000"
    // GICD_CTLR: affinity routing, group 1.
    "mov w0, 0x12"
    "str w0, [x1]"
    // Line 5: group 1, priority 0x80, edge, to the first vCPU, enabled.
    "mov w0, 0x20"
    "str w0, [x1, 0x84]"
    "mov w0, 0x80"
    "strb w0, [x1, 0x425]"
    "mov w0, 0x800"
    "str w0, [x1, 0xc08]"
    "mov x2, 0x6128"
    "str xzr, [x1, x2]"
    "mov w0, 0x20"
    "str w0, [x1, 0x104]"
    "mov x0, 7"
    "msr ICC_SRE_EL1, x0"
    "isb"
    "mov x0, 0xf0"
    "msr ICC_PMR_EL1, x0"
    "mov x0, 1"
    "msr ICC_IGRPEN1_EL1, x0"
    "isb"
    "msr DAIFClr, 2"
    "mov x2, 0x21000000"
    "strb w0, [x2, 0xf5]"
    "4: wfi"
    "b 4b"
}

program! {
    /// Rings a doorbell with 3, with 4, with half of a 3, says READY, rings with 3 again.
    doorbell:
    "mov x1, 0x20000000"
    "mov x2, 0x21000000"
    "mov w0, 3"
    "str w0, [x1, 0x50]"
    "mov w3, 4"
    "str w3, [x1, 0x50]"
    "strh w0, [x1, 0x50]"
    "strb w0, [x2, 0xf5]"
    "str w0, [x1, 0x50]"
    "strb w0, [x2, 0xf4]"
    "2: b 2b"
}

program! {
    /// Starts vCPU 1 at 0x8000 by PSCI.
    start_another:
    "mov w0, 3"
    "movk w0, 0xc400, lsl 16"
    "mov x1, 1"
    "mov x2, 0x8000"
    "mov x3, 0"
    "hvc 0"
    "mov x2, 0x21000000"
    "strb w0, [x2, 0xf4]"
    "2: b 2b"
}

program! {
    /// What vCPU 1 executes, at 0x8000.
    second:
    "mov x2, 0x21000000"
    "strb w0, [x2, 0xf4]"
    "2: b 2b"
}

program! {
    /// PSCI SYSTEM_RESET.
    reset:
    "mov w0, 9"
    "movk w0, 0x8400, lsl 16"
    "hvc 0"
    "2: b 2b"
}

program! {
    /// PSCI SYSTEM_OFF.
    system_off:
    "mov w0, 8"
    "movk w0, 0x8400, lsl 16"
    "hvc 0"
    "2: b 2b"
}

program! {
    /// Reads the ROM, writes it, reads it again.
    rom:
    "mov x1, 0x400000"
    "mov x2, 0x21000000"
    "ldr w0, [x1]"
    "str w0, [x2, 0x50]"
    "mov w0, 7"
    "str w0, [x1]"
    "ldr w0, [x1]"
    "str w0, [x2, 0x50]"
    "strb w0, [x2, 0xf4]"
    "2: b 2b"
}

program! {
    /// Fills X19 and V5, says DONE, and tells what they hold. Writes below the stack's end.
    registers:
    "mov x0, 0x300000"
    "msr CPACR_EL1, x0"
    "isb"
    "ldr x19, 3f"
    "ldr x0, 3f + 8"
    "mov x3, 0x20000"
    "movk x3, 0x7ff8"
    "str x0, [x3]"
    "fmov d5, x0"
    "mov x2, 0x21000000"
    "strb w0, [x2, 0xf4]"
    "mov x1, 0x20000000"
    "str x19, [x1]"
    "fmov x0, d5"
    "str x0, [x1, 8]"
    "strb w0, [x2, 0xf4]"
    "2: b 2b"
    "3: .quad 0x1122334455667788, 0x99aabbccddeeff00"
}
