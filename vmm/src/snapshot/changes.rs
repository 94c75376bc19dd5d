//! A snapshot that holds only what changed since another one, its parent: which one that is, and which pages are told.

use std::fmt;

use serde::{Deserialize, Serialize};
use servin_devices::state::State;

use crate::error::Error;
use crate::memory::Pages;

/// Bytes of a page.
pub(crate) const PAGE: u64 = 0x1000;

/// The number of a snapshot, drawn when it is made: no two have the same.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct SnapshotId(pub(super) [u8; 16]);

impl fmt::Display for SnapshotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for SnapshotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// What a snapshot with a parent says besides.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Changes {
    pub(super) parent: SnapshotId,
    /// The pages that its memory file has; the others are its parent's.
    pub(super) pages: Vec<Pages>,
}

impl State for Changes {
    const NAME: &'static str = "the pages that changed";
    const VERSION: u16 = 1;
}

impl Changes {
    /// The pages must be in order and lie within RAM of `bytes`.
    pub(super) fn check(&self, bytes: u64) -> Result<(), Error> {
        let mut end = 0;
        for run in &self.pages {
            let first = u64::from(run.first);
            if run.count == 0 || first < end {
                return Err(Error::Snapshot("its changed pages are out of order".to_owned()));
            }
            end = first + u64::from(run.count);
        }
        if end > bytes / PAGE {
            return Err(Error::Snapshot("its changed pages lie behind the end of memory".to_owned()));
        }
        Ok(())
    }
}

/// Whether a page is one of those, which are in order.
pub(super) fn has(runs: &[Pages], page: u32) -> bool {
    let after = runs.partition_point(|run| run.first <= page);
    let run = after.checked_sub(1).and_then(|at| runs.get(at));
    run.is_some_and(|run| page - run.first < run.count)
}

/// Any bytes as the list of a snapshot of 64 MiB: one that is taken tells pages of RAM, each once and in order, and is found
/// in it what it tells. The body of a fuzz target.
#[cfg(any(test, feature = "testing"))]
pub fn fuzz(data: &[u8]) {
    const BYTES: u64 = 64 << 20;
    let Ok(changes) = servin_devices::state::decode::<Changes>(data) else { return };
    if changes.check(BYTES).is_err() {
        return;
    }
    let mut told = Vec::new();
    for run in &changes.pages {
        told.extend((0..run.count).map(|at| run.first + at));
    }
    assert!(told.windows(2).all(|two| two.first() < two.get(1)), "pages out of order: {changes:?}");
    let all = 0..u32::try_from(BYTES / PAGE).unwrap_or(0);
    let found: Vec<u32> = all.filter(|page| has(&changes.pages, *page)).collect();
    assert_eq!(found, told, "{changes:?}");
    let mut joined = Vec::new();
    told.iter().for_each(|page| push(&mut joined, *page));
    assert!(joined.len() <= changes.pages.len() && told.iter().all(|page| has(&joined, *page)));
}

/// Adds a page behind all others.
pub(crate) fn push(runs: &mut Vec<Pages>, page: u32) {
    match runs.last_mut() {
        Some(run) if run.first.checked_add(run.count) == Some(page) => run.count += 1,
        _ => runs.push(Pages { first: page, count: 1 }),
    }
}

/// The pages whose bits are set, counted through the regions: `regions` has the bytes and the bits of each.
pub(crate) fn runs<'a>(regions: impl IntoIterator<Item = (u64, &'a [u64])>) -> Vec<Pages> {
    let (mut runs, mut base) = (Vec::new(), 0);
    for (bytes, words) in regions {
        let pages = bytes / PAGE;
        for (index, word) in (0_u64..).zip(words) {
            let mut rest = *word;
            while rest != 0 {
                let page = index * 64 + u64::from(rest.trailing_zeros());
                rest &= rest - 1;
                if page < pages
                    && let Ok(page) = u32::try_from(base + page)
                {
                    push(&mut runs, page);
                }
            }
        }
        base += pages;
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pages(runs: &[(u32, u32)]) -> Vec<Pages> {
        runs.iter().map(|(first, count)| Pages { first: *first, count: *count }).collect()
    }

    #[test]
    fn set_bits_become_runs_through_the_regions_and_bits_behind_their_end_do_not_count() {
        let (low, high) = ([1 << 63 | 0b110, 1 | 1 << 9], [0b11]);
        let regions = [(66 * PAGE, &low[..]), (PAGE, &high[..])];
        assert_eq!(runs(regions), pages(&[(1, 2), (63, 2), (66, 1)]));
    }

    #[test]
    fn pages_out_of_order_or_out_of_memory_are_refused() {
        let check = |runs: &[(u32, u32)]| {
            Changes { parent: SnapshotId([0; 16]), pages: pages(runs) }.check(8 * PAGE).is_ok()
        };
        assert!(check(&[]) && check(&[(0, 1), (1, 1), (7, 1)]));
        assert!(!check(&[(0, 0)]) && !check(&[(0, 2), (1, 1)]) && !check(&[(3, 1), (0, 1)]));
        assert!(!check(&[(7, 2)]) && !check(&[(u32::MAX, u32::MAX)]));
    }
}
