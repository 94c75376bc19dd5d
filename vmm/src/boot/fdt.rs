//! The device tree of an arm64 machine: all that its kernel is told of the hardware (Devicetree Specification 0.4, and
//! the bindings in `Documentation/devicetree/bindings`).

use servin_devices::virtio::mmio::MMIO_LEN;
use vm_fdt::{Error, FdtWriter};

use super::Hardware;
use crate::hv::IrqChip;
use crate::layout::aarch64 as layout;

/// The most that a kernel takes (`Documentation/arch/arm64/booting.rst`).
pub const MAX_LEN: u64 = 2 << 20;

/// Numbers by which nodes name each other.
const GIC: u32 = 1;
const CLOCK: u32 = 2;

/// Kinds of interrupts (`arm,gic-v3.yaml`).
const SPI: u32 = 0;
const PPI: u32 = 1;
const EDGE: u32 = 1;
const LEVEL: u32 = 4;

/// Registers of a serial port, and a page for each of the clock and the port.
const PAGE: u64 = 0x1000;

/// What the tree says beside the hardware.
#[derive(Debug, Clone, Copy)]
pub struct Chosen<'a> {
    /// The kernel's command line.
    pub cmdline: &'a str,
    /// Start and length of the initramfs.
    pub initramfs: Option<(u64, u64)>,
    /// Seed of the kernel's random numbers, which it credits and erases.
    pub rng_seed: &'a [u8],
}

/// Builds the tree of a machine with these regions of RAM and this many vCPUs.
///
/// # Errors
/// The command line holds a NUL. Nothing else can be wrong.
pub fn build(
    hardware: &Hardware,
    ram: &[(u64, u64)],
    cpus: u8,
    chosen: Chosen<'_>,
) -> Result<Vec<u8>, Error> {
    let mut fdt = FdtWriter::new()?;
    let root = fdt.begin_node("")?;
    fdt.property_string("compatible", "linux,dummy-virt")?;
    fdt.property_u32("#address-cells", 2)?;
    fdt.property_u32("#size-cells", 2)?;
    fdt.property_u32("interrupt-parent", GIC)?;
    write_chosen(&mut fdt, hardware, chosen)?;
    for &(start, len) in ram {
        let node = fdt.begin_node(&format!("memory@{start:x}"))?;
        fdt.property_string("device_type", "memory")?;
        fdt.property_array_u64("reg", &[start, len])?;
        fdt.end_node(node)?;
    }
    write_cpus(&mut fdt, cpus)?;
    let node = fdt.begin_node("psci")?;
    fdt.property_string_list("compatible", strings(&["arm,psci-1.0", "arm,psci-0.2"]))?;
    fdt.property_string("method", "hvc")?;
    fdt.end_node(node)?;
    write_gic(&mut fdt, hardware.irqchip, cpus)?;
    write_timer(&mut fdt, hardware.irqchip, cpus)?;
    write_clock(&mut fdt)?;
    if hardware.serial {
        let node = fdt.begin_node(&format!("serial@{:x}", layout::SERIAL))?;
        fdt.property_string("compatible", "ns16550a")?;
        fdt.property_array_u64("reg", &[layout::SERIAL, PAGE])?;
        fdt.property_u32("clock-frequency", 1_843_200)?;
        fdt.property_array_u32("interrupts", &[SPI, layout::SERIAL_GSI, EDGE])?;
        fdt.end_node(node)?;
    }
    for index in 0..hardware.virtio {
        let base = layout::VIRTIO_BASE + index as u64 * layout::VIRTIO_STRIDE;
        let node = fdt.begin_node(&format!("virtio_mmio@{base:x}"))?;
        fdt.property_string("compatible", "virtio,mmio")?;
        fdt.property_array_u64("reg", &[base, MMIO_LEN])?;
        fdt.property_array_u32("interrupts", &[SPI, layout::VIRTIO_GSI + index as u32, EDGE])?;
        fdt.property_null("dma-coherent")?;
        fdt.end_node(node)?;
    }
    fdt.end_node(root)?;
    fdt.finish()
}

