//! A walk of the guest's page tables in software (SDM vol. 3, chapter 4): 4-level and 5-level paging, and no paging.
//!
//! Called for the memory operands of assisted instructions. It makes the processor's checks (present, writable with
//! CR0.WP, user and supervisor with SMEP and SMAP, no-execute, reserved bits) and sets accessed and dirty bits. Protection
//! keys and shadow stack pages are not checked. 32-bit and PAE paging are refused: no kernel that we start uses them.

use super::cpu::{OutOfRam, Physical};
use super::regs::{cr0, cr4, efer, rflags};

const PRESENT: u64 = 1 << 0;
const WRITABLE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const LARGE: u64 = 1 << 7;
const NO_EXECUTE: u64 = 1 << 63;
/// Bits 51:12 of an entry.
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// Page-fault error code bits (SDM vol. 3, 4.7).
pub mod code {
    /// The page was present: a permission or a reserved bit is the reason.
    pub const PRESENT: u32 = 1 << 0;
    /// A write.
    pub const WRITE: u32 = 1 << 1;
    /// A user-mode access.
    pub const USER: u32 = 1 << 2;
    /// A reserved bit was set in an entry.
    pub const RESERVED: u32 = 1 << 3;
    /// An instruction fetch.
    pub const FETCH: u32 = 1 << 4;
}

/// How often a walk starts again because an entry changed under it.
const RACES: usize = 16;

/// What is done at the address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A load.
    Read,
    /// A store.
    Write,
    /// An instruction fetch.
    Execute,
}

/// An access to check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// What is done.
    pub kind: Kind,
    /// From user mode.
    pub user: bool,
}

/// The registers that a walk depends on.
#[derive(Clone, Copy, Debug, Default)]
pub struct State {
    /// CR0: PG, WP.
    pub cr0: u64,
    /// CR3: the root.
    pub cr3: u64,
    /// CR4: LA57, SMEP, SMAP.
    pub cr4: u64,
    /// EFER: LMA, NXE.
    pub efer: u64,
    /// RFLAGS: AC.
    pub rflags: u64,
    /// Physical address bits, 32 to 52; bits above them are reserved in entries.
    pub physical_bits: u8,
}

/// Why there is no translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Miss {
    /// A page fault.
    Fault {
        /// The linear address.
        address: u64,
        /// The error code, see [`code`].
        error_code: u32,
    },
    /// The address is not canonical: #GP or #SS, not a page fault.
    NotCanonical,
    /// A page table lies outside RAM.
    OutOfRam(OutOfRam),
    /// 32-bit or PAE paging.
    LegacyPaging,
    /// Entries kept changing; try again later.
    Raced,
}

impl From<OutOfRam> for Miss {
    fn from(error: OutOfRam) -> Self {
        Self::OutOfRam(error)
    }
}

/// Translates one linear address to a guest-physical one.
///
/// # Errors
///
/// [`Miss`]: the fault that the processor would raise, or what kept the walk from an answer.
pub fn translate<P: Physical + ?Sized>(
    memory: &mut P,
    state: &State,
    linear: u64,
    access: Access,
) -> Result<u64, Miss> {
    if state.cr0 & cr0::PG == 0 {
        return Ok(linear & 0xffff_ffff);
    }
    if state.efer & efer::LMA == 0 || state.cr4 & cr4::PAE == 0 {
        return Err(Miss::LegacyPaging);
    }
    let levels: u32 = if state.cr4 & cr4::LA57 != 0 { 5 } else { 4 };
    let spare = 64 - (12 + 9 * levels);
    if ((linear << spare) as i64 >> spare) as u64 != linear {
        return Err(Miss::NotCanonical);
    }
    for _ in 0..RACES {
        if let Some(gpa) = walk(memory, state, linear, access, levels)? {
            return Ok(gpa);
        }
    }
    Err(Miss::Raced)
}

