//! x86_64: ELF kernels by PVH or by the 64-bit Linux protocol, bzImages by the latter.
//!
//! References: `Documentation/arch/x86/boot.rst` ("64-bit boot protocol") and the PVH start info of Xen.

mod loader;
mod mptable;

use std::fs::File;
use std::io::{Read, Seek};

use servin_devices::mem::GuestRam;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use self::loader::SetupHeader;
use super::{Initramfs, Plan, Protocol, boot, load_initramfs, open, random_seed};
use crate::error::Error;
use crate::hv::{Entry, X86Entry, X86Mode};
use crate::layout::{self, GRANULE, KERNEL_MIN};

/// `XEN_HVM_START_MAGIC_VALUE`.
const PVH_MAGIC: u32 = 0x336e_c578;
/// Boot sector magic in the setup header.
const BOOT_FLAG: u16 = 0xaa55;
/// "HdrS" in the setup header.
const HEADER_MAGIC: u32 = 0x5372_6448;
/// A boot loader without a number of its own.
const LOADER_OTHER: u8 = 0xff;
/// The kernel has a 64-bit entry point (`XLF_KERNEL_64`).
const XLF_KERNEL_64: u64 = 1;
/// Where it is, behind the 32-bit one.
const ENTRY_64: u64 = 0x200;
/// `SETUP_RNG_SEED`.
const SETUP_RNG_SEED: u32 = 9;

/// Types of ranges in the memory map, the same in e820 and PVH.
const RAM: u32 = 1;
const RESERVED: u32 = 2;

/// Bytes of `struct boot_params`.
const BOOT_PARAMS_LEN: usize = 4096;

/// Where fields of the boot parameters are (`Documentation/arch/x86/{boot,zero-page}.rst`). Those of the setup header have
/// the same place in a bzImage.
mod field {
    pub(super) const EXT_RAMDISK_IMAGE: usize = 0xc0;
    pub(super) const EXT_RAMDISK_SIZE: usize = 0xc4;
    pub(super) const E820_ENTRIES: usize = 0x1e8;
    pub(super) const BOOT_FLAG: usize = 0x1fe;
    pub(super) const HEADER: usize = 0x202;
    pub(super) const TYPE_OF_LOADER: usize = 0x210;
    pub(super) const RAMDISK_IMAGE: usize = 0x218;
    pub(super) const RAMDISK_SIZE: usize = 0x21c;
    pub(super) const CMD_LINE_PTR: usize = 0x228;
    pub(super) const INITRD_ADDR_MAX: usize = 0x22c;
    pub(super) const KERNEL_ALIGNMENT: usize = 0x230;
    pub(super) const XLOADFLAGS: usize = 0x236;
    pub(super) const CMDLINE_SIZE: usize = 0x238;
    pub(super) const SETUP_DATA: usize = 0x250;
    pub(super) const PREF_ADDRESS: usize = 0x258;
    pub(super) const INIT_SIZE: usize = 0x260;
    pub(super) const E820_TABLE: usize = 0x2d0;
}

/// A kernel in RAM.
struct Kernel {
    /// First instruction of the 64-bit protocol.
    entry_64: Option<u64>,
    /// First instruction of PVH.
    entry_pvh: Option<u64>,
    /// The end of everything that the kernel occupies before it looks at the memory map.
    end: u64,
    /// Of a bzImage.
    header: Option<SetupHeader>,
}

