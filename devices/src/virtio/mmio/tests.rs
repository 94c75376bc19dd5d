use std::sync::mpsc;

use virtio_bindings::bindings::virtio_mmio as reg;

use super::*;
use crate::bus::BusDevice as _;
use crate::event::{Ready, Token};
use crate::testing::Rig;
use crate::virtio::Io;

/// Gives every chain back with one byte, tells what happens to it, fails when asked.
struct Probe {
    config: ConfigSpace,
    tell: mpsc::Sender<&'static str>,
    keep: bool,
    fail: bool,
    /// Take one chain at a time; with the first of queue 0 (true) one of queue 1.
    one_each: Option<bool>,
}

impl Probe {
    fn new() -> (Self, mpsc::Receiver<&'static str>) {
        let (tell, told) = mpsc::channel();
        let config = ConfigSpace::new(vec![1, 2, 3, 4, 5]);
        (Self { config, tell, keep: false, fail: false, one_each: None }, told)
    }

    fn tell(&self, what: &'static str) {
        let _ = self.tell.send(what);
    }
}

impl VirtioDevice for Probe {
    fn id(&self) -> u32 {
        42
    }
    fn features(&self) -> u64 {
        0b101
    }
    fn queue_sizes(&self) -> &[u16] {
        &[16, 8]
    }
    fn config(&self) -> ConfigSpace {
        self.config.clone()
    }
    fn start(&mut self, _: u64, _: &mut dyn Io) -> Result<(), Error> {
        self.tell("start");
        Ok(())
    }
    fn on_kick(&mut self, queue: u16, io: &mut dyn Io) -> Result<(), Error> {
        if self.fail {
            return Err(Error::Host {
                doing: "failing on purpose",
                source: std::io::ErrorKind::Other.into(),
            });
        }
        if self.keep {
            if let Some(chain) = io.pop(queue)? {
                io.unpop(queue, chain);
            }
            return Ok(());
        }
        if let Some(first) = self.one_each {
            let other = (first && queue == 0).then_some(1);
            for queue in [Some(queue), other].into_iter().flatten() {
                if let Some(chain) = io.pop(queue)? {
                    io.complete(queue, chain, 0)?;
                    self.one_each = Some(false);
                }
            }
            return Ok(());
        }
        while let Some(chain) = io.pop(queue)? {
            io.complete(queue, chain, 0)?;
        }
        Ok(())
    }
    fn on_host(&mut self, _: Token, _: Ready, _: &mut dyn Io) -> Result<(), Error> {
        Ok(())
    }
    fn on_config_write(&mut self, offset: u64, data: &[u8], io: &mut dyn Io) -> Result<(), Error> {
        let at = usize::try_from(offset).unwrap();
        self.config.update(|bytes| bytes[at] = data[0]);
        io.config_changed();
        Ok(())
    }
    fn stop(&mut self, _: &mut dyn Io) {
        self.tell("stop");
    }
    fn save(&self) -> Result<Vec<u8>, StateError> {
        Ok(vec![self.keep.into()])
    }
    fn restore(&mut self, state: &[u8]) -> Result<(), StateError> {
        self.keep = state == [1];
        self.tell("restore");
        Ok(())
    }
}

fn status_after(rig: &mut Rig, writes: &[u32]) -> u32 {
    for &value in writes {
        rig.write32(reg::VIRTIO_MMIO_STATUS, value);
    }
    rig.status()
}

#[test]
fn the_identity_registers_tell_a_modern_device() {
    let mut rig = Rig::new(Box::new(Probe::new().0));
    let read = [0, 4, 8].map(|offset| rig.read32(offset));
    assert_eq!(read, [0x7472_6976, 2, 42]);
    rig.write32(reg::VIRTIO_MMIO_DEVICE_FEATURES_SEL, 1);
    assert_eq!(rig.read32(reg::VIRTIO_MMIO_DEVICE_FEATURES) & 1, 1, "VERSION_1");
    rig.write32(reg::VIRTIO_MMIO_DEVICE_FEATURES_SEL, 2);
    assert_eq!(rig.read32(reg::VIRTIO_MMIO_DEVICE_FEATURES), 0);
}

