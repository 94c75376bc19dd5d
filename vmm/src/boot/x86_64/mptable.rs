//! The MP table (Intel MultiProcessor Specification 1.4): how a kernel without ACPI finds vCPUs and interrupt lines.

use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use servin_devices::mem::GuestRam;

use crate::layout::{GSIS, IO_APIC, LOCAL_APIC, MP_TABLE};

/// Version 1.4.
const VERSION: u8 = 4;
/// Version of an integrated local APIC.
const APIC_VERSION: u8 = 0x14;
/// An APIC number that means all local APICs.
const ALL_APICS: u8 = 0xff;

/// Writes the table for `cpus` vCPUs.
pub(super) fn write(ram: &GuestRam, cpus: u8) -> Result<(), GuestMemoryError> {
    let io_apic = cpus;
    let mut entries = Vec::new();
    let mut count = 0_u16;
    let mut add = |entry: &[u8]| {
        entries.extend_from_slice(entry);
        count += 1;
    };
    for cpu in 0..cpus {
        // Enabled; the first one boots.
        let flags = if cpu == 0 { 3 } else { 1 };
        let (signature, features) = (0x600_u32.to_le_bytes(), 0x201_u32.to_le_bytes());
        add(&[&[0, cpu, APIC_VERSION, flags][..], &signature, &features, &[0; 8]].concat());
    }
    // One bus, so that interrupts are edge-triggered and active high.
    add(b"\x01\x00ISA   ");
    add(&[&[2, io_apic, 0x11, 1][..], &IO_APIC.to_le_bytes()].concat());
    for line in 0..GSIS as u8 {
        add(&[3, 0, 0, 0, 0, line, io_apic, line]);
    }
    // LINT0 is the 8259, LINT1 the NMI.
    add(&[4, 3, 0, 0, 0, 0, 0, 0]);
    add(&[4, 1, 0, 0, 0, 0, ALL_APICS, 1]);

    let table = MP_TABLE + 16;
    let length = 44 + entries.len() as u16;
    let mut header = Vec::with_capacity(44);
    header.extend_from_slice(b"PCMP");
    header.extend_from_slice(&length.to_le_bytes());
    header.extend_from_slice(&[VERSION, 0]);
    header.extend_from_slice(b"SERVIN  MICROVM     ");
    header.extend_from_slice(&[0; 6]);
    header.extend_from_slice(&count.to_le_bytes());
    header.extend_from_slice(&LOCAL_APIC.to_le_bytes());
    header.extend_from_slice(&[0; 4]);
    let mut bytes = [header, entries].concat();
    fix_checksum(&mut bytes, 7);

    let mut pointer = [0; 16];
    pointer[..4].copy_from_slice(b"_MP_");
    pointer[4..8].copy_from_slice(&(table as u32).to_le_bytes());
    pointer[8..10].copy_from_slice(&[1, VERSION]);
    fix_checksum(&mut pointer, 10);
    ram.write_slice(&pointer, GuestAddress(MP_TABLE))?;
    ram.write_slice(&bytes, GuestAddress(table))
}

/// Makes the sum of all bytes zero by the byte at `at`.
fn fix_checksum(bytes: &mut [u8], at: usize) {
    let sum = bytes.iter().fold(0_u8, |sum, &byte| sum.wrapping_add(byte));
    if let Some(byte) = bytes.get_mut(at) {
        *byte = byte.wrapping_sub(sum);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory;

    #[test]
    fn the_table_sums_to_zero_and_counts_its_entries() {
        for cpus in [1, 8] {
            let ram = memory::anonymous(32).unwrap();
            write(&ram, cpus).unwrap();
            let mut bytes = [0; 1024];
            ram.read_slice(&mut bytes, GuestAddress(MP_TABLE)).unwrap();
            let sum = |bytes: &[u8]| bytes.iter().fold(0_u8, |sum, &byte| sum.wrapping_add(byte));
            let table = &bytes[16..];
            let length = usize::from(u16::from_le_bytes([table[4], table[5]]));
            assert_eq!((sum(&bytes[..16]), sum(&table[..length])), (0, 0));
            let (mut at, mut count) = (44, 0);
            while at < length {
                at += if table[at] == 0 { 20 } else { 8 };
                count += 1;
            }
            assert_eq!((at, count), (length, u16::from_le_bytes([table[34], table[35]])));
            assert_eq!(count, u16::from(cpus) + 28);
        }
    }
}