/// Loads everything; returns where the first vCPU begins.
pub(crate) fn load(plan: &Plan<'_>) -> Result<Entry, Error> {
    let ram = &**plan.mem;
    let file = open("kernel", plan.kernel)?;
    let kernel = load_kernel(ram, file, plan)?;
    let initramfs = load_initramfs(ram, plan.initramfs, |len| place_initramfs(ram, &kernel, len))?;
    let failed = |error: vm_memory::GuestMemoryError| boot("boot parameters", error.to_string());
    mptable::write(ram, plan.cpus).map_err(failed)?;
    let cmdline = [plan.cmdline.as_bytes(), &[0]].concat();
    ram.write_slice(&cmdline, GuestAddress(layout::CMDLINE)).map_err(failed)?;
    let entry = match plan.protocol {
        Protocol::Pvh => {
            let rip = kernel.entry_pvh.ok_or_else(|| {
                boot(
                    "kernel",
                    "it has no PVH entry point; build it with CONFIG_PVH or take the 64-bit protocol",
                )
            })?;
            write_start_info(ram, initramfs).map_err(failed)?;
            X86Entry {
                mode: X86Mode::Protected,
                rip,
                rsp: layout::STACK,
                rbx: layout::PVH_INFO,
                rsi: 0,
                gdt: layout::GDT,
            }
        }
        Protocol::Auto | Protocol::Linux64 => {
            let rip = kernel.entry_64.ok_or_else(|| boot("kernel", "it has no 64-bit entry point"))?;
            write_boot_params(ram, &kernel, initramfs, plan.cmdline.len())?;
            X86Entry::write_identity_map(ram, layout::PAGE_TABLES, 1).map_err(failed)?;
            X86Entry {
                mode: X86Mode::Long { page_table: layout::PAGE_TABLES },
                rip,
                rsp: layout::STACK,
                rbx: 0,
                rsi: layout::BOOT_PARAMS,
                gdt: layout::GDT,
            }
        }
    };
    X86Entry::write_gdt(ram, layout::GDT, entry.mode).map_err(failed)?;
    Ok(Entry::X86(entry))
}

fn load_kernel(ram: &GuestRam, mut file: File, plan: &Plan<'_>) -> Result<Kernel, Error> {
    let path = plan.kernel.display();
    let failed = |error: &dyn std::fmt::Display| boot("kernel", format!("{path}: {error}"));
    let mut magic = [0; 4];
    file.read_exact(&mut magic).and_then(|()| file.rewind()).map_err(|e| failed(&e))?;
    if magic == *b"\x7fELF" {
        let loaded = loader::elf(ram, &mut file, KERNEL_MIN).map_err(|e| failed(&e))?;
        return Ok(Kernel {
            entry_64: Some(loaded.start),
            entry_pvh: loaded.pvh,
            end: loaded.end,
            header: None,
        });
    }
    let loaded = loader::bzimage(ram, &mut file, KERNEL_MIN)
        .map_err(|e| failed(&format!("neither an ELF kernel for x86_64 nor a bzImage ({e})")))?;
    let header = loaded.header.ok_or_else(|| failed(&"no setup header"))?;
    let has_64 = header.get::<2>(field::XLOADFLAGS) & XLF_KERNEL_64 != 0;
    let unpacked = header.get::<8>(field::PREF_ADDRESS).saturating_add(header.get::<4>(field::INIT_SIZE));
    let end = loaded.end.max(unpacked);
    if end > low_ram_end(ram) {
        return Err(failed(&format!(
            "it needs {} MiB of memory to unpack itself",
            end.div_ceil(layout::MIB)
        )));
    }
    Ok(Kernel {
        entry_64: has_64.then_some(loaded.start + ENTRY_64),
        entry_pvh: None,
        end,
        header: Some(header),
    })
}

/// Directly behind an ELF kernel, where the huge page is paid for already; a bzImage tells a limit and gets the top.
fn place_initramfs(ram: &GuestRam, kernel: &Kernel, len: u64) -> Option<u64> {
    let end = low_ram_end(ram);
    let lowest = kernel.end.max(KERNEL_MIN).next_multiple_of(GRANULE);
    let addr = match &kernel.header {
        None => lowest,
        Some(header) => {
            let max = header.get::<4>(field::INITRD_ADDR_MAX);
            let top = if max == 0 { end } else { end.min(max + 1) };
            top.checked_sub(len)? / GRANULE * GRANULE
        }
    };
    (addr >= lowest && addr.checked_add(len)? <= end).then_some(addr)
}

/// Start, length and type of each range of the guest's memory map.
fn memory_map(ram: &GuestRam) -> Vec<(u64, u64, u32)> {
    let mut map = vec![
        (0, layout::MP_TABLE, RAM),
        // The MP table, and what a PC has below 1 MiB.
        (layout::MP_TABLE, KERNEL_MIN - layout::MP_TABLE, RESERVED),
    ];
    for region in ram.iter() {
        let start = region.start_addr().0.max(KERNEL_MIN);
        map.push((start, region.start_addr().0 + region.len() - start, RAM));
    }
    map
}

