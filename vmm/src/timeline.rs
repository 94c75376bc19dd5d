//! When a VM reached each of the points that boot time is made of.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A point in the life of a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Mark {
    /// The process that asked for the VM was executed. Given by the caller.
    Exec,
    /// The machine exists: memory, vCPUs and devices.
    Created,
    /// The first vCPU is about to execute its first instruction (of the kernel, or of a restored guest).
    Entered,
    /// PID 1 of the guest said hello. Marked by whoever talks to it.
    Init,
    /// The first byte of the workload's output arrived. Marked by whoever reads it.
    FirstByte,
    /// The VM ended.
    Exit,
}

impl Mark {
    /// All of them, in order.
    pub const ALL: [Self; 6] =
        [Self::Exec, Self::Created, Self::Entered, Self::Init, Self::FirstByte, Self::Exit];

    /// Its name in tables and JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Exec => "exec",
            Self::Created => "created",
            Self::Entered => "entered",
            Self::Init => "init",
            Self::FirstByte => "first_byte",
            Self::Exit => "exit",
        }
    }
}

/// The marks of one VM. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Timeline(Arc<Mutex<[Option<Instant>; Mark::ALL.len()]>>);

impl Timeline {
    /// A timeline without marks.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Marks a point now. The first mark of a point stays.
    pub fn mark(&self, mark: Mark) {
        self.mark_at(mark, Instant::now());
    }

    /// Marks a point that was reached at `when`. The first mark of a point stays.
    pub fn mark_at(&self, mark: Mark, when: Instant) {
        let mut marks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(slot) = marks.get_mut(mark as usize) {
            slot.get_or_insert(when);
        }
    }

    /// When a point was reached.
    #[must_use]
    pub fn at(&self, mark: Mark) -> Option<Instant> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(mark as usize).copied().flatten()
    }

    /// From one point to a later one; `None` when one was not reached or they come in the other order.
    #[must_use]
    pub fn between(&self, from: Mark, to: Mark) -> Option<Duration> {
        self.at(to)?.checked_duration_since(self.at(from)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_mark_of_a_point_stays() {
        let timeline = Timeline::new();
        let start = Instant::now();
        timeline.mark_at(Mark::Exec, start);
        timeline.mark_at(Mark::Created, start + Duration::from_millis(3));
        timeline.mark_at(Mark::Created, start + Duration::from_millis(9));
        assert_eq!(timeline.between(Mark::Exec, Mark::Created), Some(Duration::from_millis(3)));
        assert_eq!(timeline.between(Mark::Created, Mark::Exec), None);
        assert_eq!(timeline.between(Mark::Exec, Mark::Exit), None);
    }
}
