//! `servin snapshot` and `servin restore`.

use std::path::{Path, PathBuf};
use std::time::Instant;

use serde_json::{Value, json};
use servin_engine::container::short;
use servin_engine::monitor::wire::{Ask, SnapshotRequest, Tell};
use servin_engine::monitor::{self, Launch, What};
use servin_engine::snapshot::{Found, Snapshots, Target};
use servin_engine::store::{Store, now_ns};
use servin_engine::time::rfc3339;

use super::containers::{ask, each, open};
use crate::args::{self, Global, Snapshot};
use crate::error::{Error, Result};
use crate::filter::Filters;
use crate::listing::Format;
use crate::session::{self, End, Session, Watch};
use crate::{human, output, spec, terminal};

const COLUMNS: &[(&str, &str)] = &[
    ("NAME", "Name"),
    ("CONTAINER", "Container"),
    ("IMAGE", "Image"),
    ("MEMORY", "Memory"),
    ("CREATED", "CreatedSince"),
    ("PARENT", "Parent"),
    ("SIZE", "Size"),
];

/// Keys of `--filter`.
const FILTERS: &[&str] = &["name", "container", "image", "before", "since"];

/// Does what was asked.
pub(crate) fn run(global: &Global, began: Instant, typed: Snapshot) -> Result<u8> {
    match typed {
        Snapshot::Make { container, name, output, stop } => {
            let target = match (name, output) {
                (Some(name), _) => Target::Name(name),
                (None, output) => Target::Directory(absolute(Path::new(&output.unwrap_or_default()))?),
            };
            make(&open(global)?, &container, target, stop)
        }
        Snapshot::List { quiet, format, filter } => {
            let format = Format::new(format.as_deref(), quiet, "snapshot ls")?;
            let filters = Filters::new(&filter, FILTERS)?;
            let store = super::store(global)?;
            let snapshots = Snapshots::new(&store);
            let all = snapshots.list()?;
            let times = |key| {
                let time = |name: &str| Ok(snapshots.find(name)?.about.created_ns);
                filters.values(key).map(time).collect::<Result<Vec<i64>>>()
            };
            let (before, since) = (times("before")?, times("since")?);
            let is_wanted = |found: &&Found| {
                let created = found.about.created_ns;
                fits(&filters, found)
                    && before.iter().all(|time| created < *time)
                    && since.iter().all(|time| created > *time)
            };
            let rows: Vec<Value> = all.iter().filter(is_wanted).map(|found| row(found, &all)).collect();
            output::text(&format.show(&rows, COLUMNS, "Name")?);
            Ok(0)
        }
        Snapshot::Inspect { names, format } => inspect(&super::store(global)?, &names, format.as_deref()),
        Snapshot::Remove { names } => {
            let store = super::store(global)?;
            let names = Snapshots::new(&store).children_first(&names)?;
            each(&names, |name| {
                Snapshots::new(&store).remove(name)?;
                Ok(name.to_owned())
            })
        }
        Snapshot::Restore(typed) => restore(global, began, typed),
    }
}

/// Has a container saved, and prints the snapshot's name.
fn make(store: &Store, container: &str, target: Target, stop: bool) -> Result<u8> {
    let record = store.containers().find(container)?;
    let shown = match &target {
        Target::Name(name) => name.clone(),
        Target::Directory(path) => path.display().to_string(),
    };
    match ask(store, &record, &Ask::Snapshot(Box::new(SnapshotRequest { target, stop })))? {
        Some(Tell::Done) => {}
        Some(Tell::Exited(_)) if stop => {}
        Some(Tell::Failed(mut failure)) => {
            failure.code = 1;
            return Err(Error::Monitor(failure));
        }
        _ => return Err(servin_engine::Error::NotRunning { name: record.name }.into()),
    }
    output::text(&format!("{shown}\n"));
    Ok(0)
}