fn write_start_info(ram: &GuestRam, initramfs: Option<Initramfs>) -> Result<(), vm_memory::GuestMemoryError> {
    let modules = layout::PVH_INFO + 0x100;
    let memory = layout::PVH_INFO + 0x200;
    let map = memory_map(ram);
    if let Some(Initramfs { addr, len }) = initramfs {
        // `struct hvm_modlist_entry`: where, how long, its command line, reserved.
        ram.write_obj([addr, len, 0, 0].map(u64::to_le), GuestAddress(modules))?;
    }
    for (&(addr, size, kind), at) in map.iter().zip((memory..).step_by(24)) {
        // `struct hvm_memmap_table_entry`: where, how long, its type and 32 reserved bits.
        ram.write_obj([addr, size, u64::from(kind)].map(u64::to_le), GuestAddress(at))?;
    }
    // `struct hvm_start_info` of version 1.
    let count = initramfs.map_or(0, |_| 1_u32);
    let mut info = Vec::with_capacity(56);
    for word in [PVH_MAGIC, 1, 0, count] {
        info.extend_from_slice(&word.to_le_bytes());
    }
    let modules = if count == 0 { 0 } else { modules };
    // Modules, command line, ACPI (none), memory map with its length and 32 reserved bits.
    for long in [modules, layout::CMDLINE, 0, memory, map.len() as u64] {
        info.extend_from_slice(&long.to_le_bytes());
    }
    ram.write_slice(&info, GuestAddress(layout::PVH_INFO))
}

fn write_boot_params(
    ram: &GuestRam,
    kernel: &Kernel,
    initramfs: Option<Initramfs>,
    cmdline_len: usize,
) -> Result<(), Error> {
    let failed = |error: vm_memory::GuestMemoryError| boot("boot parameters", error.to_string());
    let (at, header) = kernel.header.as_ref().unwrap_or(&SetupHeader::NONE).bytes();
    let mut params = vec![0; BOOT_PARAMS_LEN];
    let mut put = |place: usize, bytes: &[u8]| {
        params.iter_mut().skip(place).zip(bytes).for_each(|(to, from)| *to = *from);
    };
    put(at, header);
    if kernel.header.is_none() {
        put(field::KERNEL_ALIGNMENT, &0x20_0000_u32.to_le_bytes());
    }
    put(field::BOOT_FLAG, &BOOT_FLAG.to_le_bytes());
    put(field::HEADER, &HEADER_MAGIC.to_le_bytes());
    put(field::TYPE_OF_LOADER, &[LOADER_OTHER]);
    put(field::CMD_LINE_PTR, &(layout::CMDLINE as u32).to_le_bytes());
    put(field::CMDLINE_SIZE, &u32::try_from(cmdline_len).unwrap_or(u32::MAX).to_le_bytes());
    if let Some(Initramfs { addr, len }) = initramfs {
        let mut split = |low: usize, high: usize, value: u64| {
            put(low, &(value as u32).to_le_bytes());
            put(high, &((value >> 32) as u32).to_le_bytes());
        };
        split(field::RAMDISK_IMAGE, field::EXT_RAMDISK_IMAGE, addr);
        split(field::RAMDISK_SIZE, field::EXT_RAMDISK_SIZE, len);
    }
    put(field::SETUP_DATA, &layout::RNG_SEED.to_le_bytes());
    write_rng_seed(ram)?;
    let map = memory_map(ram);
    for (&(addr, size, kind), at) in map.iter().zip((field::E820_TABLE..).step_by(20)) {
        put(at, &addr.to_le_bytes());
        put(at + 8, &size.to_le_bytes());
        put(at + 16, &kind.to_le_bytes());
    }
    put(field::E820_ENTRIES, &[u8::try_from(map.len()).unwrap_or(0)]);
    ram.write_slice(&params, GuestAddress(layout::BOOT_PARAMS)).map_err(failed)
}

/// `struct setup_data` with 32 random bytes, which the kernel credits and erases.
fn write_rng_seed(ram: &GuestRam) -> Result<(), Error> {
    let seed = random_seed()?;
    let mut data = vec![0; 8];
    data.extend_from_slice(&SETUP_RNG_SEED.to_le_bytes());
    data.extend_from_slice(&(seed.len() as u32).to_le_bytes());
    data.extend_from_slice(&seed);
    ram.write_slice(&data, GuestAddress(layout::RNG_SEED)).map_err(|e| boot("boot parameters", e.to_string()))
}

