//! `servin system prune`, `info` and `check`, and `servin container prune`.

use std::io::{self, BufRead, IsTerminal};

use serde_json::json;
use servin_engine::GUEST_PROTOCOL;
use servin_engine::container::{Config, remove};
use servin_engine::host::{self, Host};
use servin_engine::image::{Image, Images, Removed};
use servin_engine::network::{Networks, UserNetwork};
use servin_engine::store::{Record, State, Store, check as check_store, disk_usage, now_ns};
use servin_engine::template::Templates;
use servin_engine::volume::{Volume, Volumes};

use super::containers::{config, open};
use crate::args::Global;
use crate::error::{Error, Result};
use crate::filter::{Filters, bad};
use crate::spec::moment::moment;
use crate::template::Template;
use crate::{human, output};

/// Keys of `--filter`.
const FILTERS: &[&str] = &["until", "label", "label!"];

/// Asks whether to go on; where nobody can be asked, `force` is needed.
pub(super) fn confirm(what: &str, force: bool, verb: &str) -> Result<bool> {
    if force {
        return Ok(true);
    }
    if !io::stdin().is_terminal() {
        let what = format!("this removes {what}: say --force where nobody can be asked");
        return Err(Error::Usage { what, verb: verb.into() });
    }
    eprint!("This removes {what}. Continue? [y/N] ");
    let mut answer = String::new();
    let read = io::stdin().lock().read_line(&mut answer);
    read.map_err(|source| Error::Host { what: "read the answer".into(), source, code: 1 })?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

/// `--filter` of the prunes.
pub(super) struct Conditions {
    filters: Filters,
    /// Only what was made before this time.
    until: i64,
}

impl Conditions {
    pub(super) fn new(words: &[String]) -> Result<Self> {
        let filters = Filters::new(words, FILTERS)?;
        let until = filters
            .values("until")
            .last()
            .map(|text| moment(text, now_ns()).map_err(|why| bad("until", text, &why)));
        Ok(Conditions { until: until.transpose()?.unwrap_or(i64::MAX), filters })
    }

    fn are_none(&self) -> bool {
        FILTERS.iter().all(|key| !self.filters.has(key))
    }

    fn take_container(&self, record: &Record, config: &Config) -> bool {
        let labels = &config.plan.labels;
        record.created_ns < self.until
            && self.filters.labels(|name| {
                labels.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
            })
    }

    fn take_volume(&self, volume: &Volume) -> bool {
        volume.created_ns < self.until
            && self.filters.labels(|name| volume.labels.get(name).map(String::as_str))
    }

    fn take_network(&self, network: &UserNetwork) -> bool {
        network.created_ns < self.until
            && self.filters.labels(|name| network.labels.get(name).map(String::as_str))
    }

    fn take_image(&self, image: &Image) -> bool {
        let labels = &image.config.process.labels;
        image.loaded_ns < self.until && self.filters.labels(|name| labels.get(name).map(String::as_str))
    }
}

/// `servin container prune`.
pub(crate) fn prune_containers(global: &Global, force: bool, filter: &[String]) -> Result<u8> {
    let conditions = Conditions::new(filter)?;
    if !confirm("all containers that do not run", force, "container prune")? {
        return Ok(0);
    }
    let store = open(global)?;
    let (removed, freed) = ended(&store, &conditions)?;
    let mut text = String::new();
    if !removed.is_empty() {
        text = format!("Deleted Containers:\n{}\n\n", removed.join("\n"));
    }
    output::text(&format!("{text}Total reclaimed space: {}\n", human::size(freed)));
    Ok(0)
}

/// Removes containers that do not run; gives their ids and the freed bytes.
fn ended(store: &Store, conditions: &Conditions) -> Result<(Vec<String>, u64)> {
    let (mut removed, mut freed) = (Vec::new(), 0);
    for record in store.containers().list()? {
        let ended = matches!(record.state, State::Created | State::Exited);
        if !ended || !conditions.take_container(&record, &config(&record)?) {
            continue;
        }
        let size = disk_usage(&store.container_dir(&record.id));
        match remove(store, &record, false) {
            Ok(()) => {
                removed.push(record.id);
                freed += size;
            }
            // It was started or removed in this moment.
            Err(servin_engine::Error::Running { .. } | servin_engine::Error::NoSuchContainer { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok((removed, freed))
}

/// Removes images that have no name, or with `all` those that nothing is made from, of those that the conditions take;
/// gives what was removed and the freed bytes.
pub(super) fn images(store: &Store, all: bool, conditions: &Conditions) -> Result<(Vec<Removed>, u64)> {
    let images = Images::new(store);
    if conditions.are_none() {
        return Ok(images.prune(all)?);
    }
    let size = || disk_usage(&store.root().join("blobs")) + disk_usage(&store.root().join("roots"));
    let (mut gone, before) = (Vec::new(), size());
    for image in images.list()? {
        if !(all || images.names(&image.id)?.is_empty()) || !conditions.take_image(&image) {
            continue;
        }
        match images.remove(&image.id.to_string(), true) {
            Ok(removed) => gone.extend(removed),
            // A container or a snapshot is made from it, or it is gone already.
            Err(servin_engine::Error::ImageInUse { .. } | servin_engine::Error::NoSuchImage { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok((gone, before.saturating_sub(size())))
}

/// `servin system prune`.
pub(crate) fn prune(global: &Global, all: bool, volumes: bool, force: bool, filter: &[String]) -> Result<u8> {
    let conditions = Conditions::new(filter)?;
    let images =
        if all { "images that no container is made from, templates" } else { "images without a name" };
    let more = if volumes { ", all volumes without a name that no container uses" } else { "" };
    let what = format!(
        "all containers that do not run, networks that no container is on, all {images}{more}, and files that nothing speaks of"
    );
    if !confirm(&what, force, "system prune")? {
        return Ok(0);
    }
    let store = open(global)?;
    let (removed, mut freed) = ended(&store, &conditions)?;
    let mut text = String::new();
    if !removed.is_empty() {
        text.push_str(&format!("Deleted Containers:\n{}\n\n", removed.join("\n")));
    }
    let networks = Networks::new(&store).prune(|network| !conditions.take_network(network))?;
    if !networks.is_empty() {
        text.push_str(&format!("Deleted Networks:\n{}\n\n", networks.join("\n")));
    }
    let (gone, bytes) = self::images(&store, all, &conditions)?;
    freed += bytes;
    if !gone.is_empty() {
        text.push_str(&format!("Deleted Images:\n{}\n", super::rmi::lines(&gone)));
    }
    if volumes {
        let keep = |volume: &Volume| !conditions.take_volume(volume);
        let (names, bytes) = Volumes::new(&store).prune(false, keep)?;
        freed += bytes;
        if !names.is_empty() {
            text.push_str(&format!("Deleted Volumes:\n{}\n\n", names.join("\n")));
        }
    }
    if all && conditions.are_none() {
        let templates = Templates::new(&store).prune(0)?;
        freed += templates.iter().map(|template| template.size).sum::<u64>();
        if !templates.is_empty() {
            let lines: Vec<_> = templates.iter().map(|template| template.key.clone()).collect();
            text.push_str(&format!("Deleted Templates:\n{}\n\n", lines.join("\n")));
        }
    }
    output::text(&format!("{text}Total reclaimed space: {}\n", human::size(freed)));
    Ok(0)
}

/// `servin system check`.
pub(crate) fn check(global: &Global, repair: bool) -> Result<u8> {
    let store = super::store(global)?;
    let findings = check_store(&store, repair, &mut |what| log::info!("checking {what}"))?;
    let mut left = 0;
    for finding in &findings {
        let state = if finding.repaired { "repaired" } else { "wrong" };
        left += usize::from(!finding.repaired);
        output::text(&format!("{state}: {}\n", finding.what));
    }
    match (left, repair) {
        (0, _) => {
            output::text("The store is whole.\n");
            Ok(0)
        }
        (_, true) => Ok(1),
        (_, false) => {
            output::line(
                &format!("{left} things are wrong"),
                Some("\"servin system check --repair\" repairs what can be"),
            );
            Ok(1)
        }
    }
}

/// `servin system info`.
pub(crate) fn info(global: &Global, format: Option<&str>) -> Result<u8> {
    let bad = |why: String| Error::Usage { what: format!("--format: {why}"), verb: "info".into() };
    let template = match format {
        None | Some("") => None,
        Some("json") => Some(Template::parse("{{json .}}").map_err(bad)?),
        Some(text) => Some(Template::parse(text).map_err(bad)?),
    };
    let store = open(global)?;
    let containers = store.containers().list()?;
    let count = |wanted: &[State]| containers.iter().filter(|record| wanted.contains(&record.state)).count();
    let memory = host::memory().unwrap_or(0);
    let uname = rustix::system::uname();
    let kernel = uname.release().to_string_lossy().into_owned();
    let name = uname.nodename().to_string_lossy().into_owned();
    let hypervisor = Host::look().usable().map_or("none", servin_engine::host::Kind::name);
    let value = json!({
        "ID": "", "Name": name, "ServerVersion": env!("CARGO_PKG_VERSION"), "GuestProtocol": GUEST_PROTOCOL,
        "Containers": containers.len(),
        "ContainersRunning": count(&[State::Running]),
        "ContainersPaused": count(&[State::Paused]),
        "ContainersStopped": count(&[State::Created, State::Exited, State::Removing]),
        "Images": Images::new(&store).list()?.len(),
        "Templates": Templates::new(&store).list()?.len(),
        "Driver": "erofs", "DataRoot": store.root().display().to_string(),
        "DockerRootDir": store.root().display().to_string(),
        "OSType": std::env::consts::OS, "Architecture": std::env::consts::ARCH, "KernelVersion": kernel,
        "NCPU": std::thread::available_parallelism().map_or(1, usize::from),
        "MemTotal": memory, "Hypervisor": hypervisor, "LoggingDriver": "json-file",
    });
    let text = match template {
        Some(template) => template.render(&value).map_err(bad)? + "\n",
        None => {
            let field = |name: &str| match &value[name] {
                serde_json::Value::String(text) => text.clone(),
                other => other.to_string(),
            };
            let rows = [
                ("Version", field("ServerVersion")),
                ("Guest protocol", field("GuestProtocol")),
                ("Containers", field("Containers")),
                (" Running", field("ContainersRunning")),
                (" Paused", field("ContainersPaused")),
                (" Stopped", field("ContainersStopped")),
                ("Images", field("Images")),
                ("Templates", field("Templates")),
                ("Data root", field("DataRoot")),
                ("Hypervisor", field("Hypervisor")),
                ("Kernel", field("KernelVersion")),
                ("Architecture", field("Architecture")),
                ("CPUs", field("NCPU")),
                ("Memory", human::memory(memory)),
                ("Name", field("Name")),
            ];
            rows.iter().map(|(name, value)| format!("{name}: {value}\n")).collect()
        }
    };
    output::text(&text);
    Ok(0)
}

#[cfg(test)]
mod tests {
    use servin_engine::image::{Composed, Platform};

    use super::*;

    #[test]
    fn images_are_pruned_by_time_and_label_and_those_in_use_stay() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("root")).unwrap();
        let images = Images::new(&store);
        let mut made = Vec::new();
        for name in ["old:1", "used:1"] {
            let composed = Composed {
                name: Some(name.parse().unwrap()),
                created_by: name.into(),
                ..Composed::default()
            };
            // The end of a tar: no files.
            let tar = [0; 1024];
            made.push(images.import(&mut &tar[..], &Platform::native(), &composed).unwrap());
        }
        let mut request = servin_engine::container::Request::new(
            servin_engine::container::RootSource::Image("used:1".into()),
        );
        request.args = vec!["x".into()];
        servin_engine::container::create(&store, &request).unwrap();
        let prune = |all, word: &str| {
            let conditions = Conditions::new(&[word.to_owned()]).unwrap();
            super::images(&store, all, &conditions).unwrap().0.len()
        };
        assert_eq!(prune(true, "until=24h"), 0, "they are new");
        assert_eq!(prune(true, "label=x"), 0, "they have no label");
        assert_eq!(prune(false, "label!=x"), 0, "they have names");
        assert!(prune(true, "label!=x") > 0);
        assert!(images.find("old:1").is_err() && images.find("used:1").is_ok());
        assert!(Conditions::new(&["until=soon".into()]).is_err());
    }
}
