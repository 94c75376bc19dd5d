//! `servin ps`.

use std::cell::OnceCell;

use serde_json::{Value, json};
use servin_engine::container::{Config, Health, RootSource, short};
use servin_engine::image::{Digest, Images};
use servin_engine::network::{Mode, Networking};
use servin_engine::store::{Record, State, Store, disk_usage, now_ns};
use servin_engine::time::rfc3339;
use servin_engine::volume::Volumes;

use super::containers::{config, open};
use super::port;
use crate::args::{Global, Ps};
use crate::error::{Error, Result};
use crate::filter::{Filters, bad};
use crate::listing::Format;
use crate::{human, output};

const COLUMNS: &[(&str, &str)] = &[
    ("CONTAINER ID", "ID"),
    ("IMAGE", "Image"),
    ("COMMAND", "Command"),
    ("CREATED", "RunningFor"),
    ("STATUS", "Status"),
    ("PORTS", "Ports"),
    ("NAMES", "Names"),
];
/// Keys of `--filter`.
const FILTERS: &[&str] = &[
    "id",
    "name",
    "label",
    "label!",
    "status",
    "exited",
    "ancestor",
    "before",
    "since",
    "volume",
    "network",
    "health",
    "restart-policy",
];
const STATES: &[&str] = &["created", "restarting", "running", "removing", "paused", "exited", "dead"];
const POLICIES: &[&str] = &["no", "on-failure", "always", "unless-stopped"];
const HEALTH: &[&str] = &["starting", "healthy", "unhealthy", "none"];

/// Prints the containers, the newest first.
pub(crate) fn run(global: &Global, typed: &Ps) -> Result<u8> {
    let format = Format::new(typed.format.as_deref(), typed.quiet, "ps")?;
    let filters = Filters::new(&typed.filter, FILTERS)?;
    let last = typed.last.as_deref().map(count).transpose()?;
    let store = open(global)?;
    let conditions = Conditions::new(&filters, &store)?;
    // A state that is asked for is shown, and so is how one ended.
    let all = typed.all || last.is_some() || filters.has("status") || filters.has("exited");
    let mut rows = Vec::new();
    for record in store.containers().list()? {
        let lives = matches!(record.state, State::Running | State::Paused | State::Restarting);
        let found = Found { store: &store, record, config: OnceCell::new() };
        if (lives || all) && conditions.take(&found)? {
            rows.push(row(&found, typed.no_trunc, typed.size)?);
        }
    }
    rows.truncate(last.unwrap_or(usize::MAX));
    let mut columns = COLUMNS.to_vec();
    if typed.size {
        columns.push(("SIZE", "Size"));
    }
    output::text(&format.show(&rows, &columns, "ID")?);
    Ok(0)
}

/// The names of the containers that do not run and that these conditions fit, the oldest first.
pub(super) fn resting(store: &Store, words: &[String]) -> Result<Vec<String>> {
    let filters = Filters::new(words, FILTERS)?;
    let conditions = Conditions::new(&filters, store)?;
    let mut names = Vec::new();
    for record in store.containers().list()?.into_iter().rev() {
        let rests = matches!(record.state, State::Created | State::Exited);
        let found = Found { store, record, config: OnceCell::new() };
        if rests && conditions.take(&found)? {
            names.push(found.record.name);
        }
    }
    Ok(names)
}

fn count(text: &str) -> Result<usize> {
    // As with docker, a number below 0 is no limit.
    match text.parse::<i64>() {
        Ok(number) => Ok(usize::try_from(number).unwrap_or(usize::MAX)),
        Err(_) => Err(Error::Value {
            flag: "-n, --last",
            value: text.to_owned(),
            why: "it is a number".into(),
            code: 1,
        }),
    }
}

/// A container with what has been read of it.
struct Found<'a> {
    store: &'a Store,
    record: Record,
    config: OnceCell<Config>,
}

