//! Reading files ahead, so that they are in memory when a machine is saved as a template: its clones then read nothing
//! from their disk on the way to their program.

use alloc::{vec, vec::Vec};

use rustix::{
    fd::OwnedFd,
    fs::{Mode, OFlags},
};

use crate::{boot::c_path, environment, spawn};

/// Most that is read, also as a share of the machine's memory.
const MOST: usize = 16 << 20;
const SHARE: usize = 16;
/// Room for the header of a program with its program headers, and for a `#!` line.
const HEAD: usize = 4096;

/// Reads the program's file, the file that interprets it, and those in which users are looked up. What fails here fails
/// again, and is told, when it is needed.
pub(crate) fn read(program: &[u8], path: &[u8]) {
    let _ = spawn::identity("", &[]);
    let memory = usize::try_from(rustix::system::sysinfo().totalram).unwrap_or(0);
    let mut left = MOST.min(memory / SHARE);
    let mut variables = Vec::new();
    if !path.is_empty() {
        variables.push([b"PATH=", path].concat());
    }
    let files = environment::candidates(program, &variables);
    let Some(file) = files.iter().find_map(|path| open(path)) else { return };
    let head = whole(&file, &mut left);
    if let Some(file) = interpreter(&head).and_then(|path| open(&c_path(path))) {
        whole(&file, &mut left);
    }
}

fn open(path: &core::ffi::CStr) -> Option<OwnedFd> {
    rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK, Mode::empty()).ok()
}

/// Reads as much of the file as is allowed, and gives its beginning.
fn whole(file: &OwnedFd, left: &mut usize) -> Vec<u8> {
    let (mut head, mut buffer) = (Vec::new(), vec![0; 64 << 10]);
    while *left > 0 {
        let Ok(count @ 1..) = rustix::io::read(file, &mut buffer) else { break };
        if head.is_empty() {
            head.extend_from_slice(buffer.get(..count.min(HEAD)).unwrap_or_default());
        }
        *left = left.saturating_sub(count);
    }
    head
}

/// The file that runs the program with this beginning: of `#!`, or of an ELF program header of type PT_INTERP (elf(5)).
fn interpreter(head: &[u8]) -> Option<&[u8]> {
    const PT_INTERP: u32 = 3;
    const ENTRY: usize = 56;
    if let Some(line) = head.strip_prefix(b"#!") {
        let line = line.split(|byte| *byte == b'\n').next()?.trim_ascii_start();
        return line.split(u8::is_ascii_whitespace).next().filter(|path| !path.is_empty());
    }
    // 64 bits, little-endian.
    if !head.starts_with(b"\x7fELF\x02\x01") {
        return None;
    }
    let number = |at: usize, len: usize| {
        let bytes = head.get(at..at.checked_add(len)?)?;
        usize::try_from(bytes.iter().rev().fold(0_u64, |sum, byte| sum << 8 | u64::from(*byte))).ok()
    };
    let (table, count) = (number(32, 8)?, number(56, 2)?);
    (0..count).find_map(|index| {
        let entry = table.checked_add(index * ENTRY)?;
        if number(entry, 4)? != PT_INTERP as usize {
            return None;
        }
        let (from, len) = (number(entry.checked_add(8)?, 8)?, number(entry.checked_add(32)?, 8)?);
        let path = head.get(from..from.checked_add(len)?)?;
        path.strip_suffix(b"\0")
    })
}

#[cfg(test)]
mod tests {
    use super::interpreter;

    #[test]
    fn the_interpreter_is_found_in_scripts_and_programs() {
        assert_eq!(interpreter(b"#! /bin/sh -e\necho"), Some(&b"/bin/sh"[..]));
        assert_eq!(interpreter(b"#!\n"), None);
        assert_eq!(interpreter(b"plain"), None);
        let mut program = vec![0; 256];
        program[..6].copy_from_slice(b"\x7fELF\x02\x01");
        (program[32], program[56]) = (64, 2);
        (program[64 + 56], program[64 + 56 + 8], program[64 + 56 + 32]) = (3, 200, 8);
        program[200..208].copy_from_slice(b"/lib/ld\0");
        assert_eq!(interpreter(&program), Some(&b"/lib/ld"[..]));
        for end in 0..208 {
            assert_eq!(interpreter(&program[..end]), None, "cut at {end}");
        }
        program[64 + 56 + 8..64 + 56 + 16].fill(0xff);
        assert_eq!(interpreter(&program), None);
    }
}
