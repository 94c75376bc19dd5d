//! Our own: for hosts where no crate of loaders builds.

use std::fs::File;

use servin_devices::mem::GuestRam;
use servin_devices::os::read_exact_at;

use super::{AT, LEN, Loaded, SetupHeader};
use crate::boot::read_file;

/// Bytes of an ELF header, of a program header, of the header of a note.
const ELF_HEADER: usize = 64;
const PROGRAM_HEADER: usize = 56;
const NOTE_HEADER: usize = 12;
const PT_LOAD: u64 = 1;
const PT_NOTE: u64 = 4;
/// `XEN_ELFNOTE_PHYS32_ENTRY`: the note of the owner "Xen" that names the entry of PVH.
const PHYS32_ENTRY: u64 = 18;
/// The most bytes of notes that are read.
const MOST_NOTES: u64 = 1 << 20;

/// A little-endian field of `len` bytes at `at`; 0 where there is none.
fn field(bytes: &[u8], at: usize, len: usize) -> u64 {
    let mut value = [0; 8];
    let from = bytes.get(at..).unwrap_or_default();
    for (to, from) in value.iter_mut().zip(from).take(len) {
        *to = *from;
    }
    u64::from_le_bytes(value)
}

/// Loads an ELF kernel that begins at `lowest` or above.
pub(in crate::boot::x86_64) fn elf(ram: &GuestRam, file: &mut File, lowest: u64) -> Result<Loaded, String> {
    let mut head = [0; ELF_HEADER];
    read_exact_at(file, &mut head, 0).map_err(|e| format!("the ELF header cannot be read: {e}"))?;
    if !head.starts_with(b"\x7fELF") || field(&head, 5, 1) != 1 {
        return Err("not a little-endian ELF file".into());
    }
    let (start, table) = (field(&head, 0x18, 8), field(&head, 0x20, 8));
    let (each, count) = (field(&head, 0x36, 2), field(&head, 0x38, 2));
    if each != PROGRAM_HEADER as u64 || table < ELF_HEADER as u64 {
        return Err("its program headers are none of ELF64".into());
    }
    if start < lowest {
        return Err(format!("its entry point {start:#x} is below {lowest:#x}"));
    }
    let mut loaded = Loaded { start, pvh: None, end: 0, header: None };
    let mut headers = vec![0; PROGRAM_HEADER * count as usize];
    read_exact_at(file, &mut headers, table).map_err(|e| format!("a program header cannot be read: {e}"))?;
    for header in headers.chunks_exact(PROGRAM_HEADER) {
        let (kind, offset, addr) = (field(header, 0, 4), field(header, 8, 8), field(header, 0x18, 8));
        let (in_file, in_memory) = (field(header, 0x20, 8), field(header, 0x28, 8));
        if kind == PT_NOTE {
            loaded.pvh = pvh_entry(file, offset, in_file)?;
        }
        if kind != PT_LOAD || in_file == 0 {
            continue;
        }
        read_file(ram, file, offset, addr, in_file)
            .map_err(|e| format!("the segment at {addr:#x} cannot be loaded: {e}"))?;
        let end = addr.checked_add(in_memory).ok_or("a segment ends beyond all memory")?;
        loaded.end = loaded.end.max(end);
    }
    Ok(loaded)
}

/// Looks for the entry of PVH among the notes at `offset`.
fn pvh_entry(file: &File, offset: u64, len: u64) -> Result<Option<u64>, String> {
    if len > MOST_NOTES {
        return Err(format!("{len} bytes of notes"));
    }
    let mut notes = vec![0; usize::try_from(len).unwrap_or(0)];
    read_exact_at(file, &mut notes, offset).map_err(|e| format!("its notes cannot be read: {e}"))?;
    let mut rest = &notes[..];
    while rest.len() >= NOTE_HEADER {
        let (name_len, len, kind) = (field(rest, 0, 4), field(rest, 4, 4), field(rest, 8, 4));
        let (_, behind) = rest.split_at(NOTE_HEADER);
        if kind == PHYS32_ENTRY && name_len == 4 && behind.starts_with(b"Xen\0") {
            if len < 4 || behind.len() < 8 {
                return Err("its PVH note has no address".into());
            }
            return Ok(Some(field(behind, 4, 4)));
        }
        let skip = name_len.next_multiple_of(4) + len.next_multiple_of(4);
        rest = usize::try_from(skip).ok().and_then(|skip| behind.get(skip..)).unwrap_or_default();
    }
    Ok(None)
}

/// Loads a bzImage that begins at `lowest` or above.
pub(in crate::boot::x86_64) fn bzimage(
    ram: &GuestRam,
    file: &mut File,
    lowest: u64,
) -> Result<Loaded, String> {
    let size = file.metadata().map_err(|e| e.to_string())?.len();
    let mut bytes = [0; LEN];
    read_exact_at(file, &mut bytes, AT as u64).map_err(|e| format!("its header cannot be read: {e}"))?;
    let header = SetupHeader(bytes);
    let (magic, version, flags) = (header.get::<4>(0x202), header.get::<2>(0x206), header.get::<1>(0x211));
    if magic != u64::from(super::super::HEADER_MAGIC) || version < 0x200 || flags & 1 == 0 {
        return Err("Invalid bzImage".into());
    }
    let sectors = match header.get::<1>(0x1f1) {
        0 => 4,
        sectors => sectors,
    };
    let from = (sectors + 1) * 512;
    let len = size.checked_sub(from).ok_or("it ends within its setup")?;
    let start = header.get::<4>(0x214);
    if start < lowest {
        return Err(format!("it begins at {start:#x}, below {lowest:#x}"));
    }
    read_file(ram, file, from, start, len).map_err(|e| format!("it cannot be loaded: {e}"))?;
    Ok(Loaded { start, pvh: None, end: start.saturating_add(len), header: Some(header) })
}
