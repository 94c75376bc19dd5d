//! Our ring against that of the `virtio-queue` crate: the same driver, the same answers, the same bytes in memory.

use vm_memory::{Bytes as _, GuestAddress};

use super::{Descriptor, Setup, SetupError, own, vmm};
use crate::mem::GuestRam;
use crate::testing::small_ram;

const RAM: usize = 0x1_0000;
const SIZE: u16 = 8;
const SETUP: Setup = Setup {
    max: 16,
    size: SIZE,
    desc: 0x1000,
    avail: 0x2000,
    used: 0x3000,
    event_idx: false,
    next_avail: 0xfffc,
    next_used: 0xfffa,
};
/// A table for indirect descriptors.
const TABLE: u64 = 0x4000;

/// Numbers that are the same in every run (xorshift).
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

/// One ring of each kind, each in memory of its own, which the driver writes alike.
struct Pair {
    ours: (GuestRam, own::Queue),
    theirs: (GuestRam, vmm::Queue),
}

impl Pair {
    fn new(setup: &Setup) -> Self {
        let (ours, theirs) = (small_ram(RAM), small_ram(RAM));
        let pair = (own::Queue::new(&ours, setup).unwrap(), vmm::Queue::new(&theirs, setup).unwrap());
        Self { ours: (ours, pair.0), theirs: (theirs, pair.1) }
    }

    fn write(&self, at: u64, bytes: &[u8]) {
        for ram in [&self.ours.0, &self.theirs.0] {
            ram.write_slice(bytes, GuestAddress(at)).unwrap();
        }
    }

    /// Takes a chain from both: the head and the descriptors, or why not.
    fn pop(&mut self) -> Result<Option<(u16, Vec<Descriptor>)>, crate::virtio::ChainError> {
        let ours =
            self.ours.1.pop(&self.ours.0).map(|chain| chain.map(|chain| (chain.head(), chain.collect())));
        let theirs =
            self.theirs.1.pop(&self.theirs.0).map(|chain| chain.map(|chain| (chain.head(), chain.collect())));
        assert_eq!(ours, theirs);
        ours
    }

    fn same(&self) {
        let read = |ram: &GuestRam| {
            let mut bytes = vec![0; RAM];
            ram.read_slice(&mut bytes, GuestAddress(0)).unwrap();
            bytes
        };
        assert!(read(&self.ours.0) == read(&self.theirs.0), "the two wrote different bytes");
        assert_eq!(self.ours.1.next_avail(), self.theirs.1.next_avail());
        assert_eq!(self.ours.1.next_used(), self.theirs.1.next_used());
    }
}

fn descriptor(numbers: &mut Numbers, in_table: bool) -> [u8; 16] {
    let mut bytes = [0; 16];
    // NEXT, WRITE and INDIRECT, rarely one that means nothing.
    let flags = if numbers.below(16) == 0 { numbers.below(0x1_0000) } else { numbers.below(4) };
    let indirect = numbers.below(if in_table { 16 } else { 4 }) == 0;
    let flags = flags as u16 & !4 | if indirect { 4 } else { 0 };
    let addr = match numbers.below(8) {
        0 => u64::MAX - numbers.below(64),
        _ if indirect => TABLE + 16 * numbers.below(4),
        _ => numbers.below(RAM as u64 * 2),
    };
    let len = match numbers.below(8) {
        0 => u32::MAX - numbers.below(32) as u32,
        _ if indirect => 16 * numbers.below(8) as u32 + u32::from(numbers.below(16) == 0),
        _ => numbers.below(0x2000) as u32,
    };
    bytes[..8].copy_from_slice(&addr.to_le_bytes());
    bytes[8..12].copy_from_slice(&len.to_le_bytes());
    bytes[12..14].copy_from_slice(&flags.to_le_bytes());
    bytes[14..].copy_from_slice(&(numbers.below(u64::from(SIZE) + 1) as u16).to_le_bytes());
    bytes
}

