//! `servin ps`.

use std::cell::OnceCell;
use std::ops::RangeInclusive;

use serde_json::json;
use servin_engine::container::{Config, Health, Plan, RootSource, short};
use servin_engine::image::{Digest, Images};
use servin_engine::network::{Attachment, Networking};
use servin_engine::store::{Record, State, Store, disk_usage, now_ns};
use servin_engine::volume::Volumes;

use super::containers::{config, open};
use super::port;
use crate::args::{Global, Ps};
use crate::error::{Error, Result};
use crate::filter::{Filters, bad};
use crate::listing::{Format, Labelled};
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
    "publish",
    "expose",
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
    publish: Vec<(RangeInclusive<u16>, String)>,
    expose: Vec<(RangeInclusive<u16>, String)>,
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
            publish: filters.values("publish").map(|text| ports("publish", text)).collect::<Result<_>>()?,
            expose: filters.values("expose").map(|text| ports("expose", text)).collect::<Result<_>>()?,
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
            && self.has_ports(record, plan)
            && filters.any("volume", mounts)
            && filters.any("network", |wanted| is_on(&request.network, wanted))
            && filters.any("restart-policy", |wanted| request.restart.name().0 == wanted)
            && (!filters.has("health") || {
                let health = found.health()?.map_or("none".to_owned(), |health| health.status);
                filters.any("health", |wanted| wanted == health)
            }))
    }
}

impl Conditions<'_> {
    /// Whether it has one of the ports that are asked for. As with docker, one that does not run has none.
    fn has_ports(&self, record: &Record, plan: &Plan) -> bool {
        let fits = |wanted: &[(RangeInclusive<u16>, String)], port: u16, protocol: &str| {
            wanted.iter().any(|(range, of)| range.contains(&port) && of == protocol)
        };
        let is_published =
            || plan.ports.iter().any(|one| fits(&self.publish, one.host, &one.protocol.to_string()));
        let is_exposed = || {
            let of_image = plan.exposed.iter().filter_map(|port| {
                let (number, protocol) = port.split_once('/')?;
                Some((number.parse().ok()?, protocol.to_owned()))
            });
            let of_ports = plan.ports.iter().map(|one| (one.guest, one.protocol.to_string()));
            of_image.chain(of_ports).any(|(port, protocol)| fits(&self.expose, port, &protocol))
        };
        (self.publish.is_empty() || record.pid.is_some() && is_published())
            && (self.expose.is_empty() || record.pid.is_some() && is_exposed())
    }
}

