//! Who has which lock on a share: by file and owner, ranges merged and split as POSIX asks (fcntl(2), "Advisory record
//! locking"), and `flock(2)` locks by open file.
//!
//! The table knows the locks of one guest. Those of others are the host's kernel's business; a file system in memory has
//! no others.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::vfs::{Errno, Handle, LAST_BYTE, Lock, LockKind, LockOwner, NodeId};

/// Owners with locks on a file that one guest may have at once. Each may cost a descriptor.
pub(super) const MAX_OWNERS: usize = 256;
/// Ranges under lock that one guest may have at once. Each costs memory of the host's kernel.
pub(super) const MAX_RANGES: usize = 4096;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Range {
    start: u64,
    /// The last byte.
    end: u64,
    kind: LockKind,
}

/// What one owner has on one file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Held {
    /// The open file that it was locked through last.
    handle: Handle,
    pid: u32,
    /// In order, none touching its neighbour of the same kind.
    ranges: Vec<Range>,
}

/// See the module's description.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Table {
    held: BTreeMap<(NodeId, LockOwner), Held>,
    ranges: usize,
    flocks: BTreeMap<Handle, (NodeId, LockKind)>,
}

impl Table {
    /// A lock of another owner on this table that keeps `owner` from taking `wish`.
    pub(super) fn conflict(&self, node: NodeId, owner: LockOwner, wish: &Lock) -> Option<Lock> {
        let others = self.held.range((node, 0)..=(node, LockOwner::MAX));
        others.filter(|((_, other), _)| *other != owner).find_map(|(_, held)| {
            let meets = |range: &&Range| {
                range.start <= wish.end
                    && wish.start <= range.end
                    && (range.kind == LockKind::Exclusive || wish.kind == LockKind::Exclusive)
            };
            let range = held.ranges.iter().find(meets)?;
            Some(Lock { kind: range.kind, start: range.start, end: range.end, pid: held.pid })
        })
    }

    /// Whether `owner` may have one more lock on `node`, where `most` owners may have any.
    pub(super) fn room(&self, node: NodeId, owner: LockOwner, most: usize) -> Result<(), Errno> {
        let owner_fits = self.held.len() < most || self.held.contains_key(&(node, owner));
        // A lock in the middle of another makes two more.
        if owner_fits && self.ranges + 2 <= MAX_RANGES { Ok(()) } else { Err(Errno::NOLCK) }
    }

    /// `owner` has `lock` now, in place of what it had there.
    pub(super) fn set(&mut self, node: NodeId, owner: LockOwner, handle: Handle, lock: &Lock) {
        let new = Range { start: lock.start, end: lock.end, kind: lock.kind };
        let held =
            self.held.entry((node, owner)).or_insert(Held { handle, pid: lock.pid, ranges: Vec::new() });
        (held.handle, held.pid) = (handle, lock.pid);
        self.ranges -= held.ranges.len();
        cut(&mut held.ranges, new.start, new.end);
        let at = held.ranges.partition_point(|range| range.start < new.start);
        held.ranges.insert(at, new);
        held.ranges.dedup_by(|next, range| {
            let joins = range.kind == next.kind && range.end.checked_add(1) == Some(next.start);
            if joins {
                range.end = next.end;
            }
            joins
        });
        self.ranges += held.ranges.len();
    }

    /// Whether a part of an owner's locks can be given up: a hole in the middle of one makes one more.
    pub(super) fn room_for_hole(
        &self,
        node: NodeId,
        owner: LockOwner,
        start: u64,
        end: u64,
    ) -> Result<(), Errno> {
        let splits = self
            .held
            .get(&(node, owner))
            .is_some_and(|held| held.ranges.iter().any(|range| range.start < start && end < range.end));
        if splits && self.ranges >= MAX_RANGES { Err(Errno::NOLCK) } else { Ok(()) }
    }

    /// `owner` gives a range up; true when it has no lock on the file any more.
    pub(super) fn unset(&mut self, node: NodeId, owner: LockOwner, start: u64, end: u64) -> bool {
        let Some(held) = self.held.get_mut(&(node, owner)) else { return true };
        self.ranges -= held.ranges.len();
        cut(&mut held.ranges, start, end);
        self.ranges += held.ranges.len();
        let empty = held.ranges.is_empty();
        if empty {
            self.held.remove(&(node, owner));
        }
        empty
    }

    /// All that `owner` has on `node`.
    #[cfg(any(test, unix))]
    pub(super) fn of(&self, node: NodeId, owner: LockOwner) -> Vec<Lock> {
        let held = self.held.get(&(node, owner));
        held.map_or_else(Vec::new, |held| {
            let lock =
                |range: &Range| Lock { kind: range.kind, start: range.start, end: range.end, pid: held.pid };
            held.ranges.iter().map(lock).collect()
        })
    }

