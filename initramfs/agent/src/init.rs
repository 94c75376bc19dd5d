//! The agent's other trade: PID 1 of a container that was asked for with an init. It starts the program as its child,
//! passes signals on to it, reaps what is left to it, and ends as the program does.

use alloc::{ffi::CString, format, vec::Vec};

use rustix::{
    io::Errno,
    process::{Pid, WaitOptions, wait},
};

use crate::{
    environment,
    sys::{self, Strings},
};

/// What it is called: the first word of its arguments, by which it knows that it is not the machine's PID 1.
pub(crate) const NAME: &core::ffi::CStr = c"servin-init";
/// The second word.
pub(crate) const SEPARATOR: &core::ffi::CStr = c"--";
/// How the child that is to become it finds it: by the agent that it still is.
pub(crate) const PATH: &core::ffi::CStr = c"/proc/self/exe";

const SIGCHLD: i32 = 17;

/// Runs `program`, whose first word is looked for in the environment's PATH.
pub(crate) fn run(program: Vec<CString>, env: Vec<CString>) -> ! {
    // /proc/PID/comm would say "exe".
    let _ = rustix::thread::set_name(NAME);
    sys::block_signals();
    let child = match sys::fork() {
        Ok(0) => start(program, env),
        Ok(child) => child,
        Err(errno) => fail("make a process", errno, 125),
    };
    loop {
        match sys::next_signal() {
            SIGCHLD => reap(child),
            // It may have ended in this moment; its SIGCHLD follows.
            signal => _ = sys::kill(child, signal as u8),
        }
    }
}

/// Takes what has ended out of the process table; ends with the program.
fn reap(program: i32) {
    while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
        if pid.as_raw_nonzero().get() != program {
            continue;
        }
        match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => sys::exit_now(code as u8),
            (None, Some(signal)) => sys::exit_now(128 | signal as u8),
            (None, None) => {}
        }
    }
}

/// The child: takes the terminal, if there is one, and becomes the program.
fn start(program: Vec<CString>, env: Vec<CString>) -> ! {
    if rustix::process::setpgid(None, None).is_ok() {
        // Signals are blocked, so that a background process may take the terminal. Without one this fails.
        let _ = rustix::termios::tcsetpgrp(sys::borrow(0), own_pid());
    }
    sys::unblock_signals();
    let Some(name) = program.first().cloned() else { fail("find a program", Errno::NOENT, 127) };
    let variables: Vec<Vec<u8>> = env.iter().map(|variable| variable.as_bytes().to_vec()).collect();
    let candidates = environment::candidates(name.as_bytes(), &variables);
    let (argv, env) = (Strings::new(program), Strings::new(env));
    let errno = sys::execute(&candidates, &argv, &env);
    let code = if errno == Errno::NOENT { 127 } else { 126 };
    fail(&format!("execute {}", name.to_string_lossy()), errno, code)
}

fn own_pid() -> Pid {
    rustix::process::getpid()
}

fn fail(doing: &str, errno: Errno, code: u8) -> ! {
    let why = match errno {
        Errno::NOENT => "no such file",
        Errno::ACCESS => "permission denied",
        Errno::NOEXEC => "not a program",
        _ => "",
    };
    let text = if why.is_empty() {
        format!("servin-init: cannot {doing}: error {}\n", errno.raw_os_error())
    } else {
        format!("servin-init: cannot {doing}: {why}\n")
    };
    let _ = rustix::io::write(sys::borrow(2), text.as_bytes());
    sys::exit_now(code)
}