fn write_chosen(fdt: &mut FdtWriter, hardware: &Hardware, chosen: Chosen<'_>) -> Result<(), Error> {
    let node = fdt.begin_node("chosen")?;
    fdt.property_string("bootargs", chosen.cmdline)?;
    if let Some((start, len)) = chosen.initramfs {
        fdt.property_u64("linux,initrd-start", start)?;
        fdt.property_u64("linux,initrd-end", start + len)?;
    }
    fdt.property("rng-seed", chosen.rng_seed)?;
    if hardware.serial {
        fdt.property_string("stdout-path", &format!("/serial@{:x}", layout::SERIAL))?;
    }
    fdt.end_node(node)
}

fn write_cpus(fdt: &mut FdtWriter, cpus: u8) -> Result<(), Error> {
    let node = fdt.begin_node("cpus")?;
    fdt.property_u32("#address-cells", 1)?;
    fdt.property_u32("#size-cells", 0)?;
    for index in 0..u32::from(cpus) {
        let cpu = fdt.begin_node(&format!("cpu@{index:x}"))?;
        fdt.property_string("device_type", "cpu")?;
        fdt.property_string("compatible", "arm,armv8")?;
        fdt.property_string("enable-method", "psci")?;
        fdt.property_u32("reg", index)?;
        fdt.end_node(cpu)?;
    }
    fdt.end_node(node)
}

fn write_gic(fdt: &mut FdtWriter, irqchip: IrqChip, cpus: u8) -> Result<(), Error> {
    let node = fdt.begin_node(&format!("interrupt-controller@{:x}", layout::GIC_DISTRIBUTOR))?;
    fdt.property_null("interrupt-controller")?;
    fdt.property_u32("#interrupt-cells", 3)?;
    fdt.property_u32("#address-cells", 2)?;
    fdt.property_u32("#size-cells", 2)?;
    fdt.property_phandle(GIC)?;
    if irqchip == IrqChip::GicV2 {
        fdt.property_string("compatible", "arm,gic-400")?;
        let registers =
            [layout::GIC_DISTRIBUTOR, PAGE, layout::GIC_CPU_INTERFACE, layout::GIC_CPU_INTERFACE_LEN];
        fdt.property_array_u64("reg", &registers)?;
    } else {
        fdt.property_string("compatible", "arm,gic-v3")?;
        let registers = [
            layout::GIC_DISTRIBUTOR,
            layout::GIC_DISTRIBUTOR_LEN,
            layout::GIC_REDISTRIBUTORS,
            layout::GIC_REDISTRIBUTOR_LEN * u64::from(cpus),
        ];
        fdt.property_array_u64("reg", &registers)?;
    }
    fdt.end_node(node)
}

fn write_timer(fdt: &mut FdtWriter, irqchip: IrqChip, cpus: u8) -> Result<(), Error> {
    // A GICv2 is told which vCPUs a private interrupt goes to.
    let to = if irqchip == IrqChip::GicV2 { ((1 << u32::from(cpus)) - 1) << 8 } else { 0 };
    let node = fdt.begin_node("timer")?;
    fdt.property_string("compatible", "arm,armv8-timer")?;
    fdt.property_null("always-on")?;
    // Secure, non-secure, virtual, hypervisor; a guest has and takes the third.
    let interrupts = [13, 14, layout::VIRTUAL_TIMER_PPI, 10].map(|number| [PPI, number, LEVEL | to]);
    fdt.property_array_u32("interrupts", interrupts.as_flattened())?;
    fdt.end_node(node)
}

/// The real-time clock, and the clock that drives it, without which no driver of its kind begins.
fn write_clock(fdt: &mut FdtWriter) -> Result<(), Error> {
    let node = fdt.begin_node("apb-pclk")?;
    fdt.property_string("compatible", "fixed-clock")?;
    fdt.property_u32("#clock-cells", 0)?;
    fdt.property_u32("clock-frequency", 24_000_000)?;
    fdt.property_phandle(CLOCK)?;
    fdt.end_node(node)?;
    let node = fdt.begin_node(&format!("rtc@{:x}", layout::RTC))?;
    fdt.property_string_list("compatible", strings(&["arm,pl031", "arm,primecell"]))?;
    fdt.property_array_u64("reg", &[layout::RTC, PAGE])?;
    fdt.property_array_u32("interrupts", &[SPI, layout::RTC_GSI, LEVEL])?;
    fdt.property_u32("clocks", CLOCK)?;
    fdt.property_string("clock-names", "apb_pclk")?;
    fdt.end_node(node)
}

