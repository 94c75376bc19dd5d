//! The extended state of a vCPU: where its components stand in the standard format (SDM vol. 1, 13.4), and an image of it.

use std::ops::Range;

use thiserror::Error;

use super::exec::{Exec, Stop};
use super::{AssistError, Cpu};

/// State component 0: the x87 state.
pub(super) const X87: u64 = 1 << 0;
/// State component 1: the XMM registers.
pub(super) const SSE: u64 = 1 << 1;
/// State component 2: the upper halves of the YMM registers.
pub(super) const AVX: u64 = 1 << 2;
/// State component 6: the upper halves of ZMM0 to ZMM15.
const ZMM_HIGH: u32 = 6;
/// State component 7: ZMM16 to ZMM31.
const ZMM_16: u32 = 7;

/// Offsets in the legacy region (SDM vol. 1, table 10-2) and behind it.
pub(super) const FSW: usize = 2;
pub(super) const TAGS: usize = 4;
pub(super) const MXCSR: usize = 24;
pub(super) const MXCSR_MASK: usize = 28;
pub(super) const XMM: usize = 160;
pub(super) const HEADER: usize = 512;
pub(super) const EXTENDED: usize = 576;

/// MXCSR after reset.
pub(super) const MXCSR_INITIAL: u32 = 0x1f80;
/// The x87 control word after FNINIT.
pub(super) const FCW_INITIAL: u16 = 0x037f;
/// No component ends behind this: AMX, the largest so far, ends at 11 KiB.
const LARGEST: u32 = 64 * 1024;

/// A component behind the legacy region.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Component {
    /// Bytes from the beginning of the standard format.
    pub offset: u32,
    /// Bytes.
    pub size: u32,
    /// In the compacted format it begins on 64 bytes.
    pub aligned: bool,
}

/// CPUID describes state components that cannot be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("CPUID leaf 0Dh puts state component {component} at {offset:#x} with {size:#x} bytes")]
pub struct LayoutError {
    /// The component, 2 to 62.
    pub component: u32,
    /// Its offset.
    pub offset: u32,
    /// Its size.
    pub size: u32,
}

/// Where the user state components stand, by CPUID leaf 0Dh.
#[derive(Clone, Copy, Debug)]
pub struct XstateLayout {
    supported: u64,
    components: [Component; 63],
}

impl XstateLayout {
    /// Reads the layout: `supported` is EDX:EAX of subleaf 0, and `subleaf` answers EAX, EBX and ECX of the others.
    ///
    /// The hypervisor's image uses the host's layout, so these have to be the host's values.
    ///
    /// # Errors
    ///
    /// [`LayoutError`]: a component is empty, too large, or lies within the legacy region or the header.
    pub fn from_cpuid(supported: u64, mut subleaf: impl FnMut(u32) -> [u32; 3]) -> Result<Self, LayoutError> {
        let mut layout = Self { supported: supported & !(1 << 63), components: [Component::default(); 63] };
        for (index, slot) in (0..).zip(&mut layout.components) {
            if index < 2 || supported >> index & 1 == 0 {
                continue;
            }
            let [size, offset, flags] = subleaf(index);
            let end = offset.saturating_add(size);
            if size == 0 || (offset as usize) < EXTENDED || end > LARGEST {
                return Err(LayoutError { component: index, offset, size });
            }
            *slot = Component { offset, size, aligned: flags & 2 != 0 };
        }
        Ok(layout)
    }

    /// The components that XCR0 may enable.
    pub fn supported(&self) -> u64 {
        self.supported
    }

    /// The component, if it is supported and lies behind the legacy region.
    pub fn component(&self, index: u32) -> Option<Component> {
        if index < 2 || self.supported.checked_shr(index).unwrap_or(0) & 1 == 0 {
            return None;
        }
        self.components.get(index as usize).copied()
    }

    /// Bytes of the standard format with all components.
    pub fn len(&self) -> usize {
        let ends = (2..63).filter_map(|index| self.component(index)).map(|at| (at.offset + at.size) as usize);
        ends.max().unwrap_or(EXTENDED).max(EXTENDED)
    }

