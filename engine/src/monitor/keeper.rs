//! What remains of a container outside its machine: the row, the run directory and the events, kept by its monitor.

use super::record::Record;
use super::wire::Exit;
use crate::container::{Config, Health, Request, RunDir, Update, remove_container};
use crate::events::Events;
use crate::network::{Change, NetworkPlan, Networks, Published};
use crate::snapshot::{About, Draft, Place, Snapshots, Target};
use crate::store::{self, State, Store, now_ns};
use crate::{Error, Result, chain};

/// The container's row and run directory.
#[derive(Debug)]
pub(crate) struct Keeper {
    pub(super) store: Store,
    record: store::Record,
    /// The row goes with the run.
    remove: bool,
    /// The machine does not run the container, so that the row stays as it is.
    files_only: bool,
    run: Option<RunDir>,
    /// The record has more than the row.
    unsettled: bool,
    events: Events,
    /// The image or directory, as it was written.
    image: String,
    /// Events that are told when nobody waits any more.
    untold: Vec<&'static str>,
    /// A snapshot on its way.
    draft: Option<Draft>,
}

impl Keeper {
    /// Of a container whose row is there; `files_only` for a machine that serves files alone.
    pub(super) fn new(
        store: Store,
        record: store::Record,
        run: RunDir,
        request: &Request,
        files_only: bool,
    ) -> Self {
        Keeper {
            events: Events::new(store.root()),
            store,
            record,
            remove: request.remove && !files_only,
            files_only,
            run: Some(run),
            unsettled: false,
            image: request.root.name(),
            untold: Vec::new(),
            draft: None,
        }
    }

    /// Tells the events of the start.
    fn tell(&mut self) {
        for action in std::mem::take(&mut self.untold) {
            self.tell_of(action, &[]);
        }
    }

    /// Writes the row, and takes the name from it: somebody may have given the container another one.
    fn update(&mut self) -> Result<()> {
        self.record.name = self.store.containers().update_named(&self.record)?;
        Ok(())
    }

    fn write(&mut self, what: &str) {
        if let Err(error) = self.update() {
            ::log::error!("cannot record {what}: {}", chain(&error));
        }
    }

    /// An event, with the name that is known.
    fn tell_of(&mut self, action: &str, attributes: &[(&str, &str)]) {
        let own = [("image", self.image.as_str()), ("name", self.record.name.as_str())];
        self.events.add("container", action, &self.record.id, &[&own, attributes].concat());
    }

    fn over(&mut self, state: State, exit: &Exit, error: &str) {
        self.unsettled = false;
        self.record.state = state;
        self.record.exit_code = Some(i32::from(exit.code));
        self.record.oom = exit.oom;
        self.record.error = error.to_owned();
        self.record.finished_ns = Some(now_ns());
    }

    fn tell_end(&mut self, exit: &Exit) {
        self.tell();
        if exit.oom {
            self.tell_of("oom", &[]);
        }
        self.tell_of("die", &[("exitCode", &exit.code.to_string())]);
    }
}

impl Record for Keeper {
    fn started(&mut self) {
        if self.files_only {
            return;
        }
        self.record.state = State::Running;
        self.record.started_ns = Some(now_ns());
        self.record.pid = i32::try_from(std::process::id()).ok();
        (self.record.exit_code, self.record.oom) = (None, false);
        self.record.error.clear();
        self.unsettled = true;
        self.untold.push("start");
    }

    fn rest(&mut self) {
        // What the database has read, and what the start took: the monitor of a container that runs for days needs neither.
        if let Err(error) = self.store.db().release_memory() {
            ::log::info!("the database keeps its memory: {error}");
        }
        crate::process::give_memory_back();
    }

    fn is_unsettled(&self) -> bool {
        self.unsettled
    }

    fn settle(&mut self) {
        if std::mem::take(&mut self.unsettled) {
            self.write("that the container runs");
            self.tell();
        }
    }

    fn resting(&mut self, exit: &Exit, error: &str) {
        self.over(State::Restarting, exit, error);
        self.record.restarts = self.record.restarts.saturating_add(1);
        self.write("that the container is started again");
        self.tell_end(exit);
    }

    fn ended(&mut self, exit: &Exit, error: &str) {
        let mut done = Ok(());
        self.draft = None;
        if !self.files_only {
            self.over(State::Exited, exit, error);
            self.record.pid = None;
            done = self.update().and_then(|()| {
                if self.remove { remove_container(&self.store, &self.record, true) } else { Ok(()) }
            });
        }
        let removed = self.run.take().map_or(Ok(()), RunDir::remove);
        if !self.files_only {
            self.tell_end(exit);
            if self.remove && done.is_ok() {
                self.tell_of("destroy", &[]);
            }
        }
        for error in [done, removed].into_iter().filter_map(Result::err) {
            ::log::error!("cannot record the container's end: {}", chain(&error));
        }
    }

    fn paused(&mut self, paused: bool) {
        self.record.state = if paused { State::Paused } else { State::Running };
        self.write("the pause");
        self.tell_of(if paused { "pause" } else { "unpause" }, &[]);
    }

