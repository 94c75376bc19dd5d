//! The controller driven as Linux drives it (`drivers/irqchip/irq-gic-v3.c`).

use super::super::esr::Register;
use super::*;

const IAR1: Register = Register::new(3, 0, 12, 12, 0);
const EOIR1: Register = Register::new(3, 0, 12, 12, 1);
const HPPIR1: Register = Register::new(3, 0, 12, 12, 2);
const BPR1: Register = Register::new(3, 0, 12, 12, 3);
const CTLR: Register = Register::new(3, 0, 12, 12, 4);
const GRPEN1: Register = Register::new(3, 0, 12, 12, 7);
const PMR: Register = Register::new(3, 0, 4, 6, 0);
const DIR: Register = Register::new(3, 0, 12, 11, 1);
const RPR: Register = Register::new(3, 0, 12, 11, 3);
const SGI1R: Register = Register::new(3, 0, 12, 11, 5);
const IRQ: Signal = Signal { irq: true, fiq: false };
const NONE: Signal = Signal { irq: false, fiq: false };

fn put(gic: &mut Gic, frame: Frame, offset: u64, value: u32) {
    gic.write(frame, offset, &value.to_le_bytes());
}

fn get(gic: &Gic, frame: Frame, offset: u64) -> u32 {
    let mut data = [0; 4];
    gic.read(frame, offset, &mut data);
    u32::from_le_bytes(data)
}

/// Everything in group 1 and enabled at priority 0xa0, as Linux sets it up.
fn linux(cpus: u8) -> Gic {
    let mut gic = Gic::new(cpus, 64);
    put(&mut gic, Frame::Distributor, 0, 0x12);
    for offset in (0x400 + 32..0x400 + 96).step_by(4) {
        put(&mut gic, Frame::Distributor, offset, 0xa0a0_a0a0);
    }
    for bank in [4, 8] {
        put(&mut gic, Frame::Distributor, 0x80 + bank, u32::MAX);
        put(&mut gic, Frame::Distributor, 0x100 + bank, u32::MAX);
    }
    for cpu in 0..cpus {
        let frame = Frame::Redistributor(cpu);
        put(&mut gic, frame, 0x14, 0);
        put(&mut gic, frame, 0x1_0080, u32::MAX);
        put(&mut gic, frame, 0x1_0100, u32::MAX);
        for offset in (0x1_0400..0x1_0420).step_by(4) {
            put(&mut gic, frame, offset, 0xa0a0_a0a0);
        }
        assert!(gic.write_register(cpu, PMR, 0xf0));
        assert!(gic.write_register(cpu, GRPEN1, 1));
    }
    gic
}

fn take(gic: &mut Gic, cpu: u8) -> u64 {
    gic.read_register(cpu, IAR1).unwrap()
}

fn end(gic: &mut Gic, cpu: u8, intid: u64) {
    assert!(gic.write_register(cpu, EOIR1, intid));
}

#[test]
fn an_edge_is_taken_once_and_a_second_one_waits_for_the_end() {
    let mut gic = linux(1);
    put(&mut gic, Frame::Distributor, 0xc08, u32::MAX);
    assert_eq!(gic.signal(0), NONE);
    gic.trigger(5);
    assert_eq!(gic.signal(0), IRQ);
    assert_eq!(gic.read_register(0, HPPIR1), Some(37));
    assert_eq!(take(&mut gic, 0), 37);
    assert_eq!(gic.read_register(0, RPR), Some(0xa0));
    assert_eq!((gic.signal(0), take(&mut gic, 0)), (NONE, 1023));
    gic.trigger(5);
    assert_eq!(gic.signal(0), NONE, "it is active");
    end(&mut gic, 0, 37);
    assert_eq!((gic.signal(0), gic.read_register(0, RPR)), (IRQ, Some(0xff)));
    assert_eq!(take(&mut gic, 0), 37);
    end(&mut gic, 0, 37);
    assert_eq!(gic.signal(0), NONE);
}

#[test]
fn a_level_stays_pending_until_it_falls() {
    let mut gic = linux(2);
    gic.set_level(1, 27, true);
    assert_eq!((gic.signal(0), gic.signal(1)), (NONE, IRQ));
    assert_eq!(take(&mut gic, 1), 27);
    end(&mut gic, 1, 27);
    assert_eq!(gic.signal(1), IRQ);
    assert_eq!(take(&mut gic, 1), 27);
    gic.set_level(1, 27, false);
    end(&mut gic, 1, 27);
    assert_eq!(gic.signal(1), NONE);
}

