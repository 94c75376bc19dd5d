//! How a guest program is assembled.

// A leaf that may use unsafe: the assembler's labels are read as bytes.
#![allow(unsafe_code)]

/// Assembles a guest program; the function returns its bytes. DONE is port 0xf4, READY port 0xf5, MMIO 0x20000000; where
/// there are no ports, they are at 0x21000000.
macro_rules! program {
    ($(#[$doc:meta])* $name:ident: $($line:literal)*) => {
        std::arch::global_asm!(
            ".pushsection .rodata",
            concat!(".globl servin_guest_", stringify!($name)),
            concat!("servin_guest_", stringify!($name), ":"),
            $($line,)*
            concat!(".globl servin_guest_", stringify!($name), "_end"),
            concat!("servin_guest_", stringify!($name), "_end:"),
            ".popsection",
        );

        $(#[$doc])*
        pub(super) fn $name() -> &'static [u8] {
            unsafe extern "C" {
                #[link_name = concat!("servin_guest_", stringify!($name))]
                static START: u8;
                #[link_name = concat!("servin_guest_", stringify!($name), "_end")]
                static END: u8;
            }
            // SAFETY: the labels enclose the bytes that were assembled above.
            unsafe {
                std::slice::from_raw_parts(&raw const START, (&raw const END).offset_from_unsigned(&raw const START))
            }
        }
    };
}

pub(super) use program;