impl Found<'_> {
    fn config(&self) -> Result<&Config> {
        if let Some(config) = self.config.get() {
            return Ok(config);
        }
        let read = config(&self.record)?;
        Ok(self.config.get_or_init(|| read))
    }

    /// How it is, if it runs and is checked.
    fn health(&self) -> Result<Option<Health>> {
        let lives = matches!(self.record.state, State::Running | State::Paused);
        if !lives || self.config()?.plan.health.is_none() {
            return Ok(None);
        }
        Ok(Health::read(&self.store.container_dir(&self.record.id)))
    }
}

/// `--filter`, with what its names stand for.
struct Conditions<'a> {
    filters: &'a Filters,
    exited: Vec<i32>,
    ancestors: Vec<(String, Option<Digest>)>,
    before: Vec<i64>,
    since: Vec<i64>,
}

impl<'a> Conditions<'a> {
    fn new(filters: &'a Filters, store: &Store) -> Result<Self> {
        filters.one_of("status", STATES)?;
        filters.one_of("health", HEALTH)?;
        filters.one_of("restart-policy", POLICIES)?;
        let code = |value: &str| value.parse().map_err(|_| bad("exited", value, "it is an exit code"));
        let images = Images::new(store);
        let times = |key| {
            let time = |name: &str| Ok(store.containers().find(name)?.created_ns);
            filters.values(key).map(time).collect::<Result<Vec<_>>>()
        };
        Ok(Conditions {
            filters,
            exited: filters.values("exited").map(code).collect::<Result<_>>()?,
            // One that is no image is the ancestor of nothing, as with docker.
            ancestors: filters
                .values("ancestor")
                .map(|name| (name.to_owned(), images.find(name).ok().map(|image| image.id)))
                .collect(),
            before: times("before")?,
            since: times("since")?,
        })
    }

    fn take(&self, found: &Found<'_>) -> Result<bool> {
        let (filters, record) = (self.filters, &found.record);
        let cheap = filters.any("id", |id| record.id.starts_with(id))
            && filters.any("name", |pattern| names(pattern, &record.name))
            && filters.any("status", |status| status == record.state.as_str())
            && (self.exited.is_empty()
                || record.state == State::Exited
                    && record.exit_code.is_some_and(|code| self.exited.contains(&code)))
            && self.before.iter().all(|time| record.created_ns < *time)
            && self.since.iter().all(|time| record.created_ns > *time);
        if !cheap {
            return Ok(false);
        }
        let Config { request, plan } = found.config()?;
        let label =
            |name: &str| plan.labels.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str());
        let is_from = |(name, id): &(String, Option<Digest>)| {
            id.is_some() && *id == record.image
                || matches!(&request.root, RootSource::Image(root) if root == name)
        };
        let used = if filters.has("volume") { Volumes::new(found.store).of(&record.id)? } else { Vec::new() };
        let mounts = |wanted: &str| {
            used.iter().any(|used| used.volume == wanted || used.target.0 == wanted.as_bytes())
                || request
                    .binds
                    .iter()
                    .any(|bind| [&bind.host.0, &bind.target.0].contains(&&wanted.as_bytes().to_vec()))
        };
        Ok(filters.labels(label)
            && (self.ancestors.is_empty() || self.ancestors.iter().any(is_from))
            && filters.any("volume", mounts)
            && filters.any("network", |wanted| is_on(&request.network, wanted))
            && filters.any("restart-policy", |wanted| request.restart.name().0 == wanted)
            && (!filters.has("health") || {
                let health = found.health()?.map_or("none".to_owned(), |health| health.status);
                filters.any("health", |wanted| wanted == health)
            }))
    }
}

/// Whether a part of a name is meant; `^` and `$` are its ends, and docker's slash before it is allowed.
fn names(pattern: &str, name: &str) -> bool {
    let (from_start, pattern) = match pattern.strip_prefix('^') {
        Some(rest) => (true, rest),
        None => (false, pattern),
    };
    let (to_end, pattern) = match pattern.strip_suffix('$') {
        Some(rest) => (true, rest),
        None => (false, pattern),
    };
    let (from_start, pattern) = match pattern.strip_prefix('/') {
        Some(rest) => (true, rest),
        None => (from_start, pattern),
    };
    match (from_start, to_end) {
        (true, true) => name == pattern,
        (true, false) => name.starts_with(pattern),
        (false, true) => name.ends_with(pattern),
        (false, false) => name.contains(pattern),
    }
}

