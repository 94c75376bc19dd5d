//! arm64: an uncompressed `Image`, with or without an EFI stub, and a device tree
//! (`Documentation/arch/arm64/booting.rst`).

use std::fs::File;
use std::io::{Read, Seek};

use linux_loader::loader::{KernelLoader, PE};
use servin_devices::mem::GuestRam;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use super::{Plan, Protocol, boot, fdt, load_initramfs, open, random_seed};
use crate::error::Error;
use crate::hv::{Arm64Entry, Entry};
use crate::layout::{self, GRANULE, MIB};

/// Where the header says how much memory the kernel needs, and its magic number.
const IMAGE_SIZE: usize = 16;
const MAGIC: usize = 56;
const HEADER_LEN: usize = 64;

/// Loads everything; returns where the first vCPU begins.
pub(crate) fn load(plan: &Plan<'_>) -> Result<Entry, Error> {
    if plan.protocol != Protocol::Auto {
        return Err(Error::Unsupported {
            what: "a boot protocol of x86",
            why: "this machine is arm64, whose kernels know one protocol only".to_owned(),
        });
    }
    let ram = &**plan.mem;
    let regions: Vec<_> = ram.iter().map(|region| (region.start_addr().0, region.len())).collect();
    let end = regions.first().map_or(layout::RAM, |(start, len)| start + len);
    let kernel = load_kernel(ram, open("kernel", plan.kernel)?, end, plan)?;
    // Behind each other, where a huge page is paid for already; the tree last, for it tells where the rest is.
    let place = |from: u64, len: u64| {
        let at = from.next_multiple_of(GRANULE);
        (at.checked_add(len)? <= end).then_some(at)
    };
    let initramfs = load_initramfs(ram, plan.initramfs, |len| place(kernel.end, len))?;
    let behind = initramfs.map_or(kernel.end, |initramfs| initramfs.addr + initramfs.len);
    let chosen = fdt::Chosen {
        cmdline: plan.cmdline,
        initramfs: initramfs.map(|initramfs| (initramfs.addr, initramfs.len)),
        rng_seed: &random_seed()?,
    };
    let tree = fdt::build(&plan.hardware, &regions, plan.cpus, chosen)
        .map_err(|e| boot("device tree", e.to_string()))?;
    let len = tree.len() as u64;
    let at = place(behind, len).filter(|_| len <= fdt::MAX_LEN).ok_or_else(|| {
        boot("device tree", "it does not fit behind kernel and initramfs; give the VM more memory")
    })?;
    ram.write_slice(&tree, GuestAddress(at)).map_err(|e| boot("device tree", e.to_string()))?;
    Ok(Entry::Arm64(Arm64Entry { pc: kernel.entry, x0: at }))
}

/// A kernel in RAM.
struct Kernel {
    /// Its first instruction.
    entry: u64,
    /// The end of everything that it occupies.
    end: u64,
}

fn load_kernel(ram: &GuestRam, mut file: File, end: u64, plan: &Plan<'_>) -> Result<Kernel, Error> {
    let path = plan.kernel.display();
    let failed = |error: &dyn std::fmt::Display| boot("kernel", format!("{path}: {error}"));
    let mut header = [0; HEADER_LEN];
    let read = file.read_exact(&mut header).and_then(|()| file.rewind());
    let image_size = header.get(IMAGE_SIZE..).and_then(|rest| rest.first_chunk()).copied();
    let image_size = u64::from_le_bytes(image_size.unwrap_or_default());
    if read.is_err() || header.get(MAGIC..MAGIC + 4) != Some(b"ARM\x64") {
        return Err(failed(&"not an uncompressed Image for arm64"));
    }
    let loaded = PE::load(ram, Some(GuestAddress(layout::RAM)), &mut file, None).map_err(|e| failed(&e))?;
    // The file ends where the memory begins that the kernel expects to be free for it.
    let occupied = loaded.kernel_load.0.checked_add(image_size).map(|end| end.max(loaded.kernel_end));
    match occupied {
        Some(occupied) if occupied <= end => Ok(Kernel { entry: loaded.kernel_load.0, end: occupied }),
        _ => Err(failed(&format!("it needs {} MiB of memory", image_size.div_ceil(MIB)))),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::boot::{Hardware, Source};
    use crate::hv::IrqChip;
    use crate::memory;

    fn image(size: u64) -> tempfile::NamedTempFile {
        let mut bytes = vec![0; 0x1000];
        bytes[IMAGE_SIZE..][..8].copy_from_slice(&size.to_le_bytes());
        bytes[MAGIC..][..4].copy_from_slice(b"ARM\x64");
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&bytes).unwrap();
        file
    }

    fn try_load(size: u64, protocol: Protocol) -> Result<(Entry, servin_devices::mem::Mem), Error> {
        let (mem, file) = (memory::anonymous(32).unwrap(), image(size));
        let entry = load(&Plan {
            mem: &mem,
            cpus: 1,
            kernel: &file.path().to_owned(),
            initramfs: &[Source::Bytes(b"archive".to_vec())],
            cmdline: "quiet",
            protocol,
            hardware: Hardware { irqchip: IrqChip::GicV3, virtio: 1, serial: false },
        })?;
        Ok((entry, mem))
    }

    #[test]
    fn initramfs_and_tree_lie_behind_all_that_the_kernel_occupies() {
        let (entry, mem) = try_load(4 * MIB + 1, Protocol::Auto).unwrap();
        let initramfs = layout::RAM + 4 * MIB + GRANULE;
        let tree = initramfs + GRANULE;
        assert_eq!(entry, Entry::Arm64(Arm64Entry { pc: layout::RAM, x0: tree }));
        let mut bytes = [0; 7];
        mem.read_slice(&mut bytes, GuestAddress(initramfs)).unwrap();
        assert_eq!(&bytes, b"archive");
        assert_eq!(mem.read_obj::<u32>(GuestAddress(tree)).unwrap(), 0xd00d_feed_u32.to_be());
    }

    #[test]
    fn kernels_that_do_not_fit_and_protocols_of_x86_are_refused() {
        for size in [32 * MIB, u64::MAX] {
            assert!(matches!(try_load(size, Protocol::Auto), Err(Error::Boot { .. })), "{size}");
        }
        assert!(matches!(try_load(MIB, Protocol::Pvh), Err(Error::Unsupported { .. })));
    }
}