#[test]
fn a_higher_priority_preempts_and_an_equal_one_does_not() {
    let mut gic = linux(1);
    gic.write(Frame::Distributor, 0x400 + 40, &[0x20]);
    gic.trigger(0);
    assert_eq!(take(&mut gic, 0), 32);
    gic.trigger(1);
    assert_eq!(gic.signal(0), NONE);
    gic.trigger(8);
    assert_eq!((gic.signal(0), take(&mut gic, 0)), (IRQ, 40));
    assert_eq!(gic.read_register(0, RPR), Some(0x20));
    end(&mut gic, 0, 40);
    assert_eq!((gic.read_register(0, RPR), gic.signal(0)), (Some(0xa0), NONE));
    end(&mut gic, 0, 32);
    assert_eq!(take(&mut gic, 0), 33);
    // Within one group of priorities nothing preempts.
    end(&mut gic, 0, 33);
    assert!(gic.write_register(0, BPR1, 7));
    gic.trigger(0);
    assert_eq!(take(&mut gic, 0), 32);
    gic.write(Frame::Distributor, 0x400 + 40, &[0x90]);
    gic.trigger(8);
    assert_eq!(gic.signal(0), NONE);
}

#[test]
fn the_mask_and_the_enables_hold_interrupts_back() {
    let mut gic = linux(1);
    gic.trigger(3);
    assert!(gic.write_register(0, PMR, 0xa0));
    assert_eq!(gic.signal(0), NONE);
    assert!(gic.write_register(0, PMR, 0xf8));
    assert_eq!(gic.signal(0), IRQ);
    put(&mut gic, Frame::Distributor, 0x184, 1 << 3);
    assert_eq!(gic.signal(0), NONE);
    put(&mut gic, Frame::Distributor, 0x104, 1 << 3);
    assert!(gic.write_register(0, GRPEN1, 0));
    assert_eq!(gic.signal(0), NONE);
    assert!(gic.write_register(0, GRPEN1, 1));
    put(&mut gic, Frame::Distributor, 0, 0);
    assert_eq!(gic.signal(0), NONE);
}

#[test]
fn software_interrupts_go_to_those_that_are_named() {
    let mut gic = linux(3);
    // SGI 2 to CPUs 0 and 2.
    assert!(gic.write_register(1, SGI1R, 2 << 24 | 0b101));
    assert_eq!([0, 1, 2].map(|cpu| gic.signal(cpu)), [IRQ, NONE, IRQ]);
    assert_eq!((take(&mut gic, 0), take(&mut gic, 2)), (2, 2));
    // SGI 3 to all others.
    assert!(gic.write_register(1, SGI1R, 3 << 24 | 1 << 40));
    end(&mut gic, 0, 2);
    end(&mut gic, 2, 2);
    assert_eq!([0, 1, 2].map(|cpu| gic.signal(cpu)), [IRQ, NONE, IRQ]);
    // To a cluster, and to CPUs, that are not there.
    let before = gic.clone();
    for value in [1 << 16 | 7, 1 << 32 | 7, 1 << 48 | 7, 1 << 44 | 7, 0xfff8] {
        assert!(gic.write_register(0, SGI1R, value));
    }
    assert_eq!(gic, before);
}

#[test]
fn a_shared_interrupt_goes_where_it_is_routed() {
    let mut gic = linux(2);
    gic.write(Frame::Distributor, 0x6000 + 8 * 37, &1_u64.to_le_bytes());
    gic.trigger(5);
    assert_eq!((gic.signal(0), gic.signal(1)), (NONE, IRQ));
    let mut route = [0; 8];
    gic.read(Frame::Distributor, 0x6000 + 8 * 37, &mut route);
    assert_eq!(u64::from_le_bytes(route), 1);
    // To a CPU that is not there: nobody gets it, until it is routed anew.
    gic.write(Frame::Distributor, 0x6000 + 8 * 37, &9_u64.to_le_bytes());
    assert_eq!((gic.signal(0), gic.signal(1)), (NONE, NONE));
    gic.write(Frame::Distributor, 0x6000 + 8 * 37, &0_u64.to_le_bytes());
    assert_eq!(gic.signal(0), IRQ);
}

#[test]
fn with_a_split_end_the_interrupt_stays_active_until_it_is_deactivated() {
    let mut gic = linux(1);
    assert!(gic.write_register(0, CTLR, 2));
    assert_eq!(gic.read_register(0, CTLR), Some(0x402));
    gic.trigger(5);
    assert_eq!(take(&mut gic, 0), 37);
    end(&mut gic, 0, 37);
    gic.trigger(5);
    assert_eq!((gic.read_register(0, RPR), gic.signal(0)), (Some(0xff), NONE));
    assert!(gic.write_register(0, DIR, 37));
    assert_eq!(gic.signal(0), IRQ);
}

