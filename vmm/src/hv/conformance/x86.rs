//! The guest programs in x86 machine code. They run at [`CODE`] in 64-bit mode, identity-mapped.

// A leaf that may use unsafe: the assembler's labels are read as bytes.
#![allow(unsafe_code)]

use servin_devices::mem::GuestRam;

use super::program::program;
use super::rig::{CODE, STACK};
use crate::hv::{Entry, X86Entry, X86Mode};

/// Places of page tables and descriptors.
const TABLES: u64 = 0x4_0000;
const GDT: u64 = 0x5000;

/// Puts into memory what every program needs.
pub(super) fn prepare(mem: &GuestRam) {
    X86Entry::write_identity_map(mem, TABLES, 4).unwrap();
    X86Entry::write_gdt(mem, GDT, X86Mode::Long { page_table: TABLES }).unwrap();
}

/// Where the first vCPU begins.
pub(super) fn entry() -> Entry {
    Entry::X86(X86Entry {
        mode: X86Mode::Long { page_table: TABLES },
        rip: CODE,
        rsp: STACK,
        rbx: 0,
        rsi: 0,
        gdt: GDT,
    })
}

/// A program that powers off through the hypervisor: x86 has a device for that.
pub(super) fn power_off() -> Option<&'static [u8]> {
    None
}

program! {
    /// Writes each value that it reads 16 bytes behind.
    mmio:
    "mov edi, 0x20000000"
    "mov al, [rdi + 1]"
    "mov [rdi + 0x11], al"
    "mov ax, [rdi + 2]"
    "mov [rdi + 0x12], ax"
    "mov eax, [rdi + 4]"
    "mov [rdi + 0x14], eax"
    "mov rax, [rdi + 8]"
    "mov [rdi + 0x18], rax"
    "out 0xf4, al"
    "2: jmp 2b"
}

program! {
    /// Echoes a port in each width, then puts out a string.
    pio:
    "in al, 0x50"
    "out 0x54, al"
    "in ax, 0x50"
    "out 0x54, ax"
    "in eax, 0x50"
    "out 0x54, eax"
    "lea rsi, [rip + 3f]"
    "mov ecx, 3"
    "mov edx, 0x58"
    "cld"
    "rep outsb"
    "out 0xf4, al"
    "2: jmp 2b"
    "3: .ascii \"abc\""
}

program! {
    /// Does nothing, for ever.
    spin:
    "2: jmp 2b"
}

program! {
    /// Halts until line 5 of the I/O APIC raises vector 0x25 at the first local APIC: not every hypervisor has a PIC that
    /// interrupts.
    halt:
    "lea rax, [rip + 3f]"
    "mov edi, 0x30000"
    "mov [rdi + 0x250], ax"
    "mov word ptr [rdi + 0x252], 0x10"
    "mov word ptr [rdi + 0x254], 0x8e00"
    "shr rax, 16"
    "mov [rdi + 0x256], ax"
    "shr rax, 16"
    "mov [rdi + 0x258], eax"
    "sub rsp, 16"
    "mov word ptr [rsp], 0x25f"
    "mov [rsp + 2], rdi"
    "lidt [rsp]"
    // A PIC that is there delivers the line, too, unless it is masked.
    "mov al, 0xff"
    "out 0x21, al"
    "out 0xa1, al"
    "mov edi, 0xfee00000"
    "mov dword ptr [rdi + 0xf0], 0x1ff"
    "mov edi, 0xfec00000"
    "mov dword ptr [rdi], 0x1b"
    "mov dword ptr [rdi + 0x10], 0"
    "mov dword ptr [rdi], 0x1a"
    "mov dword ptr [rdi + 0x10], 0x25"
    "out 0xf5, al"
    "sti"
    "2: hlt"
    "jmp 2b"
    "3: out 0xf4, al"
    "4: jmp 4b"
}

program! {
    /// Rings a doorbell with 3, with 4, with half of a 3, says READY, rings with 3 again.
    doorbell:
    "mov edi, 0x20000050"
    "mov dword ptr [rdi], 3"
    "mov dword ptr [rdi], 4"
    "mov word ptr [rdi], 3"
    "out 0xf5, al"
    "mov dword ptr [rdi], 3"
    "out 0xf4, al"
    "2: jmp 2b"
}

program! {
    /// Starts vCPU 1 at 0x8000 through the local APIC (INIT, SIPI).
    start_another:
    "mov edi, 0xfee00000"
    "mov dword ptr [rdi + 0xf0], 0x1ff"
    "mov dword ptr [rdi + 0x310], 0x01000000"
    "mov dword ptr [rdi + 0x300], 0x4500"
    "mov dword ptr [rdi + 0x310], 0x01000000"
    "mov dword ptr [rdi + 0x300], 0x4608"
    "out 0xf4, al"
    "2: jmp 2b"
}