#[test]
fn both_rings_give_the_same_answers_to_a_driver_that_does_anything() {
    let mut numbers = Numbers(0x2545_f491_4f6c_dd1d);
    let (mut taken, mut refused, mut whole, mut cut, mut given) = (0, 0, 0, 0, 0);
    for round in 0..400 {
        let mut pair = Pair::new(&Setup { event_idx: round % 2 == 0, ..SETUP });
        let mut index = SETUP.next_avail;
        for _ in 0..40 {
            match numbers.below(8) {
                0 => {
                    for slot in 0..u64::from(SIZE) {
                        pair.write(SETUP.desc + 16 * slot, &descriptor(&mut numbers, false));
                        pair.write(TABLE + 16 * slot, &descriptor(&mut numbers, true));
                    }
                }
                1 | 2 => {
                    // The driver adds a chain; sometimes its index jumps.
                    let slot = SETUP.avail + 4 + 2 * u64::from(index % SIZE);
                    pair.write(slot, &(numbers.below(u64::from(SIZE) + 1) as u16).to_le_bytes());
                    index =
                        index.wrapping_add(if numbers.below(16) == 0 { numbers.below(32) as u16 } else { 1 });
                    pair.write(SETUP.avail + 2, &index.to_le_bytes());
                }
                3..=5 => match pair.pop() {
                    Ok(Some((_, chain))) => {
                        taken += 1;
                        if chain.last().is_some_and(|last| !last.next) {
                            whole += 1
                        } else {
                            cut += 1
                        }
                        if numbers.below(4) == 0 {
                            pair.ours.1.unpop();
                            pair.theirs.1.unpop();
                        }
                    }
                    Ok(None) => {}
                    Err(_) => {
                        refused += 1;
                        index = pair.ours.1.next_avail();
                        pair.write(SETUP.avail + 2, &index.to_le_bytes());
                    }
                },
                6 => {
                    let (head, len) =
                        (numbers.below(u64::from(SIZE) + 2) as u16, numbers.below(1 << 32) as u32);
                    let ours = pair.ours.1.add_used(&pair.ours.0, head, len);
                    assert_eq!(ours, pair.theirs.1.add_used(&pair.theirs.0, head, len));
                    given += u32::from(ours.is_ok());
                }
                _ if numbers.below(2) == 0 => {
                    let ours = pair.ours.1.enable_notification(&pair.ours.0);
                    assert_eq!(ours, pair.theirs.1.enable_notification(&pair.theirs.0));
                }
                _ => {
                    let ours = pair.ours.1.disable_notification(&pair.ours.0);
                    assert_eq!(ours, pair.theirs.1.disable_notification(&pair.theirs.0));
                }
            }
        }
        pair.same();
    }
    let counts = [taken, refused, whole, cut, given];
    assert!(counts.iter().all(|&count| count > 100), "some of it hardly happened: {counts:?}");
}

#[test]
fn both_rings_refuse_the_same_places() {
    let ram = small_ram(RAM);
    let end = RAM as u64;
    let cases = [
        (SETUP, None),
        (Setup { size: 0, ..SETUP }, Some(SetupError::Shape)),
        (Setup { size: 6, ..SETUP }, Some(SetupError::Shape)),
        (Setup { size: 32, ..SETUP }, Some(SetupError::Shape)),
        (Setup { desc: 0x1008, ..SETUP }, Some(SetupError::Shape)),
        (Setup { avail: 0x2001, ..SETUP }, Some(SetupError::Shape)),
        (Setup { used: 0x3002, ..SETUP }, Some(SetupError::Shape)),
        (Setup { desc: end - 128, ..SETUP }, None),
        (Setup { desc: end - 112, ..SETUP }, Some(SetupError::OutOfRam)),
        (Setup { avail: end - 22, ..SETUP }, None),
        (Setup { avail: end - 20, ..SETUP }, Some(SetupError::OutOfRam)),
        (Setup { used: end - 72, ..SETUP }, None),
        (Setup { used: end - 68, ..SETUP }, Some(SetupError::OutOfRam)),
        (Setup { avail: u64::MAX - 1, ..SETUP }, Some(SetupError::OutOfRam)),
    ];
    for (setup, expected) in cases {
        assert_eq!(own::Queue::new(&ram, &setup).err(), expected, "ours: {setup:?}");
        assert_eq!(vmm::Queue::new(&ram, &setup).err(), expected, "theirs: {setup:?}");
    }
}
