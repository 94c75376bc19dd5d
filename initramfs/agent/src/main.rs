//! PID 1 of every servin guest, without a standard library and without libc.
//!
//! This file and [`rt`] are the runtime that would otherwise come from them; what the agent does is in the library
//! beside it.
#![no_std]
#![no_main]

mod rt;

/// Called by `rt::start` with the arguments, and the environment that the kernel made of its command line.
fn main(arguments: rt::start::Words, environment: rt::start::Words) -> ! {
    servin_agent::run(arguments, environment)
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    servin_agent::die(format_args!("{info}"))
}