/// End of the RAM below the hole.
fn low_ram_end(ram: &GuestRam) -> u64 {
    ram.iter()
        .filter(|r| r.start_addr().0 < layout::HOLE)
        .map(|r| r.start_addr().0 + r.len())
        .max()
        .unwrap_or(0)
}

#[cfg(not(windows))]
#[cfg(test)]
mod tests {
    use std::mem::offset_of;

    use linux_loader::loader::bootparam::{boot_e820_entry, boot_params, setup_header};
    use linux_loader::loader::elf::start_info::{hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info};
    use vm_memory::{ByteValued as _, Bytes as _};

    use super::*;

    #[test]
    fn fields_are_where_the_kernels_headers_say() {
        let hdr = offset_of!(boot_params, hdr);
        assert_eq!((size_of::<boot_params>(), size_of::<boot_e820_entry>()), (BOOT_PARAMS_LEN, 20));
        assert_eq!(SetupHeader::NONE.bytes(), (hdr, setup_header::default().as_slice()));
        for (ours, theirs) in [
            (field::EXT_RAMDISK_IMAGE, offset_of!(boot_params, ext_ramdisk_image)),
            (field::EXT_RAMDISK_SIZE, offset_of!(boot_params, ext_ramdisk_size)),
            (field::E820_ENTRIES, offset_of!(boot_params, e820_entries)),
            (field::E820_TABLE, offset_of!(boot_params, e820_table)),
            (field::BOOT_FLAG, hdr + offset_of!(setup_header, boot_flag)),
            (field::HEADER, hdr + offset_of!(setup_header, header)),
            (field::TYPE_OF_LOADER, hdr + offset_of!(setup_header, type_of_loader)),
            (field::RAMDISK_IMAGE, hdr + offset_of!(setup_header, ramdisk_image)),
            (field::RAMDISK_SIZE, hdr + offset_of!(setup_header, ramdisk_size)),
            (field::CMD_LINE_PTR, hdr + offset_of!(setup_header, cmd_line_ptr)),
            (field::INITRD_ADDR_MAX, hdr + offset_of!(setup_header, initrd_addr_max)),
            (field::KERNEL_ALIGNMENT, hdr + offset_of!(setup_header, kernel_alignment)),
            (field::XLOADFLAGS, hdr + offset_of!(setup_header, xloadflags)),
            (field::CMDLINE_SIZE, hdr + offset_of!(setup_header, cmdline_size)),
            (field::SETUP_DATA, hdr + offset_of!(setup_header, setup_data)),
            (field::PREF_ADDRESS, hdr + offset_of!(setup_header, pref_address)),
            (field::INIT_SIZE, hdr + offset_of!(setup_header, init_size)),
        ] {
            assert_eq!(ours, theirs);
        }
    }

    #[test]
    fn the_start_info_is_that_of_xen() {
        let mem = crate::memory::anonymous(64).unwrap();
        write_start_info(&mem, Some(Initramfs { addr: 0x20_0000, len: 0x1234 })).unwrap();
        let info: hvm_start_info = mem.read_obj(GuestAddress(layout::PVH_INFO)).unwrap();
        let map = memory_map(&mem);
        let expected = hvm_start_info {
            magic: PVH_MAGIC,
            version: 1,
            nr_modules: 1,
            modlist_paddr: layout::PVH_INFO + 0x100,
            cmdline_paddr: layout::CMDLINE,
            memmap_paddr: layout::PVH_INFO + 0x200,
            memmap_entries: map.len() as u32,
            ..Default::default()
        };
        assert_eq!(info, expected);
        let module: hvm_modlist_entry = mem.read_obj(GuestAddress(info.modlist_paddr)).unwrap();
        assert_eq!(module, hvm_modlist_entry { paddr: 0x20_0000, size: 0x1234, ..Default::default() });
        for (index, (addr, size, type_)) in map.into_iter().enumerate() {
            let at = GuestAddress(info.memmap_paddr + 24 * index as u64);
            let entry: hvm_memmap_table_entry = mem.read_obj(at).unwrap();
            assert_eq!(entry, hvm_memmap_table_entry { addr, size, type_, reserved: 0 });
        }
    }
}
