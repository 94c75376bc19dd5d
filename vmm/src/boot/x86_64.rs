//! x86_64: ELF kernels by PVH or by the 64-bit Linux protocol, bzImages by the latter.
//!
//! References: `Documentation/arch/x86/boot.rst` ("64-bit boot protocol") and the PVH start info of Xen.

use std::fs::File;
use std::io::{Read, Seek};

use linux_loader::loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use linux_loader::loader::elf::start_info::{hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info};
use linux_loader::loader::{BzImage, Elf, KernelLoader, PvhBootCapability};
use servin_devices::mem::GuestRam;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use super::{Initramfs, Plan, Protocol, boot, load_initramfs, low_ram_end, mptable, open};
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
const XLF_KERNEL_64: u16 = 1;
/// Where it is, behind the 32-bit one.
const ENTRY_64: u64 = 0x200;
/// `SETUP_RNG_SEED`.
const SETUP_RNG_SEED: u32 = 9;

/// Types of ranges in the memory map, the same in e820 and PVH.
const RAM: u32 = 1;
const RESERVED: u32 = 2;

/// A kernel in RAM.
struct Kernel {
    /// First instruction of the 64-bit protocol.
    entry_64: Option<u64>,
    /// First instruction of PVH.
    entry_pvh: Option<u64>,
    /// The end of everything that the kernel occupies before it looks at the memory map.
    end: u64,
    /// Of a bzImage.
    header: Option<setup_header>,
}

pub(super) fn load(plan: &Plan<'_>) -> Result<Entry, Error> {
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
    let low = Some(GuestAddress(KERNEL_MIN));
    if magic == *b"\x7fELF" {
        let loaded = Elf::load(ram, None, &mut file, low).map_err(|e| failed(&e))?;
        let entry_pvh = match loaded.pvh_boot_cap {
            PvhBootCapability::PvhEntryPresent(at) => Some(at.0),
            _ => None,
        };
        return Ok(Kernel {
            entry_64: Some(loaded.kernel_load.0),
            entry_pvh,
            end: loaded.kernel_end,
            header: None,
        });
    }
    let loaded = BzImage::load(ram, None, &mut file, low)
        .map_err(|e| failed(&format!("neither an ELF kernel for x86_64 nor a bzImage ({e})")))?;
    let header = loaded.setup_header.ok_or_else(|| failed(&"no setup header"))?;
    let has_64 = header.xloadflags & XLF_KERNEL_64 != 0;
    let unpacked = header.pref_address.saturating_add(u64::from(header.init_size));
    let end = loaded.kernel_end.max(unpacked);
    if end > low_ram_end(ram) {
        return Err(failed(&format!(
            "it needs {} MiB of memory to unpack itself",
            end.div_ceil(layout::MIB)
        )));
    }
    Ok(Kernel {
        entry_64: has_64.then_some(loaded.kernel_load.0 + ENTRY_64),
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
            let max = u64::from(header.initrd_addr_max);
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
    let mut info = hvm_start_info {
        magic: PVH_MAGIC,
        version: 1,
        cmdline_paddr: layout::CMDLINE,
        memmap_paddr: memory,
        memmap_entries: u32::try_from(map.len()).unwrap_or(0),
        ..Default::default()
    };
    if let Some(Initramfs { addr, len }) = initramfs {
        info.nr_modules = 1;
        info.modlist_paddr = modules;
        let module = hvm_modlist_entry { paddr: addr, size: len, ..Default::default() };
        ram.write_obj(module, GuestAddress(modules))?;
    }
    for (&(addr, size, type_), at) in map.iter().zip((memory..).step_by(size_of::<hvm_memmap_table_entry>()))
    {
        ram.write_obj(hvm_memmap_table_entry { addr, size, type_, reserved: 0 }, GuestAddress(at))?;
    }
    ram.write_obj(info, GuestAddress(layout::PVH_INFO))
}

fn write_boot_params(
    ram: &GuestRam,
    kernel: &Kernel,
    initramfs: Option<Initramfs>,
    cmdline_len: usize,
) -> Result<(), Error> {
    let failed = |error: vm_memory::GuestMemoryError| boot("boot parameters", error.to_string());
    let header =
        kernel.header.unwrap_or_else(|| setup_header { kernel_alignment: 0x20_0000, ..Default::default() });
    let mut params = boot_params { hdr: header, ..Default::default() };
    params.hdr.boot_flag = BOOT_FLAG;
    params.hdr.header = HEADER_MAGIC;
    params.hdr.type_of_loader = LOADER_OTHER;
    params.hdr.cmd_line_ptr = layout::CMDLINE as u32;
    params.hdr.cmdline_size = u32::try_from(cmdline_len).unwrap_or(u32::MAX);
    if let Some(Initramfs { addr, len }) = initramfs {
        let parts = |value: u64| (value as u32, (value >> 32) as u32);
        (params.hdr.ramdisk_image, params.ext_ramdisk_image) = parts(addr);
        (params.hdr.ramdisk_size, params.ext_ramdisk_size) = parts(len);
    }
    params.hdr.setup_data = layout::RNG_SEED;
    write_rng_seed(ram)?;
    let map = memory_map(ram);
    for (entry, &(addr, size, type_)) in params.e820_table.iter_mut().zip(&map) {
        *entry = boot_e820_entry { addr, size, r#type: type_ };
    }
    params.e820_entries = u8::try_from(map.len()).unwrap_or(0);
    ram.write_obj(params, GuestAddress(layout::BOOT_PARAMS)).map_err(failed)
}

/// `struct setup_data` with 32 random bytes, which the kernel credits and erases.
fn write_rng_seed(ram: &GuestRam) -> Result<(), Error> {
    let mut seed = [0; 32];
    rustix::rand::getrandom(&mut seed, rustix::rand::GetRandomFlags::empty())
        .map_err(|e| Error::Host { doing: "taking random bytes for the guest", source: e.into() })?;
    let mut data = vec![0; 8];
    data.extend_from_slice(&SETUP_RNG_SEED.to_le_bytes());
    data.extend_from_slice(&(seed.len() as u32).to_le_bytes());
    data.extend_from_slice(&seed);
    ram.write_slice(&data, GuestAddress(layout::RNG_SEED)).map_err(|e| boot("boot parameters", e.to_string()))
}
