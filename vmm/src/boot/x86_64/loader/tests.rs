//! Our loader against that of the `linux-loader` crate: the same files, the same answers, the same bytes in RAM.

use std::fs::File;
use std::io::{Seek as _, Write as _};

use servin_devices::mem::GuestRam;
use servin_devices::testing::small_ram;
use vm_memory::{Bytes as _, GuestAddress};

use super::{Loaded, own, vmm};

const RAM: usize = 4 << 20;
const LOWEST: u64 = 1 << 20;

type Load = fn(&GuestRam, &mut File, u64) -> Result<Loaded, String>;

/// What came of it, and what is in RAM: only that there was an error, since the two say it in words of their own.
fn run(load: Load, contents: &[u8]) -> (Option<Loaded>, Vec<u8>) {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(contents).unwrap();
    file.rewind().unwrap();
    let ram = small_ram(RAM);
    let loaded = load(&ram, &mut file, LOWEST).ok();
    let mut bytes = vec![0; RAM];
    ram.read_slice(&mut bytes, GuestAddress(0)).unwrap();
    (loaded, bytes)
}

/// Loads with both.
fn both(ours: Load, theirs: Load, contents: &[u8], what: &str) -> Option<Loaded> {
    let (ours, theirs) = (run(ours, contents), run(theirs, contents));
    assert_eq!(ours.0, theirs.0, "{what}");
    // What an attempt that failed left in RAM is of no meaning.
    assert!(ours.0.is_none() || ours.1 == theirs.1, "{what}: the two loaded different bytes");
    ours.0
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

/// An ELF kernel with two segments, and notes of which the second is that of PVH.
fn an_elf() -> Vec<u8> {
    let mut bytes = vec![0; 0x3000];
    put(&mut bytes, 0, b"\x7fELF\x02\x01\x01");
    put(&mut bytes, 0x18, &0x10_0040_u64.to_le_bytes());
    put(&mut bytes, 0x20, &64_u64.to_le_bytes());
    put(&mut bytes, 0x36, &56_u16.to_le_bytes());
    put(&mut bytes, 0x38, &3_u16.to_le_bytes());
    let segments = [
        (1_u32, 0x1000_u64, 0x10_0000_u64, 0x1000_u64, 0x5000_u64),
        (1, 0x2003, 0x20_0001, 0x7fd, 0x7fd),
        (4, 0x800, 0, 0x40, 0x40),
    ];
    for (index, (kind, offset, addr, in_file, in_memory)) in segments.into_iter().enumerate() {
        let at = 64 + 56 * index;
        put(&mut bytes, at, &kind.to_le_bytes());
        for (place, value) in [(8, offset), (0x18, addr), (0x20, in_file), (0x28, in_memory)] {
            put(&mut bytes, at + place, &value.to_le_bytes());
        }
    }
    let note = |kind: u32, name: &[u8], value: &[u8]| {
        let mut note = Vec::new();
        for word in [name.len() as u32, value.len() as u32, kind] {
            note.extend_from_slice(&word.to_le_bytes());
        }
        for part in [name, value] {
            note.extend_from_slice(part);
            note.resize(note.len().next_multiple_of(4), 0);
        }
        note
    };
    let notes = [note(3, b"GNU\0", b"12345"), note(18, b"Xen\0", &0x10_0123_u64.to_le_bytes())].concat();
    put(&mut bytes, 0x800, &notes);
    for (index, byte) in bytes[0x1000..].iter_mut().enumerate() {
        *byte = (index % 251) as u8;
    }
    bytes
}

fn a_bzimage() -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..0x4000_u32).map(|index| (index % 241) as u8).collect();
    put(&mut bytes, 0x1f1, &[2]);
    put(&mut bytes, 0x202, b"HdrS");
    put(&mut bytes, 0x206, &0x20f_u16.to_le_bytes());
    put(&mut bytes, 0x211, &[1]);
    put(&mut bytes, 0x214, &0x10_0000_u32.to_le_bytes());
    bytes
}

#[test]
fn both_loaders_load_the_same_elf_kernel() {
    let loaded = both(own::elf, vmm::elf, &an_elf(), "a whole kernel").unwrap();
    assert_eq!((loaded.start, loaded.pvh, loaded.end), (0x10_0040, Some(0x10_0123), 0x20_07fe));
    let mut without = an_elf();
    put(&mut without, 0x800, &[0; 0x40]);
    assert_eq!(both(own::elf, vmm::elf, &without, "no note").unwrap().pvh, None);
}

#[test]
fn both_loaders_load_the_same_bzimage() {
    let loaded = both(own::bzimage, vmm::bzimage, &a_bzimage(), "a whole kernel").unwrap();
    assert_eq!((loaded.start, loaded.end), (0x10_0000, 0x10_0000 + 0x4000 - 3 * 512));
    let header = loaded.header.unwrap();
    assert_eq!(
        (header.get::<4>(0x214), header.get::<2>(0x206), header.get::<8>(0x26c)),
        (0x10_0000, 0x20f, 0)
    );
    let mut without = a_bzimage();
    put(&mut without, 0x1f1, &[0]);
    assert_eq!(
        both(own::bzimage, vmm::bzimage, &without, "four sectors").unwrap().end,
        0x10_0000 + 0x4000 - 5 * 512
    );
}

#[test]
fn both_loaders_refuse_the_same_files() {
    let elf = |at: usize, value: &[u8]| {
        let mut bytes = an_elf();
        put(&mut bytes, at, value);
        bytes
    };
    for (what, bytes) in [
        ("another magic", elf(0, b"\x7fELG")),
        ("big-endian", elf(5, &[2])),
        ("an entry too low", elf(0x18, &0xf_ffff_u64.to_le_bytes())),
        ("headers of another size", elf(0x36, &32_u16.to_le_bytes())),
        ("headers within the header", elf(0x20, &63_u64.to_le_bytes())),
        ("headers behind the end", elf(0x20, &0x2ff0_u64.to_le_bytes())),
        ("a segment outside of RAM", elf(64 + 0x18, &(RAM as u64 - 0xfff).to_le_bytes())),
        ("a segment behind the end of the file", elf(64 + 8, &0x2001_u64.to_le_bytes())),
        ("a segment beyond all memory", elf(64 + 0x28, &u64::MAX.to_le_bytes())),
        ("a note without an address", elf(0x800 + 24 + 4, &3_u32.to_le_bytes())),
        ("cut in the header", an_elf()[..63].to_vec()),
        ("cut in the last segment", an_elf()[..0x27ff].to_vec()),
        ("empty", Vec::new()),
    ] {
        assert_eq!(both(own::elf, vmm::elf, &bytes, what), None, "{what}");
    }
    let image = |at: usize, value: &[u8]| {
        let mut bytes = a_bzimage();
        put(&mut bytes, at, value);
        bytes
    };
    for (what, bytes) in [
        ("another magic", image(0x202, b"HdrT")),
        ("an old protocol", image(0x206, &0x1ff_u16.to_le_bytes())),
        ("a kernel that is loaded low", image(0x211, &[0])),
        ("too low", image(0x214, &0xf_ffff_u32.to_le_bytes())),
        ("outside of RAM", image(0x214, &(RAM as u32 - 0x100).to_le_bytes())),
        ("nothing but setup", image(0x1f1, &[32])),
    ] {
        assert_eq!(both(own::bzimage, vmm::bzimage, &bytes, what), None, "{what}");
    }
}
