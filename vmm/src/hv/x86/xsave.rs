//! The XSAVE family (SDM vol. 1, chapter 13): a kernel saves and restores its programs' registers with it, so what is wrong
//! here is silent corruption in a program.
//!
//! | | components written | XSTATE_BV in memory | format |
//! | --- | --- | --- | --- |
//! | XSAVE | RFBM | bits of RFBM := in use, others kept | standard |
//! | XSAVEOPT | RFBM in use | the same | standard |
//! | XSAVEC, XSAVES | RFBM in use | RFBM in use | compacted |
//!
//! RFBM is EDX:EAX and XCR0. "In use" is the XSTATE_BV that the hypervisor reports. The modified optimisation, which a
//! processor may use, is not used.

use std::ops::Range;

use iced_x86::Mnemonic;

use super::exec::{Exec, Stop};
use super::paging::Kind;
use super::regs::{cr0, cr4};
use super::xstate::{
    AVX, EXTENDED, FCW_INITIAL, HEADER, Image, MXCSR, MXCSR_INITIAL, SSE, X87, XstateLayout,
};

/// IA32_XSS: the supervisor components.
const XSS: u32 = 0xda0;
/// Bit 63 of XCOMP_BV: the area is compacted.
const COMPACTED: u64 = 1 << 63;
/// FIP and FDP with their selectors, in the 32-bit form (SDM vol. 1, 10.5.1).
const POINTERS: [usize; 2] = [8, 16];

/// What the instruction is about, after its first checks.
struct Request {
    layout: XstateLayout,
    /// XCR0: what an area may name.
    allowed: u64,
    /// The requested-feature bitmap.
    rfbm: u64,
    /// The linear address of the area, a multiple of 64.
    base: u64,
    is_64: bool,
    /// With REX.W: x87 pointers of 64 bits.
    wide: bool,
}

fn request(exec: &mut Exec<'_>, kind: Kind) -> Result<Request, Stop> {
    if exec.sregs.cr4 & cr4::OSXSAVE == 0 {
        return Err(Stop::undefined());
    }
    if exec.sregs.cr0 & cr0::TS != 0 {
        return Err(Stop::not_available());
    }
    let base = exec.address(0, EXTENDED as u64, kind)?;
    if base % 64 != 0 {
        return Err(Stop::protection(0));
    }
    let mnemonic = exec.insn.mnemonic();
    if matches!(mnemonic, Mnemonic::Xsaves | Mnemonic::Xsaves64 | Mnemonic::Xrstors | Mnemonic::Xrstors64)
        && Exec::host("read IA32_XSS", exec.cpu.msr(XSS))?.unwrap_or(0) != 0
    {
        // The hypervisor's image holds no supervisor state.
        return Err(exec.unsupported().into());
    }
    let layout = exec.cpu.xstate_layout();
    let allowed = Exec::host("read XCR0", exec.cpu.xcr0())? & layout.supported();
    let [eax, _, edx] = [0, 1, 2].map(|at| exec.regs.gpr.get(at).copied().unwrap_or_default() & 0xffff_ffff);
    Ok(Request {
        layout,
        allowed,
        rfbm: (edx << 32 | eax) & allowed,
        base,
        is_64: exec.sregs.is_64(),
        wide: matches!(
            mnemonic,
            Mnemonic::Xsave64
                | Mnemonic::Xsaveopt64
                | Mnemonic::Xsavec64
                | Mnemonic::Xsaves64
                | Mnemonic::Xrstor64
                | Mnemonic::Xrstors64
        ),
    })
}

/// The indexes of the bits of a set.
fn indexes(set: u64) -> impl Iterator<Item = u32> {
    (0..63).filter(move |index| set >> index & 1 != 0)
}

/// XSAVE, XSAVEOPT, XSAVEC, XSAVES.
pub(super) fn save(exec: &mut Exec<'_>) -> Result<(), Stop> {
    let want = request(exec, Kind::Write)?;
    let mnemonic = exec.insn.mnemonic();
    let compacted =
        !matches!(mnemonic, Mnemonic::Xsave | Mnemonic::Xsave64 | Mnemonic::Xsaveopt | Mnemonic::Xsaveopt64);
    let all = matches!(mnemonic, Mnemonic::Xsave | Mnemonic::Xsave64);

    let mut image = Image::load(exec.cpu, &want.layout)?;
    let mut in_use = image.in_use();
    if compacted && image.u32(MXCSR) != MXCSR_INITIAL {
        in_use |= SSE;
    }
    if !want.wide {
        narrow(&mut image);
    }
    let written = if all { want.rfbm } else { want.rfbm & in_use };

    // The area as it shall be, and which bytes of it are stored.
    let (offsets, end) = want.layout.compacted(want.rfbm);
    let mut area = vec![0; if compacted { end } else { want.layout.len() }];
    let mut touched: Vec<Range<usize>> = Vec::new();
    let mut place = |at: usize, data: &[u8]| {
        let range = at..at + data.len();
        if let Some(slot) = area.get_mut(range.clone()) {
            slot.copy_from_slice(data);
            touched.push(range);
        }
    };
    for index in indexes(written) {
        for range in want.layout.ranges(index, want.is_64) {
            let at = match offsets.get(index as usize) {
                Some(&offset) if compacted && index >= 2 => offset,
                _ => range.start,
            };
            place(at, image.get(range));
        }
    }
    let with_mxcsr = if compacted { written & SSE != 0 } else { want.rfbm & (SSE | AVX) != 0 };
    if with_mxcsr {
        place(MXCSR, image.get(MXCSR..MXCSR + 8));
    }
    let header = want.base.wrapping_add(HEADER as u64);
    if compacted {
        place(HEADER, &(want.rfbm & in_use).to_le_bytes());
        place(HEADER + 8, &(want.rfbm | COMPACTED).to_le_bytes());
    } else {
        let span = exec.translate(header, 8, Kind::Write)?;
        let mut old = [0; 8];
        exec.read_span(&span, &mut old)?;
        let kept = u64::from_le_bytes(old) & !want.rfbm;
        place(HEADER, &(kept | want.rfbm & in_use).to_le_bytes());
    }

    // Every page is checked before the first byte is stored.
    let mut spans = Vec::new();
    for range in merged(touched) {
        let linear = want.base.wrapping_add(range.start as u64);
        spans.push((exec.translate(linear, range.len(), Kind::Write)?, range));
    }
    for (span, range) in spans {
        exec.write_span(&span, area.get(range).unwrap_or_default())?;
    }
    Ok(())
}

