//! On the `linux-loader` crate.

use std::fs::File;

use linux_loader::loader::{BzImage, Elf, KernelLoader as _, PvhBootCapability};
use servin_devices::mem::GuestRam;
use vm_memory::{ByteValued as _, GuestAddress};

use super::{Loaded, SetupHeader};

/// Loads an ELF kernel that begins at `lowest` or above.
pub(in crate::boot::x86_64) fn elf(ram: &GuestRam, file: &mut File, lowest: u64) -> Result<Loaded, String> {
    let loaded = Elf::load(ram, None, file, Some(GuestAddress(lowest))).map_err(|e| e.to_string())?;
    let pvh = match loaded.pvh_boot_cap {
        PvhBootCapability::PvhEntryPresent(at) => Some(at.0),
        _ => None,
    };
    Ok(Loaded { start: loaded.kernel_load.0, pvh, end: loaded.kernel_end, header: None })
}

/// Loads a bzImage that begins at `lowest` or above.
pub(in crate::boot::x86_64) fn bzimage(
    ram: &GuestRam,
    file: &mut File,
    lowest: u64,
) -> Result<Loaded, String> {
    let loaded = BzImage::load(ram, None, file, Some(GuestAddress(lowest))).map_err(|e| e.to_string())?;
    let header = loaded.setup_header.ok_or("no setup header")?;
    let bytes = header.as_slice().try_into().map_err(|_| "a setup header of another size")?;
    Ok(Loaded {
        start: loaded.kernel_load.0,
        pvh: None,
        end: loaded.kernel_end,
        header: Some(SetupHeader(bytes)),
    })
}