fn strings(of: &[&str]) -> Vec<String> {
    of.iter().map(|&text| text.to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every property as `path/name` with its value, read back from the flattened form (Devicetree Specification, 5.4).
    fn read(fdt: &[u8]) -> Vec<(String, Vec<u8>)> {
        let word = |at: usize| u32::from_be_bytes(fdt[at..at + 4].try_into().unwrap());
        assert_eq!((word(0), word(4) as usize), (0xd00d_feed, fdt.len()));
        let (mut at, names) = (word(8) as usize, word(12) as usize);
        let text = |at: usize| {
            let len = fdt[at..].iter().position(|&byte| byte == 0).unwrap();
            String::from_utf8(fdt[at..at + len].to_vec()).unwrap()
        };
        let (mut path, mut found) = (Vec::<String>::new(), Vec::new());
        loop {
            match word(at) {
                1 => {
                    path.push(text(at + 4));
                    at += (4 + path.last().unwrap().len() + 1).next_multiple_of(4);
                }
                2 => {
                    path.pop();
                    at += 4;
                }
                3 => {
                    let (len, name) = (word(at + 4) as usize, text(names + word(at + 8) as usize));
                    found.push((format!("{}/{name}", path.join("/")), fdt[at + 12..at + 12 + len].to_vec()));
                    at += 12 + len.next_multiple_of(4);
                }
                9 => return found,
                token => panic!("token {token}"),
            }
        }
    }

    fn tree(irqchip: IrqChip) -> impl Fn(&str) -> Option<Vec<u8>> {
        let hardware = Hardware { irqchip, virtio: 2, serial: true };
        let chosen = Chosen { cmdline: "quiet", initramfs: Some((0x4200_0000, 0x300)), rng_seed: &[7; 32] };
        let all = read(&build(&hardware, &[(layout::RAM, 64 << 20)], 2, chosen).unwrap());
        move |path| all.iter().find(|(name, _)| name == path).map(|(_, value)| value.clone())
    }

    fn words(of: &[u32]) -> Option<Vec<u8>> {
        Some(of.iter().flat_map(|word| word.to_be_bytes()).collect())
    }

    #[test]
    fn the_tree_names_memory_cpus_devices_and_what_the_kernel_is_told() {
        let get = tree(IrqChip::GicV3);
        assert_eq!(get("/chosen/bootargs").unwrap(), b"quiet\0");
        assert_eq!(get("/chosen/linux,initrd-end"), words(&[0, 0x4200_0300]));
        assert_eq!(get("/chosen/rng-seed"), Some(vec![7; 32]));
        assert_eq!(get("/memory@40000000/reg"), words(&[0, 0x4000_0000, 0, 64 << 20]));
        assert_eq!(get("/cpus/cpu@1/reg"), words(&[1]));
        assert_eq!(get("/cpus/cpu@2/reg"), None);
        assert_eq!(get("/psci/method").unwrap(), b"hvc\0");
        assert_eq!(get("/virtio_mmio@a004000/interrupts"), words(&[0, 9, 1]));
        assert_eq!(get("/virtio_mmio@a008000/reg"), None);
        assert_eq!(get("/serial@9000000/compatible").unwrap(), b"ns16550a\0");
    }

    #[test]
    fn each_interrupt_controller_has_its_own_registers_and_masks() {
        let reg = "/interrupt-controller@8000000/reg";
        let get = tree(IrqChip::GicV3);
        assert_eq!(get(reg), words(&[0, 0x800_0000, 0, 0x1_0000, 0, 0x810_0000, 0, 0x4_0000]));
        assert_eq!(get("/timer/interrupts").unwrap()[24..36], words(&[1, 11, 4]).unwrap());
        let get = tree(IrqChip::GicV2);
        assert_eq!(get(reg), words(&[0, 0x800_0000, 0, 0x1000, 0, 0x801_0000, 0, 0x2000]));
        assert_eq!(get("/timer/interrupts").unwrap()[24..36], words(&[1, 11, 0x304]).unwrap());
    }
}
