use super::super::paging::{Access, Kind, Miss, State, translate};
use super::super::testing::{FakeCpu, entry};
use super::super::{OutOfRam, Physical, cr0, cr4, efer, rflags};

const LINEAR: u64 = 0xffff_8800_0000_5000;
const PAGE: u64 = 0x2_0000;
const READ: Access = Access { kind: Kind::Read, user: false };
const WRITE: Access = Access { kind: Kind::Write, user: false };
const EXECUTE: Access = Access { kind: Kind::Execute, user: false };

fn user(access: Access) -> Access {
    Access { user: true, ..access }
}

fn state(cpu: &FakeCpu) -> State {
    State {
        cr0: cpu.sregs.cr0,
        cr3: cpu.sregs.cr3,
        cr4: cpu.sregs.cr4,
        efer: cpu.sregs.efer,
        rflags: cpu.regs.rflags,
        physical_bits: cpu.sregs.physical_bits,
    }
}

fn look(cpu: &mut FakeCpu, linear: u64, access: Access) -> Result<u64, Miss> {
    let state = state(cpu);
    translate(cpu, &state, linear, access)
}

/// A vCPU with one page at [`LINEAR`] by these entry bits.
fn one_page(bits: u64) -> FakeCpu {
    let mut cpu = FakeCpu::long_mode();
    cpu.map(LINEAR, PAGE | bits);
    cpu
}

fn fault(address: u64, error_code: u32) -> Result<u64, Miss> {
    Err(Miss::Fault { address, error_code })
}

#[test]
fn a_mapped_page_is_found_and_marked_accessed() {
    let mut cpu = one_page(entry::PRESENT);
    assert_eq!(look(&mut cpu, LINEAR + 0x123, READ), Ok(PAGE + 0x123));
    for level in 1..=4 {
        let at = cpu.slot(LINEAR, level);
        assert_eq!(cpu.u64(at) & (entry::ACCESSED | entry::DIRTY), entry::ACCESSED, "level {level}");
    }
}

#[test]
fn a_store_marks_only_the_last_level_dirty() {
    let mut cpu = one_page(entry::PRESENT | entry::WRITABLE);
    assert_eq!(look(&mut cpu, LINEAR, WRITE), Ok(PAGE));
    let dirty: Vec<bool> = (1..=4)
        .map(|level| cpu.slot(LINEAR, level))
        .collect::<Vec<_>>()
        .into_iter()
        .map(|at| cpu.u64(at) & entry::DIRTY != 0)
        .collect();
    assert_eq!(dirty, [true, false, false, false]);
}

#[test]
fn a_refused_access_marks_nothing() {
    let mut cpu = one_page(entry::PRESENT);
    assert_eq!(look(&mut cpu, LINEAR, WRITE), fault(LINEAR, 3));
    let at = cpu.slot(LINEAR, 1);
    assert_eq!(cpu.u64(at), PAGE | entry::PRESENT);
}

#[test]
fn an_absent_page_says_what_was_tried() {
    let mut cpu = one_page(0);
    assert_eq!(look(&mut cpu, LINEAR, READ), fault(LINEAR, 0));
    assert_eq!(look(&mut cpu, LINEAR, WRITE), fault(LINEAR, 2));
    assert_eq!(look(&mut cpu, LINEAR, EXECUTE), fault(LINEAR, 0x10));
    assert_eq!(look(&mut cpu, LINEAR, user(WRITE)), fault(LINEAR, 6));
    assert_eq!(look(&mut cpu, 0x1000, READ), fault(0x1000, 0));
}

#[test]
fn a_read_only_page_can_be_written_without_write_protection() {
    let mut cpu = one_page(entry::PRESENT);
    cpu.sregs.cr0 &= !cr0::WP;
    assert_eq!(look(&mut cpu, LINEAR, WRITE), Ok(PAGE));
    // But not by a user, ever.
    let mut cpu = one_page(entry::PRESENT | entry::USER);
    cpu.sregs.cr0 &= !cr0::WP;
    assert_eq!(look(&mut cpu, LINEAR, user(WRITE)), fault(LINEAR, 7));
}