#[test]
fn group_0_is_a_fast_interrupt() {
    let mut gic = linux(1);
    put(&mut gic, Frame::Distributor, 0, 3);
    put(&mut gic, Frame::Distributor, 0x84, !(1 << 5));
    gic.trigger(5);
    assert_eq!(gic.signal(0), NONE, "ICC_IGRPEN0 is off");
    assert!(gic.write_register(0, Register::new(3, 0, 12, 12, 6), 1));
    assert_eq!(gic.signal(0), Signal { irq: false, fiq: true });
    assert_eq!(take(&mut gic, 0), 1023);
    assert_eq!(gic.read_register(0, Register::new(3, 0, 12, 8, 0)), Some(37));
    assert!(gic.write_register(0, Register::new(3, 0, 12, 8, 1), 37));
    assert_eq!(gic.read_register(0, RPR), Some(0xff));
}

#[test]
fn identification_is_what_a_driver_probes_for() {
    let mut gic = linux(2);
    assert_eq!(get(&gic, Frame::Distributor, 0xffe8) & 0xf0, 0x30);
    assert_eq!(get(&gic, Frame::Distributor, 4) & 0x1f, 2, "96 interrupts");
    assert_eq!(get(&gic, Frame::Distributor, 0) & 0x50, 0x50);
    let mut kind = [0; 8];
    gic.read(Frame::Redistributor(1), 8, &mut kind);
    assert_eq!(u64::from_le_bytes(kind), 1 << 32 | 1 << 8 | 1 << 4);
    gic.read(Frame::Redistributor(0), 8, &mut kind);
    assert_eq!(u64::from_le_bytes(kind), 0);
    assert_eq!(get(&gic, Frame::Redistributor(0), 0x1_0c00), 0xaaaa_aaaa);
    put(&mut gic, Frame::Redistributor(0), 0x14, 2);
    assert_eq!(get(&gic, Frame::Redistributor(0), 0x14), 6);
    put(&mut gic, Frame::Redistributor(0), 0x14, 0);
    assert_eq!(get(&gic, Frame::Redistributor(0), 0x14), 0);
    assert_eq!(gic.read_register(0, Register::new(3, 0, 12, 12, 5)), Some(7));
}

#[test]
fn what_is_not_there_reads_zero_and_keeps_nothing() {
    let mut gic = linux(1);
    let before = gic.clone();
    let away = [0x0, 0x84 + 8, 0x400, 0x41f, 0x7fc, 0xc00, 0xfff0, 0x1_0000, u64::MAX];
    for offset in away.into_iter().skip(1) {
        put(&mut gic, Frame::Distributor, offset, u32::MAX);
        gic.write(Frame::Distributor, offset, &[0xff]);
        gic.write(Frame::Distributor, offset, &[0xff; 2]);
    }
    for cpu in [1, 255] {
        for offset in away {
            put(&mut gic, Frame::Redistributor(cpu), offset, u32::MAX);
            gic.read(Frame::Redistributor(cpu), offset, &mut [0; 8]);
        }
        assert_eq!(gic.read_register(cpu, IAR1), None);
        assert!(!gic.write_register(cpu, PMR, 0));
    }
    assert_eq!(gic, before);
    assert_eq!(gic.read_register(0, Register::new(3, 0, 1, 0, 0)), None);
    assert_eq!(gic.read_register(0, EOIR1), None);
    assert!(!gic.write_register(0, IAR1, 0));
    // Ends of what was never taken.
    for intid in [5, 40, 1019, 1020, 1023, 5000, u64::MAX] {
        end(&mut gic, 0, intid);
    }
    gic.trigger(64);
    gic.trigger(u32::MAX);
    gic.set_level(0, 32, true);
    gic.set_level(9, 27, true);
    assert_eq!(gic.signal(9), NONE);
}

#[test]
fn a_controller_in_the_middle_of_an_interrupt_survives_into_another_one() {
    let mut gic = linux(2);
    gic.trigger(5);
    assert_eq!(take(&mut gic, 0), 37);
    gic.trigger(6);
    let bytes = servin_devices::state::encode(&gic).unwrap();
    let saved: Gic = servin_devices::state::decode(&bytes).unwrap();
    let mut other = Gic::new(2, 64);
    other.restore(&saved).unwrap();
    assert_eq!(other, gic);
    end(&mut other, 0, 37);
    assert_eq!(take(&mut other, 0), 38);
    assert!(Gic::new(1, 64).restore(&saved).is_err());
    assert!(Gic::new(2, 128).restore(&saved).is_err());
    let mut damaged = saved.clone();
    damaged.cpus[1].private.pop();
    assert!(Gic::new(2, 64).restore(&damaged).is_err());
}