/// One walk. `None`: an entry changed before its accessed or dirty bit could be set.
fn walk<P: Physical + ?Sized>(
    memory: &mut P,
    state: &State,
    linear: u64,
    access: Access,
    levels: u32,
) -> Result<Option<u64>, Miss> {
    let mut table = state.cr3 & ADDRESS;
    let mut rights = WRITABLE | USER;
    let mut no_execute = false;
    // (address, entry) of every level, for the accessed bits.
    let mut path = [(0, 0); 5];
    let fault = |why: u32| Miss::Fault { address: linear, error_code: why | access_code(state, access) };

    for level in (1..=levels).rev() {
        let shift = 12 + 9 * (level - 1);
        let at = table + (linear >> shift & 0x1ff) * 8;
        let mut bytes = [0; 8];
        memory.read_physical(at, &mut bytes)?;
        let entry = u64::from_le_bytes(bytes);
        if entry & PRESENT == 0 {
            return Err(fault(0));
        }
        let leaf = level == 1 || (level <= 3 && entry & LARGE != 0);
        if entry & reserved(state, level, leaf) != 0 {
            return Err(fault(code::PRESENT | code::RESERVED));
        }
        rights &= entry;
        no_execute |= entry & NO_EXECUTE != 0;
        if let Some(step) = path.get_mut(level as usize - 1) {
            *step = (at, entry);
        }
        if !leaf {
            table = entry & ADDRESS;
            continue;
        }
        if !allowed(state, access, rights, no_execute) {
            return Err(fault(code::PRESENT));
        }
        if !mark(memory, path.get(level as usize - 1..).unwrap_or_default(), access)? {
            return Ok(None);
        }
        let inside = (1 << shift) - 1;
        return Ok(Some((entry & ADDRESS & !inside) | (linear & inside)));
    }
    // Level 1 is always a leaf.
    Err(fault(0))
}

/// The part of the error code that the access alone decides.
fn access_code(state: &State, access: Access) -> u32 {
    let fetch = state.efer & efer::NXE != 0 || state.cr4 & cr4::SMEP != 0;
    let kind = match access.kind {
        Kind::Write => code::WRITE,
        Kind::Execute if fetch => code::FETCH,
        Kind::Read | Kind::Execute => 0,
    };
    kind | if access.user { code::USER } else { 0 }
}

/// Reserved bits of an entry (SDM vol. 3, tables 4-14 to 4-20).
fn reserved(state: &State, level: u32, leaf: bool) -> u64 {
    let bits = u32::from(state.physical_bits.clamp(32, 52));
    let mut reserved = ADDRESS & !((1 << bits) - 1);
    if state.efer & efer::NXE == 0 {
        reserved |= NO_EXECUTE;
    }
    if level >= 4 {
        reserved |= LARGE;
    } else if leaf && level > 1 {
        // Bit 12 of a large page is its PAT bit; from 13 up to its size the address has to be zero.
        reserved |= ((1 << (12 + 9 * (level - 1))) - 1) & !0x1fff;
    }
    reserved
}

/// Access rights (SDM vol. 3, 4.6.1).
fn allowed(state: &State, access: Access, rights: u64, no_execute: bool) -> bool {
    let user_page = rights & USER != 0;
    let writable = rights & WRITABLE != 0;
    if access.user {
        return user_page
            && match access.kind {
                Kind::Read => true,
                Kind::Write => writable,
                Kind::Execute => !no_execute,
            };
    }
    let kept_out = user_page && state.cr4 & cr4::SMAP != 0 && state.rflags & rflags::AC == 0;
    match access.kind {
        Kind::Read => !kept_out,
        Kind::Write => !kept_out && (writable || state.cr0 & cr0::WP == 0),
        Kind::Execute => !(no_execute || user_page && state.cr4 & cr4::SMEP != 0),
    }
}

/// Sets accessed bits from the root down, and the dirty bit of the leaf (the first step) for a store. False: an entry changed.
fn mark<P: Physical + ?Sized>(memory: &mut P, path: &[(u64, u64)], access: Access) -> Result<bool, Miss> {
    for (depth, &(at, entry)) in path.iter().enumerate().rev() {
        if entry == 0 {
            continue;
        }
        let dirty = if depth == 0 && access.kind == Kind::Write { DIRTY } else { 0 };
        let new = entry | ACCESSED | dirty;
        if new != entry && memory.compare_exchange_8(at, entry, new)? != entry {
            return Ok(false);
        }
    }
    Ok(true)
}