#[test]
fn a_table_that_is_read_only_makes_its_pages_so() {
    let mut cpu = one_page(entry::PRESENT | entry::WRITABLE);
    let at = cpu.slot(LINEAR, 3);
    let entry = cpu.u64(at);
    cpu.put(at, &(entry & !entry::WRITABLE).to_le_bytes());
    assert_eq!(look(&mut cpu, LINEAR, WRITE), fault(LINEAR, 3));
}

#[test]
fn a_supervisor_page_is_not_for_users() {
    let mut cpu = one_page(entry::PRESENT);
    assert_eq!(look(&mut cpu, LINEAR, user(READ)), fault(LINEAR, 5));
    let mut cpu = one_page(entry::PRESENT | entry::USER);
    assert_eq!(look(&mut cpu, LINEAR, user(READ)), Ok(PAGE));
}

#[test]
fn smap_keeps_the_supervisor_off_user_pages_unless_ac_is_set() {
    let mut cpu = one_page(entry::PRESENT | entry::USER | entry::WRITABLE);
    cpu.sregs.cr4 |= cr4::SMAP;
    assert_eq!(look(&mut cpu, LINEAR, READ), fault(LINEAR, 1));
    assert_eq!(look(&mut cpu, LINEAR, WRITE), fault(LINEAR, 3));
    cpu.regs.rflags |= rflags::AC;
    assert_eq!(look(&mut cpu, LINEAR, WRITE), Ok(PAGE));
}

#[test]
fn smep_keeps_the_supervisor_from_executing_user_pages() {
    let mut cpu = one_page(entry::PRESENT | entry::USER);
    assert_eq!(look(&mut cpu, LINEAR, EXECUTE), Ok(PAGE));
    cpu.sregs.cr4 |= cr4::SMEP;
    assert_eq!(look(&mut cpu, LINEAR, EXECUTE), fault(LINEAR, 0x11));
}

#[test]
fn no_execute_is_a_right_with_nxe_and_reserved_without() {
    let mut cpu = one_page(entry::PRESENT | entry::NO_EXECUTE);
    assert_eq!(look(&mut cpu, LINEAR, EXECUTE), fault(LINEAR, 0x11));
    assert_eq!(look(&mut cpu, LINEAR, READ), Ok(PAGE));
    cpu.sregs.efer &= !efer::NXE;
    assert_eq!(look(&mut cpu, LINEAR, READ), fault(LINEAR, 9));
}

#[test]
fn bits_above_the_physical_address_are_reserved() {
    let mut cpu = one_page(entry::PRESENT | 1 << 50);
    assert_eq!(look(&mut cpu, LINEAR, READ), fault(LINEAR, 9));
    // With 52 bits the page is merely not RAM, which is for the access to find.
    cpu.sregs.physical_bits = 52;
    assert_eq!(look(&mut cpu, LINEAR, READ), Ok(1 << 50 | PAGE));
}

#[test]
fn large_pages_are_found_and_must_be_aligned() {
    let mut cpu = FakeCpu::long_mode();
    cpu.map_at(LINEAR, 0x4000_0000 | entry::PRESENT | entry::LARGE, 2);
    assert_eq!(look(&mut cpu, LINEAR + 0x12_3456, READ), Ok(0x4000_0000 + (LINEAR + 0x12_3456) % (2 << 20)));
    cpu.map_at(LINEAR, 0x4000_2000 | entry::PRESENT | entry::LARGE, 2);
    assert_eq!(look(&mut cpu, LINEAR, READ), fault(LINEAR, 9));

    let mut cpu = FakeCpu::long_mode();
    cpu.map_at(LINEAR, 0x8000_0000 | entry::PRESENT | entry::LARGE, 3);
    assert_eq!(
        look(&mut cpu, LINEAR + 0x1234_5678, READ),
        Ok(0x8000_0000 + (LINEAR + 0x1234_5678) % (1 << 30))
    );
}