/// Starts a container that continues a snapshot, and watches it unless told otherwise.
fn restore(global: &Global, began: Instant, typed: args::Restore) -> Result<u8> {
    let name = typed.name.as_deref().map(spec::checked_name).transpose()?;
    let hostname = typed.hostname.as_deref().map(spec::checked_hostname).transpose()?;
    let publish = spec::published(&typed.publish)?;
    let keys = spec::detach_keys(typed.detach_keys.as_deref(), 125)?;
    // The store is closed before the fork.
    let found = {
        let text = typed.snapshot.to_str().ok_or_else(|| Error::Usage {
            what: format!("\"{}\" is not valid UTF-8", typed.snapshot.display()),
            verb: "restore".into(),
        })?;
        Snapshots::new(&super::store(global)?).find(text)?
    };
    let request = &found.about.config.request;
    if !publish.is_empty() && !request.network.can_publish() {
        let what = "-p, --publish needs a network of servin's, and the saved container has none".into();
        return Err(Error::Usage { what, verb: "restore".into() });
    }
    let watch = Watch {
        stdin: request.stdin && !typed.detach,
        terminal: request.terminal,
        sig_proxy: typed.sig_proxy,
        detach_keys: keys,
        detach: typed.detach,
    };
    let host = |what: &str| {
        let what = what.to_owned();
        move |source| Error::Host { what, source, code: 125 }
    };
    let signals = session::signals(&watch).map_err(host("take signals over"))?;
    let launch = Launch {
        data_root: Some(super::data_root(global).map_err(|error| error.with_code(125))?),
        size: terminal::size(),
        began,
        keep_stderr: global.log_level >= log::LevelFilter::Debug,
        warm: true,
        trace: None,
        what: What::Restore(Box::new(monitor::Restore {
            snapshot: found.path,
            name,
            hostname,
            publish,
            remove: typed.rm,
            detach: typed.detach,
        })),
    };
    let stream = launch.fork().map_err(|error| Error::Engine { error, code: 125 })?;
    let mut id = String::new();
    let created = |created: &str| id = created.to_owned();
    let mut session = Session::new(stream, watch, signals, created).map_err(host("watch the program"))?;
    let end = session.run();
    drop(session);
    match end {
        End::Exited(exit) => Ok(exit.code),
        End::Detached => {
            if typed.detach {
                output::text(&format!("{id}\n"));
            }
            Ok(0)
        }
        End::Failed(failure) => Err(Error::Monitor(failure)),
        End::Lost => Err(super::containers::lost(global, &id, 125)),
    }
}

fn inspect(store: &Store, names: &[String], format: Option<&str>) -> Result<u8> {
    let all = Snapshots::new(store).list()?;
    super::inspect::show("snapshot inspect", names, format, |name| {
        Ok(object(&Snapshots::new(store).find(name)?, &all))
    })
}

/// Whether the conditions fit that need nothing but the snapshot.
fn fits(filters: &Filters, snapshot: &Found) -> bool {
    let about = &snapshot.about;
    filters.any("name", |part| snapshot.name.contains(part))
        && filters.any("container", |name| about.name == name || about.id.starts_with(name))
        && filters.any("image", |name| image(snapshot) == name || about.image.as_deref() == Some(name))
}

fn image(snapshot: &Found) -> String {
    snapshot.about.config.request.root.name()
}

/// The snapshot's parent by the name that it has now, or had.
fn parent(snapshot: &Found, all: &[Found]) -> Option<String> {
    let parent = snapshot.about.parent.as_ref()?;
    let now = all.iter().find(|found| found.about.number.as_ref() == Some(&parent.number));
    Some(now.map_or(&parent.name, |found| &found.name).clone())
}

fn row(snapshot: &Found, all: &[Found]) -> Value {
    let about = &snapshot.about;
    json!({
        "Name": snapshot.name,
        "Container": about.name,
        "Image": image(snapshot),
        "Memory": human::size(about.config.request.memory),
        "CreatedAt": rfc3339(about.created_ns),
        "CreatedSince": human::ago(about.created_ns, now_ns()),
        "Parent": parent(snapshot, all).unwrap_or_default(),
        "Size": human::size(snapshot.size),
    })
}

fn object(snapshot: &Found, all: &[Found]) -> Value {
    let about = &snapshot.about;
    json!({
        "Name": snapshot.name,
        "Path": snapshot.path.display().to_string(),
        "Container": { "Id": about.id, "Name": about.name, "ShortId": short(&about.id) },
        "Image": about.image,
        "ImageName": image(snapshot),
        "Args": about.config.plan.argv.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "Memory": about.config.request.memory,
        "Cpus": about.config.request.cpus.count(),
        "Volumes": about.volumes.iter().filter_map(|volume| volume.name.clone()).collect::<Vec<_>>(),
        "Hypervisor": about.hypervisor,
        "Servin": about.servin,
        "Created": rfc3339(about.created_ns),
        "Number": about.number,
        "Parent": parent(snapshot, all),
        "Size": snapshot.size,
    })
}

fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).map_err(|source| {
        let what = format!("find {}", path.display());
        Error::Host { what, source, code: 1 }
    })
}