    fn updated(&mut self, update: &Update) {
        if let Err(error) = change(&mut self.record, update).and_then(|()| self.update()) {
            ::log::error!("cannot record the new limits: {}", chain(&error));
        }
        self.tell_of("update", &[]);
    }

    fn checked(&mut self, health: &Health, changed: bool) {
        if let Err(error) = health.write(&self.store.container_dir(&self.record.id)) {
            ::log::error!("cannot record the container's health: {}", chain(&error));
        }
        if changed {
            self.event(&format!("health_status: {}", health.status), &[]);
        }
    }

    fn networks(&self) -> Result<NetworkPlan, String> {
        let config = config(&self.record).map_err(|error| chain(&error))?;
        Ok(config.plan.networks(&config.request))
    }

    fn foresee(&self, change: &Change) -> Result<NetworkPlan, String> {
        let mut config = config(&self.record).map_err(|error| chain(&error))?;
        let networking = &mut config.request.network;
        *networking = networking.changed(&self.record.name, change).map_err(|error| chain(&error))?;
        Ok(config.plan.networks(&config.request))
    }

    fn reconnect(&mut self, change: &Change) -> Result<NetworkPlan, String> {
        let done = Networks::new(&self.store).apply(&mut self.record, change);
        done.map_err(|error| chain(&error))?;
        self.networks()
    }

    fn published(&mut self, ports: Vec<Published>) {
        let done = config(&self.record).and_then(|mut config| {
            if config.plan.ports == ports {
                return Ok(());
            }
            config.plan.ports = ports;
            self.record.config = json(&config)?;
            self.update()
        });
        if let Err(error) = done {
            ::log::error!("cannot record the published ports: {}", chain(&error));
        }
    }

    fn begin_snapshot(&mut self, target: &Target, known: &[String]) -> Result<(), String> {
        let draft = Snapshots::new(&self.store).draft(target, known);
        self.draft = Some(draft.map_err(|error| chain(&error))?);
        Ok(())
    }

    fn snapshot(&self) -> Option<Place> {
        self.draft.as_ref().map(Draft::place)
    }

    fn keep_snapshot(&mut self) -> Result<(), String> {
        let draft = self.draft.take().ok_or("no snapshot was begun")?;
        About::new(&self.store, &self.record)
            .and_then(|about| draft.finish(&about))
            .map_err(|error| chain(&error))
    }

    fn drop_snapshot(&mut self) {
        self.draft = None;
    }

    fn event(&mut self, action: &str, attributes: &[(&str, &str)]) {
        // After the end the name is that of the row's last writing, and the row may be gone.
        if self.run.is_some() {
            match self.store.containers().name(&self.record.id) {
                Ok(name) => self.record.name = name.unwrap_or(std::mem::take(&mut self.record.name)),
                Err(error) => ::log::warn!("cannot look up the container's name: {}", chain(&error)),
            }
        }
        self.tell_of(action, attributes);
    }
}

/// Writes new limits into a container's row.
///
/// # Errors
/// If the row's configuration cannot be read.
pub fn change(record: &mut store::Record, update: &Update) -> Result<()> {
    let mut config = config(record)?;
    update.apply(&mut config.request);
    record.config = json(&config)?;
    Ok(())
}

fn config(record: &store::Record) -> Result<Config> {
    let bad = |source| Error::Json { what: "the container's record".into(), source };
    serde_json::from_str(&record.config).map_err(bad)
}

fn json(config: &Config) -> Result<String> {
    let bad = |source| Error::Json { what: "the container's record".into(), source };
    serde_json::to_string(config).map_err(bad)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::container::RootSource;
    use crate::events::Reader;

    /// What was told: actions with the container's name and the old one.
    fn told(reader: &mut Reader) -> Vec<String> {
        let next = || reader.next_event().unwrap();
        std::iter::from_fn(next)
            .map(|event| {
                let of = |name: &str| event.actor.attributes.get(name).cloned().unwrap_or_default();
                format!("{} {} {}", event.action, of("name"), of("oldName")).trim_end().to_owned()
            })
            .collect()
    }

    #[test]
    fn events_have_the_name_that_the_container_has_then() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let mut reader = Reader::open(&store).unwrap();
        let mut request = Request::new(RootSource::Directory("/r".into()));
        (request.name, request.args) = (Some("k1".into()), vec!["x".into()]);
        let record = crate::container::create(&store, &request).unwrap();
        assert_eq!(told(&mut reader), ["create k1"], "before anything starts");
        let run = RunDir::create(store.root(), &record.id).unwrap();
        let mut keeper = Keeper::new(store, record.clone(), run, &request, false);
        keeper.started();
        keeper.settle();
        let other = Store::open(dir.path()).unwrap();
        Networks::new(&other).rename(&record, "k2").unwrap();
        keeper.event("kill", &[]);
        Networks::new(&other).rename(&record, "k3").unwrap();
        keeper.ended(&Exit { code: 0, oom: false }, "");
        keeper.event("stop", &[]);
        let expected = ["start k1", "rename k2 /k1", "kill k2", "rename k3 /k1", "die k3", "stop k3"];
        assert_eq!(told(&mut reader), expected);
    }
}