#[test]
fn the_pat_bit_of_a_large_page_is_no_address() {
    let mut cpu = FakeCpu::long_mode();
    cpu.map_at(LINEAR, 0x4000_0000 | 1 << 12 | entry::PRESENT | entry::LARGE, 2);
    assert_eq!(look(&mut cpu, LINEAR, READ), Ok(0x4000_0000 + 0x5000));
}

#[test]
fn the_large_bit_is_reserved_at_the_root() {
    let mut cpu = FakeCpu::long_mode();
    cpu.map_at(LINEAR, entry::PRESENT | entry::LARGE, 4);
    assert_eq!(look(&mut cpu, LINEAR, READ), fault(LINEAR, 9));
}

#[test]
fn five_levels_reach_further() {
    let mut cpu = FakeCpu::long_mode();
    let far = 0x00ab_8000_0000_7000;
    assert_eq!(look(&mut cpu, far, READ), Err(Miss::NotCanonical));
    cpu.sregs.cr4 |= cr4::LA57;
    cpu.map(far, PAGE | entry::PRESENT);
    assert_eq!(look(&mut cpu, far + 5, READ), Ok(PAGE + 5));
    assert_eq!(look(&mut cpu, 1 << 56, READ), Err(Miss::NotCanonical));
}

#[test]
fn without_paging_an_address_is_its_own() {
    let mut cpu = FakeCpu::protected_mode();
    assert_eq!(look(&mut cpu, 0x1234, WRITE), Ok(0x1234));
}

#[test]
fn paging_of_32_bits_is_refused() {
    let mut cpu = FakeCpu::protected_mode();
    cpu.sregs.cr0 |= cr0::PG;
    assert_eq!(look(&mut cpu, 0x1234, READ), Err(Miss::LegacyPaging));
}

#[test]
fn a_table_outside_ram_is_told() {
    let mut cpu = FakeCpu::long_mode();
    cpu.sregs.cr3 = 0xffff_f000;
    let at = 0xffff_f000 + (LINEAR >> 39 & 0x1ff) * 8;
    assert_eq!(look(&mut cpu, LINEAR, READ), Err(Miss::OutOfRam(OutOfRam { gpa: at })));
}

/// Memory in which another CPU changes an entry whenever a walk wants to mark it, a number of times.
struct Racing {
    cpu: FakeCpu,
    races: usize,
}

impl Physical for Racing {
    fn read_physical(&mut self, gpa: u64, buf: &mut [u8]) -> Result<(), OutOfRam> {
        self.cpu.read_physical(gpa, buf)
    }

    fn write_physical(&mut self, gpa: u64, data: &[u8]) -> Result<(), OutOfRam> {
        self.cpu.write_physical(gpa, data)
    }

    fn compare_exchange_8(&mut self, gpa: u64, current: u64, new: u64) -> Result<u64, OutOfRam> {
        if self.races > 0 {
            self.races -= 1;
            // An available bit flips: harmless to the walk, fatal to the exchange.
            let changed = self.cpu.u64(gpa) ^ 1 << 9;
            self.cpu.put(gpa, &changed.to_le_bytes());
        }
        self.cpu.compare_exchange_8(gpa, current, new)
    }
}

#[test]
fn a_walk_starts_again_when_an_entry_changes_under_it() {
    let mut memory = Racing { cpu: one_page(entry::PRESENT | entry::WRITABLE), races: 3 };
    let state = state(&memory.cpu);
    assert_eq!(translate(&mut memory, &state, LINEAR, WRITE), Ok(PAGE));
    let at = memory.cpu.slot(LINEAR, 1);
    assert_eq!(memory.cpu.u64(at) & entry::DIRTY, entry::DIRTY);
}

#[test]
fn a_walk_that_never_wins_gives_up() {
    let mut memory = Racing { cpu: one_page(entry::PRESENT), races: usize::MAX };
    let state = state(&memory.cpu);
    assert_eq!(translate(&mut memory, &state, LINEAR, READ), Err(Miss::Raced));
}