    /// Never: the legacy region and the header are always there.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// The bytes of one component in the standard format that an instruction moves. Outside 64-bit mode only registers 0 to
    /// 7 are there (SDM vol. 1, 13.5). MXCSR is not among them.
    pub(super) fn ranges(&self, index: u32, is_64: bool) -> impl Iterator<Item = Range<usize>> + use<> {
        let ranges = match (index, self.component(index)) {
            (0, _) => [0..MXCSR, MXCSR + 8..XMM],
            (1, _) => [XMM..XMM + if is_64 { 256 } else { 128 }, 0..0],
            (_, Some(at)) => {
                let size = match index {
                    2 | ZMM_HIGH if !is_64 => at.size / 2,
                    ZMM_16 if !is_64 => 0,
                    _ => at.size,
                };
                [at.offset as usize..(at.offset + size) as usize, 0..0]
            }
            (_, None) => [0..0, 0..0],
        };
        ranges.into_iter().filter(|range| !range.is_empty())
    }

    /// Where the components of `set` stand in the compacted format (SDM vol. 1, 13.4.3): the offset of each, and the end.
    pub(super) fn compacted(&self, set: u64) -> ([usize; 63], usize) {
        let mut offsets = [0; 63];
        let mut end = EXTENDED;
        for (index, slot) in (0..).zip(&mut offsets) {
            if set >> index & 1 == 0 {
                continue;
            }
            if let Some(at) = self.component(index) {
                if at.aligned {
                    end = end.next_multiple_of(64);
                }
                *slot = end;
                end += at.size as usize;
            }
        }
        (offsets, end)
    }
}

/// The extended state of a vCPU in the standard format, long enough for its layout.
pub(super) struct Image {
    bytes: Vec<u8>,
}

impl Image {
    /// Asks the hypervisor for it.
    pub(super) fn load(cpu: &mut dyn Cpu, layout: &XstateLayout) -> Result<Self, Stop> {
        let bytes = Exec::host("read the extended state", cpu.xstate())?;
        let (have, need) = (bytes.len(), layout.len());
        if have < need {
            return Err(AssistError::StateImage { need, have }.into());
        }
        Ok(Self { bytes })
    }

    /// Gives it back.
    pub(super) fn store(&self, cpu: &mut dyn Cpu) -> Result<(), Stop> {
        Exec::host("set the extended state", cpu.set_xstate(&self.bytes))
    }

    pub(super) fn get(&self, range: Range<usize>) -> &[u8] {
        self.bytes.get(range).unwrap_or_default()
    }

    pub(super) fn get_mut(&mut self, range: Range<usize>) -> &mut [u8] {
        self.bytes.get_mut(range).unwrap_or_default()
    }

    /// `N` little-endian bytes at an offset within the image.
    fn array<const N: usize>(&self, at: usize) -> [u8; N] {
        let found = self.bytes.get(at..).and_then(|rest| rest.first_chunk::<N>());
        found.copied().unwrap_or([0; N])
    }

    pub(super) fn put(&mut self, at: usize, data: &[u8]) {
        if let Some(place) = self.bytes.get_mut(at..at.saturating_add(data.len())) {
            place.copy_from_slice(data);
        }
    }

    pub(super) fn u16(&self, at: usize) -> u16 {
        u16::from_le_bytes(self.array(at))
    }

    pub(super) fn u32(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.array(at))
    }

    pub(super) fn u64(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.array(at))
    }

    /// XSTATE_BV: the components that are not in their initial state.
    pub(super) fn in_use(&self) -> u64 {
        self.u64(HEADER)
    }

    pub(super) fn set_in_use(&mut self, set: u64) {
        self.put(HEADER, &set.to_le_bytes());
    }

    /// Sets MXCSR. The hypervisor takes it only with component 1 or 2, so a value other than the initial one marks the XMM
    /// registers as used: their bytes are in the image either way.
    pub(super) fn set_mxcsr(&mut self, value: u32) {
        self.put(MXCSR, &value.to_le_bytes());
        if value != MXCSR_INITIAL {
            self.set_in_use(self.in_use() | SSE);
        }
    }

    /// The bits that MXCSR may have (SDM vol. 1, 11.6.6).
    pub(super) fn mxcsr_mask(&self) -> u32 {
        match self.u32(MXCSR_MASK) {
            0 => 0xffbf,
            mask => mask,
        }
    }
}