/// Sorts ranges and joins those that touch.
fn merged(mut ranges: Vec<Range<usize>>) -> Vec<Range<usize>> {
    ranges.sort_by_key(|range| range.start);
    let mut joined: Vec<Range<usize>> = Vec::with_capacity(ranges.len());
    for range in ranges {
        match joined.last_mut() {
            Some(last) if last.end >= range.start => last.end = last.end.max(range.end),
            _ => joined.push(range),
        }
    }
    joined
}

/// The x87 pointers in their 32-bit form. The selectors are zero, as on processors that no longer keep them.
fn narrow(image: &mut Image) {
    for at in POINTERS {
        image.put(at + 4, &[0; 4]);
    }
}

/// XRSTOR, XRSTORS.
pub(super) fn restore(exec: &mut Exec<'_>) -> Result<(), Stop> {
    let want = request(exec, Kind::Read)?;
    let supervisor = matches!(exec.insn.mnemonic(), Mnemonic::Xrstors | Mnemonic::Xrstors64);
    let mut header = [0; EXTENDED - HEADER];
    read(exec, &want, HEADER, &mut header)?;
    let (xstate_bv, xcomp_bv) = check(&header, want.allowed, supervisor)?;
    let compacted = xcomp_bv & COMPACTED != 0;

    let mut image = Image::load(exec.cpu, &want.layout)?;
    let before = image.in_use();
    let loaded = want.rfbm & xstate_bv;
    let (offsets, _) = want.layout.compacted(xcomp_bv & !COMPACTED);
    for index in indexes(want.rfbm) {
        for range in want.layout.ranges(index, want.is_64) {
            if loaded >> index & 1 == 0 {
                image.get_mut(range).fill(0);
                continue;
            }
            let at = match offsets.get(index as usize) {
                Some(&offset) if compacted && index >= 2 => offset,
                _ => range.start,
            };
            read(exec, &want, at, image.get_mut(range))?;
        }
    }
    if want.rfbm & X87 != 0 {
        if loaded & X87 == 0 {
            image.put(0, &FCW_INITIAL.to_le_bytes());
        } else if !want.wide {
            narrow(&mut image);
        }
    }
    let mut in_use = before & !want.rfbm | loaded;
    if !want.is_64 {
        // The registers from 8 on keep what they had.
        in_use |= before & want.rfbm & !X87;
    }
    image.set_in_use(in_use);
    if let Some(mxcsr) = mxcsr(exec, &want, compacted, loaded)? {
        if mxcsr & !image.mxcsr_mask() != 0 {
            return Err(Stop::protection(0));
        }
        image.set_mxcsr(mxcsr);
    }
    image.store(exec.cpu)
}

/// The new MXCSR, if it changes: the standard form loads it whenever component 1 or 2 is requested, the compacted form
/// treats it as part of component 1 (SDM vol. 1, 13.8.1 and 13.8.2).
fn mxcsr(exec: &mut Exec<'_>, want: &Request, compacted: bool, loaded: u64) -> Result<Option<u32>, Stop> {
    let from_memory = if compacted { loaded & SSE != 0 } else { want.rfbm & (SSE | AVX) != 0 };
    if from_memory {
        let mut bytes = [0; 4];
        read(exec, want, MXCSR, &mut bytes)?;
        return Ok(Some(u32::from_le_bytes(bytes)));
    }
    Ok((compacted && want.rfbm & SSE != 0).then_some(MXCSR_INITIAL))
}

/// Reads from the area.
fn read(exec: &mut Exec<'_>, want: &Request, at: usize, buf: &mut [u8]) -> Result<(), Stop> {
    let span = exec.translate(want.base.wrapping_add(at as u64), buf.len(), Kind::Read)?;
    exec.read_span(&span, buf)
}

/// The header checks of XRSTOR (SDM vol. 1, 13.8): XSTATE_BV and XCOMP_BV, or #GP.
fn check(header: &[u8; EXTENDED - HEADER], allowed: u64, supervisor: bool) -> Result<(u64, u64), Stop> {
    let word = |at: usize| {
        let bytes = header.get(at..).and_then(|rest| rest.first_chunk::<8>());
        u64::from_le_bytes(bytes.copied().unwrap_or_default())
    };
    let (xstate_bv, xcomp_bv) = (word(0), word(8));
    let compacted = xcomp_bv & COMPACTED != 0;
    let good = if compacted {
        let named = xcomp_bv & !COMPACTED;
        named & !allowed == 0 && xstate_bv & !named == 0 && header.iter().skip(16).all(|&byte| byte == 0)
    } else {
        !supervisor && xcomp_bv == 0 && word(16) == 0 && xstate_bv & !allowed == 0
    };
    if good { Ok((xstate_bv, xcomp_bv)) } else { Err(Stop::protection(0)) }
}
