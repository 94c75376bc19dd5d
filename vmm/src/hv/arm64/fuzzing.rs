//! One fuzz input for the controller and the decoders of this folder, with the promises that must hold.

use super::esr::{self, Register};
use super::gic::{FIRST_SPI, Frame, Gic, SPURIOUS};
use super::psci::Power;

/// Drives a controller of two vCPUs by `data`, and decodes what stands in it as syndromes and calls.
///
/// # Panics
/// A rule is broken.
pub fn fuzz(data: &[u8]) {
    let mut gic = Gic::new(2, 40);
    let mut power = Power::new(2);
    for step in data.chunks_exact(12) {
        let word =
            |at: usize| step.iter().skip(at).take(4).rev().fold(0_u32, |word, b| word << 8 | u32::from(*b));
        let (what, offset, value) = (word(0), word(4), word(8));
        let cpu = (what >> 8) as u8 & 1;
        let frame = if what & 0x200 == 0 { Frame::Distributor } else { Frame::Redistributor(cpu) };
        let register = Register {
            op0: 3,
            op1: 0,
            crn: if offset & 0x80 == 0 { 12 } else { 4 },
            crm: if offset & 0x40 == 0 { 11 + (offset >> 3 & 1) as u8 } else { 6 + (offset >> 3 & 3) as u8 },
            op2: offset as u8 & 7,
        };
        let bytes = (u64::from(value) << 32 | u64::from(value)).to_le_bytes();
        let width = [1, 2, 4, 8][(what >> 4) as usize & 3];
        let offset = u64::from(offset & 0x1_ffff);
        match what & 7 {
            0 => gic.write(frame, offset, &bytes[..width]),
            1 => gic.read(frame, offset, &mut [0; 8][..width]),
            2 => {
                let _ = gic.write_register(cpu, register, u64::from(value) << (what >> 16 & 31));
            }
            3 => {
                let signalled = gic.signal(cpu);
                if let Some(taken) = gic.read_register(cpu, register)
                    && register == Register::new(3, 0, 12, 12, 0)
                {
                    assert_eq!(
                        taken != u64::from(SPURIOUS),
                        signalled.irq,
                        "an IRQ is one that can be taken"
                    );
                    assert!(taken < u64::from(FIRST_SPI) + 64 || taken == u64::from(SPURIOUS));
                }
            }
            4 => gic.trigger(value),
            5 => gic.set_level(cpu, value & 63, value & 64 != 0),
            6 => {
                let mut other = Gic::new(2, 40);
                assert!(other.restore(&gic).is_ok(), "its own state fits");
            }
            _ => {
                let _ = esr::decode(u64::from(value) | u64::from(word(4)) << 32);
                let _ = power.call(cpu, [value.into(), u64::from(word(4)), 0, 1]);
            }
        }
    }
}