#[test]
fn the_status_goes_forward_in_order_and_back_only_to_zero() {
    let mut rig = Rig::new(Box::new(Probe::new().0));
    assert_eq!(status_after(&mut rig, &[4]), 0, "DRIVER_OK first");
    assert_eq!(status_after(&mut rig, &[1, 3]), 3);
    assert_eq!(status_after(&mut rig, &[1]), 3, "a bit taken back");
    assert_eq!(status_after(&mut rig, &[7]), 3, "DRIVER_OK without FEATURES_OK");
    assert_eq!(status_after(&mut rig, &[0]), 0);
    assert_eq!(status_after(&mut rig, &[1, 3, 128 | 3]), 131, "FAILED at any time");
}

#[test]
fn features_that_were_not_offered_or_a_legacy_driver_are_refused() {
    let mut rig = Rig::new(Box::new(Probe::new().0));
    assert_eq!(status_after(&mut rig, &[1, 3, 11]), 3, "no VERSION_1");
    for (select, value) in [(1, 1), (0, 2)] {
        rig.write32(reg::VIRTIO_MMIO_DRIVER_FEATURES_SEL, select);
        rig.write32(reg::VIRTIO_MMIO_DRIVER_FEATURES, value);
    }
    assert_eq!(status_after(&mut rig, &[11]), 3, "bit 1 was not offered");
    rig.write32(reg::VIRTIO_MMIO_DRIVER_FEATURES, 0b100);
    assert_eq!(status_after(&mut rig, &[11]), 11);
    rig.write32(reg::VIRTIO_MMIO_DRIVER_FEATURES, 0);
    assert_eq!(status_after(&mut rig, &[15]), 15, "frozen features cannot be changed to nothing");
}

#[test]
fn queues_are_frozen_once_the_driver_is_ready() {
    let mut rig = Rig::started(Box::new(Probe::new().0));
    rig.write32(reg::VIRTIO_MMIO_QUEUE_SEL, 0);
    rig.write32(reg::VIRTIO_MMIO_QUEUE_READY, 0);
    rig.write32(reg::VIRTIO_MMIO_QUEUE_DESC_LOW, 0xdead_0000);
    assert_eq!(rig.read32(reg::VIRTIO_MMIO_QUEUE_READY), 1);
    assert_eq!(rig.ask(0, &[b"x"], &[]).len, 0);
    rig.write32(reg::VIRTIO_MMIO_QUEUE_SEL, 2);
    assert_eq!(rig.read32(reg::VIRTIO_MMIO_QUEUE_NUM_MAX), 0, "there is no third queue");
    assert_eq!(rig.read32(reg::VIRTIO_MMIO_QUEUE_READY), 0);
}

#[test]
fn queues_outside_of_ram_or_of_odd_sizes_need_a_reset() {
    for (register, value) in [(reg::VIRTIO_MMIO_QUEUE_USED_HIGH, 1), (reg::VIRTIO_MMIO_QUEUE_NUM, 3)] {
        let mut rig = Rig::new(Box::new(Probe::new().0));
        status_after(&mut rig, &[1, 3]);
        rig.write32(reg::VIRTIO_MMIO_DRIVER_FEATURES_SEL, 1);
        rig.write32(reg::VIRTIO_MMIO_DRIVER_FEATURES, 1);
        status_after(&mut rig, &[11]);
        for (register, value) in [
            (reg::VIRTIO_MMIO_QUEUE_NUM, 8),
            (reg::VIRTIO_MMIO_QUEUE_DESC_LOW, 0x1000),
            (reg::VIRTIO_MMIO_QUEUE_AVAIL_LOW, 0x2000),
            (reg::VIRTIO_MMIO_QUEUE_USED_LOW, 0x3000),
            (register, value),
            (reg::VIRTIO_MMIO_QUEUE_READY, 1),
            (reg::VIRTIO_MMIO_STATUS, 15),
        ] {
            rig.write32(register, value);
        }
        assert!(rig.needs_reset(), "{register:#x}");
        assert_eq!(rig.read32(reg::VIRTIO_MMIO_INTERRUPT_STATUS), 2, "told by a configuration interrupt");
        rig.init(u64::MAX);
        assert_eq!(rig.status(), 15, "works again after a reset");
    }
}

