//! A record that only remembers what it was told.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use super::super::record::Record;
use super::super::wire::Exit;
use crate::container::{Health, Update};
use crate::network::{Attachment, Change, Mode, NetworkPlan, Networking, Published};
use crate::snapshot::{Place, Target};

/// What the record was told.
#[derive(Clone, Default)]
pub(in crate::monitor) struct FakeRecord(
    pub(in crate::monitor) Arc<Mutex<Vec<String>>>,
    bool,
    Option<PathBuf>,
    /// The events.
    pub(in crate::monitor) Arc<Mutex<Vec<String>>>,
    /// The networks.
    Arc<Mutex<Networking>>,
);

impl FakeRecord {
    /// On these networks, too.
    pub(in crate::monitor) fn connect(&self, networks: &[&str]) {
        let mut networking = self.4.lock().unwrap();
        networks.iter().for_each(|name| networking.push(Attachment::new(Mode::Shared((*name).into()))));
    }
}

pub(super) fn names(networking: &Networking) -> String {
    networking.attachments.iter().map(|one| one.mode.network()).collect::<Vec<_>>().join(" ")
}

impl Record for FakeRecord {
    fn started(&mut self) {
        self.1 = true;
    }
    fn rest(&mut self) {}
    fn is_unsettled(&self) -> bool {
        self.1
    }
    fn settle(&mut self) {
        if std::mem::take(&mut self.1) {
            self.0.lock().unwrap().push("started".into());
        }
    }
    fn resting(&mut self, exit: &Exit, error: &str) {
        self.settle();
        self.0.lock().unwrap().push(format!("resting {} {error}", exit.code).trim_end().into());
    }
    fn ended(&mut self, exit: &Exit, error: &str) {
        self.settle();
        self.0
            .lock()
            .unwrap()
            .push(format!("ended {} oom={} {error}", exit.code, exit.oom).trim_end().into());
    }
    fn paused(&mut self, paused: bool) {
        self.0.lock().unwrap().push(if paused { "paused" } else { "unpaused" }.into());
    }
    fn updated(&mut self, update: &Update) {
        self.0.lock().unwrap().push(format!("updated {:?}", update.memory));
    }
    fn checked(&mut self, health: &Health, changed: bool) {
        let last = health.log.last().map(|result| format!(" {} {}", result.exit_code, result.output));
        let changed = if changed { " changed" } else { "" };
        self.0.lock().unwrap().push(format!("{}{changed}{}", health.status, last.unwrap_or_default()));
    }
    fn networks(&self) -> Result<NetworkPlan, String> {
        Ok(NetworkPlan { networking: self.4.lock().unwrap().clone(), ..NetworkPlan::default() })
    }
    fn foresee(&self, change: &Change) -> Result<NetworkPlan, String> {
        let networking = self.4.lock().unwrap().changed("box", change).map_err(|error| error.to_string())?;
        Ok(NetworkPlan { networking, ..NetworkPlan::default() })
    }
    fn reconnect(&mut self, change: &Change) -> Result<NetworkPlan, String> {
        let foreseen = self.foresee(change)?;
        self.0.lock().unwrap().push(format!("on {}", names(&foreseen.networking)).trim_end().into());
        *self.4.lock().unwrap() = foreseen.networking.clone();
        Ok(foreseen)
    }
    fn published(&mut self, ports: Vec<Published>) {
        assert!(ports.is_empty());
    }
    fn begin_snapshot(&mut self, target: &Target, known: &[String]) -> Result<(), String> {
        assert_eq!(known, ["7"]);
        match target {
            Target::Name(name) if name == "taken" => Err("there is one".into()),
            Target::Name(name) => {
                self.2 = Some(name.into());
                Ok(())
            }
            Target::Directory(_) => Err("not here".into()),
        }
    }
    fn snapshot(&self) -> Option<Place> {
        let dir = self.2.clone()?;
        let below = if dir.ends_with("two") { vec!["one".into()] } else { Vec::new() };
        Some(Place { dir, below, follow: true })
    }
    fn keep_snapshot(&mut self) -> Result<(), String> {
        self.settle();
        let name = self.2.take().ok_or("none was begun")?;
        self.0.lock().unwrap().push(format!("snapshot {}", name.display()));
        Ok(())
    }
    fn drop_snapshot(&mut self) {
        self.settle();
        self.2 = None;
        self.0.lock().unwrap().push("no snapshot".into());
    }
    fn event(&mut self, action: &str, attributes: &[(&str, &str)]) {
        let more: String = attributes.iter().map(|(name, value)| format!(" {name}={value}")).collect();
        self.3.lock().unwrap().push(format!("{action}{more}"));
    }
}