fn row(found: &Found<'_>, whole: bool, with_size: bool) -> Result<Value> {
    let (record, Config { request, plan }) = (&found.record, found.config()?);
    let mut command: Vec<String> = plan.argv.iter().map(ToString::to_string).collect();
    command.iter_mut().for_each(|word| *word = word.replace(['\n', '\r', '\t'], " "));
    let mut command = command.join(" ");
    if !whole && command.chars().count() > 20 {
        command = command.chars().take(19).chain(['…']).collect();
    }
    let image = match &request.root {
        RootSource::Image(name) => name.clone(),
        RootSource::Directory(dir) => dir.to_string(),
    };
    let labels: Vec<String> = plan.labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let mounts: Vec<String> = request.binds.iter().map(|bind| bind.host.to_string()).collect();
    let mut row = json!({
        "ID": if whole { record.id.clone() } else { short(&record.id) },
        "Image": image,
        "Command": format!("\"{command}\""),
        "CreatedAt": rfc3339(record.created_ns),
        "RunningFor": human::ago(record.created_ns, now_ns()),
        "Status": status(record, found.health()?.as_ref(), now_ns()),
        "State": record.state.as_str(),
        "Ports": if record.pid.is_some() { port::column(&plan.ports, &plan.exposed) } else { String::new() },
        "Names": record.name,
        "Labels": labels.join(","),
        "Mounts": mounts.join(","),
        "Networks": network(&request.network.mode),
    });
    if with_size && let Some(object) = row.as_object_mut() {
        let own = disk_usage(&found.store.container_dir(&record.id));
        let image = record.image.map(|id| Images::new(found.store).find(&id.to_string())).transpose()?;
        let all = own + image.map_or(0, |image| image.size);
        let text = format!("{} (virtual {})", human::size(own), human::size(all));
        object.insert("Size".into(), text.into());
    }
    Ok(row)
}

/// The network that a container is on, as `network ls` names it.
fn network(mode: &Mode) -> &str {
    if *mode == Mode::Own { "bridge" } else { mode.name() }
}

/// Whether a container is on the network of this name, id or beginning of an id.
fn is_on(networking: &Networking, wanted: &str) -> bool {
    let is_id = |id: &str| !wanted.is_empty() && id.starts_with(wanted);
    network(&networking.mode) == wanted || networking.place.as_ref().is_some_and(|place| is_id(&place.id))
}

fn status(record: &Record, health: Option<&Health>, now: i64) -> String {
    let since = |then: Option<i64>| {
        human::span(now.saturating_sub(then.unwrap_or(record.created_ns)) / 1_000_000_000)
    };
    let health = match health.map(|health| health.status.as_str()) {
        Some("starting") => " (health: starting)".to_owned(),
        Some(status) => format!(" ({status})"),
        None => String::new(),
    };
    match record.state {
        State::Created => "Created".into(),
        State::Running => format!("Up {}{health}", since(record.started_ns)),
        State::Paused => format!("Up {} (Paused)", since(record.started_ns)),
        State::Restarting => {
            format!("Restarting ({}) {} ago", record.exit_code.unwrap_or_default(), since(record.finished_ns))
        }
        State::Exited => {
            format!("Exited ({}) {} ago", record.exit_code.unwrap_or_default(), since(record.finished_ns))
        }
        State::Removing => "Removal In Progress".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_of_a_name_is_enough_and_ends_can_be_said() {
        for (pattern, fits) in [
            ("web", true),
            ("eb", true),
            ("^web", true),
            ("^eb", false),
            ("1$", true),
            ("b$", false),
            ("/web-1", true),
            ("^/web-1$", true),
            ("^web$", false),
        ] {
            assert_eq!(names(pattern, "web-1"), fits, "{pattern}");
        }
    }
}
