//! What a session says of its container to whoever keeps the record.

use super::wire::Exit;
use crate::container::{Health, Update};
use crate::network::{Change, NetworkPlan, Published};
use crate::snapshot::{Place, Target};

/// Remembers what became of the container.
pub(crate) trait Record {
    /// The main program runs. Noted, and written by [`Record::settle`]: the program's first byte is not to wait for it.
    fn started(&mut self);
    /// Something that was noted is not written yet.
    fn is_unsettled(&self) -> bool;
    /// Writes what was noted.
    fn settle(&mut self);
    /// It is over and will be started again, for this reason if it was a failure.
    fn resting(&mut self, exit: &Exit, error: &str);
    /// It is over, for this reason if it was a failure. All of the container's traces outside its record go now.
    fn ended(&mut self, exit: &Exit, error: &str);
    /// Its virtual CPUs were parked, or go on.
    fn paused(&mut self, paused: bool);
    /// Its limits were changed.
    fn updated(&mut self, update: &Update);
    /// It was checked; it may be another way than before.
    fn checked(&mut self, health: &Health, changed: bool);
    /// Its networks.
    ///
    /// # Errors
    /// The record cannot be read.
    fn networks(&self) -> Result<NetworkPlan, String>;
    /// What a change would make of them.
    ///
    /// # Errors
    /// Why it cannot be.
    fn foresee(&self, change: &Change) -> Result<NetworkPlan, String>;
    /// Changes them where they are recorded, in one step with its places on networks that are shared.
    ///
    /// # Errors
    /// Why it cannot be; nothing has changed then.
    fn reconnect(&mut self, change: &Change) -> Result<NetworkPlan, String>;
    /// These ports are published from now on.
    fn published(&mut self, ports: Vec<Published>);
    /// Begins a snapshot of it, which may build on one of those whose numbers are given.
    ///
    /// # Errors
    /// Why there can be none.
    fn begin_snapshot(&mut self, target: &Target, known: &[String]) -> Result<(), String>;
    /// Where and how the machine is to be saved, once a snapshot was begun.
    fn snapshot(&self) -> Option<Place>;
    /// The machine was saved: the snapshot is whole.
    ///
    /// # Errors
    /// Why it is not.
    fn keep_snapshot(&mut self) -> Result<(), String>;
    /// Leaves nothing of a snapshot that was begun.
    fn drop_snapshot(&mut self);
    /// Nothing is expected to happen soon: what was kept for speed can go.
    fn rest(&mut self);
    /// Something happened that is worth telling.
    fn event(&mut self, action: &str, attributes: &[(&str, &str)]);
}