#[test]
fn a_reset_stops_the_device_and_it_starts_again() {
    let (probe, told) = Probe::new();
    let mut rig = Rig::threaded(Box::new(probe));
    rig.init(u64::MAX);
    rig.ask(1, &[b"a"], &[]);
    rig.init(u64::MAX);
    rig.ask(1, &[b"b"], &[]);
    drop(rig);
    assert_eq!(told.try_iter().collect::<Vec<_>>(), ["start", "stop", "start", "stop"]);
}

#[test]
fn a_malformed_chain_needs_a_reset_and_the_device_is_quiet_until_then() {
    let mut rig = Rig::started(Box::new(Probe::new().0));
    rig.add_raw(0, &[(u64::MAX - 4, 16, false)]);
    rig.notify(0);
    assert!(rig.needs_reset());
    rig.add(0, &[b"x"], &[]);
    assert!(rig.used(0).is_none());
    rig.init(u64::MAX);
    rig.ask(0, &[b"x"], &[]);
}

#[test]
fn chains_left_in_the_ring_are_neither_lost_nor_spun_on() {
    let (mut probe, _told) = Probe::new();
    probe.keep = true;
    let mut rig = Rig::started(Box::new(probe));
    rig.add(0, &[b"a"], &[]);
    rig.add(0, &[b"b"], &[]);
    assert!(rig.used(0).is_none());
    let saved = rig.transport().save().unwrap();
    let (other, _told) = Probe::new();
    let mut fresh = Rig::new(Box::new(other));
    fresh.transport().restore(&saved).unwrap();
    assert_eq!(fresh.status(), 15);
}

#[test]
fn two_queues_that_filled_meanwhile_are_both_served() {
    let (mut probe, _told) = Probe::new();
    probe.one_each = Some(true);
    let mut rig = Rig::started(Box::new(probe));
    let buffer = rig.buffer(1);
    for queue in [0, 0, 1, 1, 1] {
        rig.add_raw(queue, &[(buffer, 1, false)]);
    }
    // As if the driver had rung for queue 1 before, and now waits.
    rig.notify(0);
    let mut served = |queue| std::iter::from_fn(|| rig.used(queue)).count();
    assert_eq!((served(0), served(1)), (2, 3));
}

#[test]
fn without_event_idx_the_drivers_flag_holds_interrupts_back() {
    let mut rig = Rig::new(Box::new(Probe::new().0));
    rig.init(0);
    rig.ask(0, &[b"x"], &[]);
    let edges = rig.line().edges();
    rig.suppress_interrupts(0, true);
    rig.add(0, &[b"y"], &[]);
    assert_eq!(rig.line().edges(), edges);
    assert!(rig.used(0).is_some());
    rig.suppress_interrupts(0, false);
    rig.add(0, &[b"z"], &[]);
    assert_eq!(rig.line().edges(), edges + 1);
}

#[test]
fn with_event_idx_completions_before_the_drivers_mark_are_silent() {
    let mut rig = Rig::started(Box::new(Probe::new().0));
    rig.add(0, &[b"1"], &[]);
    let edges = rig.line().edges();
    // The driver has not looked at the ring since: its mark is still at the first completion.
    rig.add(0, &[b"2"], &[]);
    rig.add(0, &[b"3"], &[]);
    assert_eq!(rig.line().edges(), edges);
    while rig.used(0).is_some() {}
    rig.add(0, &[b"4"], &[]);
    assert_eq!(rig.line().edges(), edges + 1);
}