/// `80`, `8000-8080`, each with a protocol or TCP.
fn ports(key: &str, text: &str) -> Result<(RangeInclusive<u16>, String)> {
    let (range, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let (first, last) = range.split_once('-').unwrap_or((range, range));
    match (first.parse(), last.parse()) {
        (Ok(first), Ok(last)) if first <= last && matches!(protocol, "tcp" | "udp") => {
            Ok((first..=last, protocol.to_owned()))
        }
        _ => Err(bad(key, text, "it is PORT or PORT-PORT, with /tcp or /udp after it")),
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

fn row(found: &Found<'_>, whole: bool, with_size: bool) -> Result<Labelled> {
    let (record, Config { request, plan }) = (&found.record, found.config()?);
    let mut command: Vec<String> = plan.argv.iter().map(ToString::to_string).collect();
    command.iter_mut().for_each(|word| *word = word.replace(['\n', '\r', '\t'], " "));
    let mut command = command.join(" ");
    if !whole && command.chars().count() > 20 {
        command = command.chars().take(19).chain(['…']).collect();
    }
    let volumes = Volumes::new(found.store).of(&record.id)?;
    let local = volumes.len();
    let mut mounts: Vec<String> = volumes.into_iter().map(|used| used.volume).collect();
    mounts.extend(request.binds.iter().map(|bind| bind.host.to_string()));
    mounts.iter_mut().filter(|mount| !whole && mount.chars().count() > 15).for_each(|mount| {
        *mount = mount.chars().take(14).chain(['…']).collect();
    });
    let mut row = json!({
        "ID": if whole { record.id.clone() } else { short(&record.id) },
        "Image": request.root.name(),
        "Command": format!("\"{command}\""),
        "CreatedAt": human::time(record.created_ns),
        "RunningFor": human::ago(record.created_ns, now_ns()),
        "Status": status(record, found.health()?.as_ref(), now_ns()),
        "State": record.state.as_str(),
        "Ports": if record.pid.is_some() { port::column(&plan.ports, &plan.exposed) } else { String::new() },
        "Names": record.name,
        "Mounts": mounts.join(","),
        "LocalVolumes": local.to_string(),
        "Networks": networks(&request.network),
    });
    if with_size && let Some(object) = row.as_object_mut() {
        let own = disk_usage(&found.store.container_dir(&record.id));
        let image = record.image.map(|id| Images::new(found.store).find(&id.to_string())).transpose()?;
        let all = own + image.map_or(0, |image| image.size);
        let text = format!("{} (virtual {})", human::size(own), human::size(all));
        object.insert("Size".into(), text.into());
    }
    Ok(Labelled::new(row, plan.labels.iter().map(|(name, value)| (name, value))))
}

/// The networks that a container is on, as `network ls` names them.
fn networks(networking: &Networking) -> String {
    let mut names: Vec<&str> = networking.attachments.iter().map(|one| one.mode.network()).collect();
    if names.is_empty() {
        names.push("none");
    }
    names.join(",")
}

/// Whether a container is on the network of this name, id or beginning of an id.
fn is_on(networking: &Networking, wanted: &str) -> bool {
    let is_id = |id: &str| !wanted.is_empty() && id.starts_with(wanted);
    let is_meant = |one: &Attachment| {
        one.mode.network() == wanted || one.place.as_ref().is_some_and(|place| is_id(&place.id))
    };
    networking.attachments.iter().any(is_meant) || !networking.has_card() && wanted == "none"
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
    use servin_engine::network::Mode;

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

    #[test]
    fn a_container_is_on_each_of_its_networks() {
        let mut networking = Networking::default();
        let place = serde_json::from_value(json!({
            "network": "back", "id": "ab12", "subnet": "10.7.0.0/24", "gateway": "10.7.0.1", "internal": false,
            "address": "10.7.0.2", "mac": [2, 0, 0, 0, 0, 1], "aliases": [],
        }));
        let back = Attachment::new(Mode::Shared("back".into()));
        networking.push(Attachment { place: Some(place.unwrap()), ..back });
        assert_eq!(networks(&networking), "bridge,back");
        assert!(is_on(&networking, "bridge") && is_on(&networking, "back") && is_on(&networking, "ab1"));
        assert!(!is_on(&networking, "none") && !is_on(&networking, "b") && !is_on(&networking, ""));
        assert_eq!(networks(&Networking::none()), "none");
        assert!(is_on(&Networking::none(), "none"));
    }

    #[test]
    fn ports_and_volumes_are_shown_and_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let mut request = servin_engine::container::Request::new(RootSource::Directory("/r".into()));
        request.args = vec!["x".into()];
        let volume = |name: &str| servin_engine::volume::VolumeMount {
            name: Some(name.into()),
            target: format!("/{name}").into(),
            read_only: false,
            no_copy: true,
        };
        request.volumes = vec![volume("a-name-that-is-long"), volume("data")];
        let mut record = servin_engine::container::create(&store, &request).unwrap();
        record.created_ns = 1_767_366_245_000_000_000;
        let mut read = config(&record).unwrap();
        read.plan.exposed = vec!["80/tcp".into(), "53/udp".into()];
        read.plan.ports = vec![servin_engine::network::Published {
            ip: [127, 0, 0, 1].into(),
            host: 8080,
            guest: 80,
            protocol: servin_engine::network::Protocol::Tcp,
        }];
        record.config = serde_json::to_string(&read).unwrap();
        let take = |word: &str, record: &Record| {
            let filters = Filters::new(&[word.to_owned()], FILTERS).unwrap();
            let found = Found { store: &store, record: record.clone(), config: OnceCell::new() };
            Conditions::new(&filters, &store).and_then(|conditions| conditions.take(&found))
        };
        let rests = Record { pid: None, ..record.clone() };
        record.pid = Some(1);
        for (word, fits) in [
            ("publish=8080", true),
            ("publish=8000-9000/tcp", true),
            ("publish=80", false),
            ("publish=8080/udp", false),
            ("expose=80", true),
            ("expose=53/udp", true),
            ("expose=53", false),
        ] {
            assert_eq!(take(word, &record).unwrap(), fits, "{word}");
            assert!(!take(word, &rests).unwrap(), "{word} of one that does not run");
        }
        assert!(take("publish=http", &record).is_err() && take("expose=9-8", &record).is_err());
        let found = Found { store: &store, record, config: OnceCell::new() };
        let short = row(&found, false, false).unwrap().fields;
        assert_eq!(short["Mounts"], "a-name-that-is…,data");
        assert_eq!(
            (&short["LocalVolumes"], &short["CreatedAt"]),
            (&json!("2"), &json!("2026-01-02 15:04:05 +0000 UTC"))
        );
        assert_eq!(row(&found, true, false).unwrap().fields["Mounts"], "a-name-that-is-long,data");
    }
}
