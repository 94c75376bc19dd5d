//! The pages that a restored guest writes first: a list beside the snapshot, by which later restores copy them at once
//! instead of one by one, each with a fault of the guest and one of the host. Nothing depends on it but speed.

use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};
use servin_devices::state::{self, State};

use crate::memory::Pages;

/// Most pages that are copied before the guest runs: 1 MiB of memory that a clone has for itself, whether its program writes
/// them or not.
const MOST: u32 = 240;

#[derive(Debug, Serialize, Deserialize)]
struct Early {
    /// The snapshot's number.
    id: [u8; 16],
    runs: Vec<Pages>,
}

impl State for Early {
    const NAME: &'static str = "the list of early pages";
    const VERSION: u16 = 1;
}

/// The list of the snapshot `id`; `None` where there is none, or one of something else.
pub(super) fn read(path: &Path, id: &[u8; 16]) -> Option<Vec<Pages>> {
    let early: Early = state::decode(&fs::read(path).ok()?).ok()?;
    let total = early.runs.iter().try_fold(0_u32, |sum, run| sum.checked_add(run.count))?;
    (early.id == *id && total <= MOST).then_some(early.runs)
}

/// The list of these pages, the longest runs if there are too many.
pub(super) fn encode(id: [u8; 16], mut runs: Vec<Pages>) -> Result<Vec<u8>, state::StateError> {
    runs.sort_by_key(|run| std::cmp::Reverse(run.count));
    let mut left = MOST;
    runs.retain_mut(|run| {
        run.count = run.count.min(left);
        left -= run.count;
        run.count > 0
    });
    runs.sort_by_key(|run| run.first);
    state::encode(&Early { id, runs })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_runs_are_kept_in_order_and_only_for_their_snapshot() {
        let runs = [(9, 200), (1, 3), (500, 100), (5, 1)].map(|(first, count)| Pages { first, count });
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("early");
        assert_eq!(read(&path, &[1; 16]), None);
        fs::write(&path, encode([1; 16], runs.to_vec()).unwrap()).unwrap();
        let kept = [(9, 200), (500, MOST - 200)].map(|(first, count)| Pages { first, count });
        assert_eq!(read(&path, &[1; 16]).unwrap(), kept);
        assert_eq!(read(&path, &[2; 16]), None);
    }
}