#[test]
fn the_configuration_is_read_at_any_width_and_written_through_the_device() {
    let mut rig = Rig::started(Box::new(Probe::new().0));
    let mut bytes = [0; 8];
    rig.read_config(1, &mut bytes);
    assert_eq!(bytes, [2, 3, 4, 5, 0, 0, 0, 0]);
    let generation = rig.read32(reg::VIRTIO_MMIO_CONFIG_GENERATION);
    rig.transport().write(0x101, &[9]).unwrap();
    rig.run();
    rig.read_config(1, &mut bytes[..1]);
    assert_eq!(bytes[0], 9);
    assert_ne!(rig.read32(reg::VIRTIO_MMIO_CONFIG_GENERATION), generation);
    assert_eq!(rig.read32(reg::VIRTIO_MMIO_INTERRUPT_STATUS), 2);
    rig.write32(reg::VIRTIO_MMIO_INTERRUPT_ACK, 2);
    assert_eq!(rig.read32(reg::VIRTIO_MMIO_INTERRUPT_STATUS), 0);
}

#[test]
fn registers_take_whole_words_only() {
    let mut rig = Rig::new(Box::new(Probe::new().0));
    for len in [1, 2, 8] {
        assert!(rig.transport().read(0, &mut vec![0; len]).is_err());
        assert!(rig.transport().write(0x70, &vec![0; len]).is_err());
    }
    assert!(rig.transport().read(0xf8, &mut [0; 4]).is_err(), "no such register");
}

#[test]
fn a_host_fault_reaches_the_sink_and_the_device_can_still_be_dropped() {
    let (mut probe, _told) = Probe::new();
    probe.fail = true;
    let mut rig = Rig::threaded(Box::new(probe));
    let faults = std::sync::Arc::clone(&rig.faults);
    rig.init(u64::MAX);
    // Every queue is kicked once at the start; the join waits for the thread.
    rig.transport().pause();
    assert!(matches!(faults.lock().unwrap()[..], [Error::Host { doing: "failing on purpose", .. }]));
    drop(rig);
}

#[test]
fn a_paused_device_is_saved_and_goes_on_elsewhere_where_it_was() {
    let mut rig = Rig::threaded(Box::new(Probe::new().0));
    rig.init(u64::MAX);
    rig.ask(0, &[b"x"], &[]);
    assert!(rig.transport().save().is_err(), "a running device cannot be saved");
    rig.transport().pause();
    let saved = rig.transport().save().unwrap();
    rig.transport().resume().unwrap();
    rig.ask(0, &[b"y"], &[]);

    let (probe, told) = Probe::new();
    let mem = std::sync::Arc::clone(rig.shared_mem());
    let line = std::sync::Arc::new(crate::testing::CountingLine::default());
    let mut copy = MmioTransport::new(Box::new(probe), mem, line, Activation::Inline).unwrap();
    copy.restore(&saved).unwrap();
    assert_eq!(told.try_iter().collect::<Vec<_>>(), ["restore", "start"]);
    assert_eq!(copy.save().unwrap(), saved, "what was restored is what was saved");
    assert!(copy.restore(&saved).is_err(), "it runs already");
    assert!(copy.restore(&saved[..9]).is_err());
}

#[test]
fn an_interrupt_that_the_driver_has_not_seen_is_raised_again_when_the_device_goes_on() {
    let mut rig = Rig::started(Box::new(Probe::new().0));
    rig.transport().resume().unwrap();
    let edges = rig.line().edges();
    rig.add(0, &[b"1"], &[]);
    assert_eq!(rig.line().edges(), edges + 1);
    rig.transport().resume().unwrap();
    assert_eq!(rig.line().edges(), edges + 2);
    rig.write32(reg::VIRTIO_MMIO_INTERRUPT_ACK, 3);
    rig.transport().resume().unwrap();
    assert_eq!(rig.line().edges(), edges + 2);
}