program! {
    /// What vCPU 1 executes, in real mode at 0x8000.
    second:
    ".code16"
    "out 0xf4, al"
    "2: jmp 2b"
    ".code64"
}

program! {
    /// An exception without a descriptor table: a triple fault.
    reset:
    "sub rsp, 16"
    "mov word ptr [rsp], 0"
    "mov qword ptr [rsp + 2], 0"
    "lidt [rsp]"
    "ud2"
}

program! {
    /// Reads the ROM, writes it, reads it again.
    rom:
    "mov edi, 0x400000"
    "mov eax, [rdi]"
    "out 0x50, eax"
    "mov dword ptr [rdi], 7"
    "mov eax, [rdi]"
    "out 0x50, eax"
    "out 0xf4, al"
    "2: jmp 2b"
}

program! {
    /// Fills RBX and XMM5, says DONE, and tells what they hold.
    registers:
    "mov rax, cr4"
    "or eax, 0x200"
    "mov cr4, rax"
    "mov rax, 0x99aabbccddeeff00"
    "push rax"
    "mov rbx, 0x1122334455667788"
    "movups xmm5, [rsp]"
    "out 0xf4, al"
    "mov edi, 0x20000000"
    "mov [rdi], rbx"
    "movups [rsp], xmm5"
    "pop rax"
    "mov [rdi + 8], rax"
    "out 0xf4, al"
    "2: jmp 2b"
}

program! {
    /// Uses instructions that not every hypervisor's emulator knows, and leaves at 0x30000: a POPCNT and its flags, what a
    /// failed and a done CMPXCHG16B gave, XCR0, where INT3 and INT 80h return to, and how often each was taken. XRSTOR
    /// loads what is at 0x31000, XSAVE stores to 0x32000.
    seldom:
    // Gates for vectors 3 and 0x80 at 0x33000.
    "mov edi, 0x33000"
    "lea rax, [rip + 4f]"
    "mov ecx, 0x30"
    "call 3f"
    "lea rax, [rip + 5f]"
    "mov ecx, 0x800"
    "call 3f"
    "push rdi"
    "push 0"
    "mov word ptr [rsp + 6], 0xfff"
    "lidt [rsp + 6]"
    // OSFXSR, OSXSAVE, and XCR0 with x87, SSE and AVX.
    "mov rax, cr4"
    "or eax, 0x40200"
    "mov cr4, rax"
    "xor ecx, ecx"
    "xor edx, edx"
    "mov eax, 7"
    "xsetbv"

    "mov edi, 0x30000"
    "movabs rcx, 0xf0f0000000000001"
    "stc"
    "popcnt rax, rcx"
    "mov [rdi], rax"
    "pushfq"
    "pop qword ptr [rdi + 8]"

    "mov eax, 1"
    "mov edx, 2"
    "mov ebx, 3"
    "mov ecx, 4"
    "lock cmpxchg16b [rdi + 0x80]"
    "mov [rdi + 0x10], rax"
    "mov [rdi + 0x18], rdx"
    "lock cmpxchg16b [rdi + 0x80]"
    "setz [rdi + 0x20]"

    "xor ecx, ecx"
    "xgetbv"
    "mov [rdi + 0x28], eax"

    "int3"
    "6: int 0x80"
    "7: lea rax, [rip + 6b]"
    "sub [rdi + 0x40], rax"
    "lea rax, [rip + 7b]"
    "sub [rdi + 0x50], rax"

    // A CPU that lost XCR0 would fault.
    "cmp dword ptr [rdi + 0x28], 7"
    "jne 8f"
    "mov eax, 7"
    "xor edx, edx"
    "mov esi, 0x31000"
    "xrstor64 [rsi]"
    "mov esi, 0x32000"
    "xsave64 [rsi]"
    "8: out 0xf4, al"
    "2: jmp 2b"

    // The gate at RDI + RCX leads to RAX.
    "3: mov [rdi + rcx], ax"
    "mov word ptr [rdi + rcx + 2], 0x10"
    "mov word ptr [rdi + rcx + 4], 0x8e00"
    "shr rax, 16"
    "mov [rdi + rcx + 6], ax"
    "shr rax, 16"
    "mov [rdi + rcx + 8], rax"
    "ret"
    // Handlers: where it returns to, and a count.
    "4: mov rax, [rsp]"
    "mov [rdi + 0x40], rax"
    "inc qword ptr [rdi + 0x48]"
    "iretq"
    "5: mov rax, [rsp]"
    "mov [rdi + 0x50], rax"
    "inc qword ptr [rdi + 0x58]"
    "iretq"
}