    /// Every owner, with the open file that it locked through last.
    pub(super) fn owners(&self) -> Vec<(NodeId, LockOwner, Handle)> {
        self.held.iter().map(|(&(node, owner), held)| (node, owner, held.handle)).collect()
    }

    /// Takes the locks of an open file that is closed away: its own `flock(2)` one, and those that were last taken
    /// through it, for their owner has no other descriptor of it. Returns the owners that have none any more.
    pub(super) fn release(&mut self, handle: Handle) -> Vec<(NodeId, LockOwner)> {
        self.flocks.remove(&handle);
        let gone: Vec<_> =
            self.held.iter().filter(|(_, held)| held.handle == handle).map(|(&key, _)| key).collect();
        for &(node, owner) in &gone {
            self.unset(node, owner, 0, LAST_BYTE);
        }
        gone
    }

    /// An open file whose `flock(2)` lock keeps `handle` from taking one of this kind.
    pub(super) fn flock_conflict(&self, node: NodeId, handle: Handle, kind: LockKind) -> bool {
        self.flocks.iter().any(|(&other, &(locked, have))| {
            other != handle && locked == node && (have == LockKind::Exclusive || kind == LockKind::Exclusive)
        })
    }

    /// The `flock(2)` lock of an open file is this one now.
    pub(super) fn set_flock(&mut self, node: NodeId, handle: Handle, kind: Option<LockKind>) {
        match kind {
            Some(kind) => drop(self.flocks.insert(handle, (node, kind))),
            None => drop(self.flocks.remove(&handle)),
        }
    }

    /// Every `flock(2)` lock.
    pub(super) fn flocks(&self) -> Vec<(Handle, LockKind)> {
        self.flocks.iter().map(|(&handle, &(_, kind))| (handle, kind)).collect()
    }

    /// No lock is left.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}

/// Takes the bytes `start` to `end` out of all ranges.
fn cut(ranges: &mut Vec<Range>, start: u64, end: u64) {
    let old = std::mem::take(ranges);
    for range in old {
        if range.end < start || end < range.start {
            ranges.push(range);
            continue;
        }
        if range.start < start {
            ranges.push(Range { end: start - 1, ..range });
        }
        if end < range.end {
            ranges.push(Range { start: end + 1, ..range });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lock(kind: LockKind, start: u64, end: u64) -> Lock {
        Lock { kind, start, end, pid: 1 }
    }

    fn spans(table: &Table) -> Vec<(LockKind, u64, u64)> {
        table.of(5, 1).iter().map(|lock| (lock.kind, lock.start, lock.end)).collect()
    }

    #[test]
    fn ranges_of_one_owner_replace_merge_and_split() {
        use LockKind::{Exclusive as E, Shared as S};
        let mut table = Table::default();
        table.set(5, 1, 9, &lock(S, 0, 9));
        table.set(5, 1, 9, &lock(S, 10, 19));
        assert_eq!(spans(&table), [(S, 0, 19)]);
        table.set(5, 1, 9, &lock(E, 5, 7));
        assert_eq!(spans(&table), [(S, 0, 4), (E, 5, 7), (S, 8, 19)]);
        assert!(!table.unset(5, 1, 3, 8));
        assert_eq!(spans(&table), [(S, 0, 2), (S, 9, 19)]);
        table.set(5, 1, 9, &lock(S, 2, 8));
        assert_eq!(spans(&table), [(S, 0, 19)]);
        table.set(5, 1, 9, &lock(E, 20, LAST_BYTE));
        assert!(!table.unset(5, 1, 0, LAST_BYTE - 1));
        assert!(table.unset(5, 1, LAST_BYTE, LAST_BYTE) && table.held.is_empty());
        assert_eq!(table.ranges, 0);
    }

    #[test]
    fn owners_and_ranges_are_bounded() {
        let mut table = Table::default();
        for n in 0..(MAX_RANGES / 2) as u64 - 1 {
            table.room(5, 1, MAX_OWNERS).unwrap();
            table.set(5, 1, 9, &lock(LockKind::Shared, n * 10, n * 10 + 3));
        }
        for n in 0..MAX_RANGES as u64 {
            if table.room(5, 1, MAX_OWNERS).is_err() {
                break;
            }
            table.set(5, 1, 9, &lock(LockKind::Exclusive, n * 10 + 1, n * 10 + 1));
        }
        assert_eq!(table.room(5, 1, MAX_OWNERS), Err(Errno::NOLCK));
        let mut table = Table::default();
        for owner in 0..MAX_OWNERS as u64 {
            table.room(5, owner, MAX_OWNERS).unwrap();
            table.set(5, owner, 9, &lock(LockKind::Shared, 0, 1));
        }
        assert_eq!(table.room(5, 9999, MAX_OWNERS), Err(Errno::NOLCK));
        table.room(5, 0, MAX_OWNERS).unwrap();
        assert_eq!(table.release(9).len(), MAX_OWNERS);
        table.room(5, 9999, MAX_OWNERS).unwrap();
    }
}
