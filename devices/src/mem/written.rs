//! The pages of a region that devices wrote, once somebody wants to know.

use std::num::NonZero;
use std::sync::OnceLock;

use vm_memory::bitmap::{AtomicBitmap, Bitmap, RefSlice, WithBitmapSlice};

const PAGE: NonZero<usize> = NonZero::new(0x1000).unwrap();

/// What a region of guest memory keeps of the pages that devices wrote: nothing, until they are to be counted.
#[derive(Debug, Default)]
pub struct Written(OnceLock<AtomicBitmap>);

impl Written {
    /// Counts from now on the pages, of 4 KiB, of a region of `size` bytes.
    pub fn count(&self, size: u64) {
        self.0.get_or_init(|| AtomicBitmap::new(usize::try_from(size).unwrap_or(usize::MAX), PAGE));
    }

    /// One bit for each page that was written since the last call; `None` where they are not counted.
    pub fn take(&self) -> Option<Vec<u64>> {
        self.0.get().map(AtomicBitmap::get_and_reset)
    }
}

impl<'a> WithBitmapSlice<'a> for Written {
    type S = RefSlice<'a, Written>;
}

impl Bitmap for Written {
    fn mark_dirty(&self, offset: usize, len: usize) {
        if let Some(pages) = self.0.get() {
            pages.mark_dirty(offset, len);
        }
    }

    fn dirty_at(&self, offset: usize) -> bool {
        self.0.get().is_some_and(|pages| pages.dirty_at(offset))
    }

    fn slice_at(&self, offset: usize) -> RefSlice<'_, Written> {
        RefSlice::new(self, offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_counted_from_when_they_are_asked_for_until_they_are_taken() {
        let written = Written::default();
        written.mark_dirty(0, 1);
        assert_eq!(written.take(), None);
        written.count(0x4000);
        assert!(!written.dirty_at(0));
        written.slice_at(0x1000).slice_at(0x800).mark_dirty(0x7ff, 2);
        // Once more changes nothing.
        written.count(0x4000);
        assert!(!written.dirty_at(0) && written.dirty_at(0x1000) && written.dirty_at(0x2000));
        assert_eq!(written.take().unwrap(), [0b110]);
        assert_eq!(written.take().unwrap(), [0]);
    }
}
