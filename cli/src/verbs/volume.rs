//! `servin volume`.

use std::collections::BTreeMap;
use std::io::{self, BufRead, IsTerminal};

use serde_json::{Value, json};
use servin_engine::Error as Failure;
use servin_engine::store::Store;
use servin_engine::time::rfc3339;
use servin_engine::volume::{Volume as Found, Volumes};

use super::containers::{each, open};
use crate::args::{Global, Volume};
use crate::error::{Error, Result};
use crate::listing::{Format, Labelled};
use crate::{human, output};

const COLUMNS: &[(&str, &str)] = &[("DRIVER", "Driver"), ("VOLUME NAME", "Name")];

/// Does what was asked.
pub(crate) fn run(global: &Global, typed: &Volume) -> Result<u8> {
    // Containers that died hold no volume, once they are known to be gone.
    let store = open(global)?;
    let volumes = Volumes::new(&store);
    match typed {
        Volume::Create { name, labels } => {
            let labels =
                labels.iter().map(|text| label(text, "volume create")).collect::<Result<BTreeMap<_, _>>>()?;
            let (made, _) = volumes.create(name.as_deref(), &labels)?;
            output::text(&format!("{}\n", made.name));
        }
        Volume::List { quiet, format, filter } => {
            let format = Format::new(format.as_deref(), *quiet, "volume ls")?;
            let filters = filter.iter().map(|text| Filter::parse(text, true)).collect::<Result<Vec<_>>>()?;
            let mut rows = Vec::new();
            for volume in volumes.list()? {
                if matches(&volumes, &volume, &filters)? {
                    rows.push(row(&volumes, &volume));
                }
            }
            output::text(&format.show(&rows, COLUMNS, "Name")?);
        }
        Volume::Inspect { names, format } => return inspect(&volumes, names, format.as_deref()),
        Volume::Remove { names, force } => {
            return each(names, |name| match volumes.remove(name) {
                Err(Failure::NoSuchVolume { .. }) if *force => Ok(name.to_owned()),
                done => Ok(done.map(|_| name.to_owned())?),
            });
        }
        Volume::Prune { all, force, filter } => return prune(&store, *all, *force, filter),
    }
    Ok(0)
}

fn prune(store: &Store, all: bool, force: bool, filter: &[String]) -> Result<u8> {
    let filters = filter.iter().map(|text| Filter::parse(text, false)).collect::<Result<Vec<_>>>()?;
    let what =
        if all { "volumes that no container uses" } else { "volumes without a name that no container uses" };
    if !force {
        if !io::stdin().is_terminal() {
            let what =
                format!("this removes all {what}, with their files: say --force where nobody can be asked");
            return Err(Error::Usage { what, verb: "volume prune".into() });
        }
        eprint!("This removes all {what}, with their files. Continue? [y/N] ");
        let mut answer = String::new();
        let read = io::stdin().lock().read_line(&mut answer);
        read.map_err(|source| Error::Host { what: "read the answer".into(), source, code: 1 })?;
        if !matches!(answer.trim(), "y" | "Y" | "yes") {
            return Ok(0);
        }
    }
    let keep = |volume: &Found| !filters.iter().all(|filter| filter.fits(volume, false));
    let (gone, freed) = Volumes::new(store).prune(all, keep)?;
    let lines =
        if gone.is_empty() { String::new() } else { format!("Deleted Volumes:\n{}\n\n", gone.join("\n")) };
    output::text(&format!("{lines}Total reclaimed space: {}\n", human::size(freed)));
    Ok(0)
}

fn inspect(volumes: &Volumes<'_>, names: &[String], format: Option<&str>) -> Result<u8> {
    super::inspect::show("volume inspect", names, format, |name| Ok(object(volumes, &volumes.get(name)?)))
}

/// The volume of this name, as `servin inspect` shows it.
pub(super) fn known(store: &Store, name: &str) -> Result<Value> {
    let volumes = Volumes::new(store);
    Ok(object(&volumes, &volumes.get(name)?))
}

/// A volume with docker's field names.
fn object(volumes: &Volumes<'_>, volume: &Found) -> Value {
    json!({
        "CreatedAt": rfc3339(volume.created_ns),
        "Driver": "local",
        "Labels": volume.labels,
        "Mountpoint": volumes.path(&volume.name).display().to_string(),
        "Name": volume.name,
        "Options": null,
        "Scope": "local",
    })
}

fn row(volumes: &Volumes<'_>, volume: &Found) -> Labelled {
    let fields = json!({
        "Driver": "local",
        "Mountpoint": volumes.path(&volume.name).display().to_string(),
        "Name": volume.name,
        "Scope": "local",
    });
    Labelled::new(fields, &volume.labels)
}

/// One `--label`, of what `verb` makes.
pub(super) fn label(text: &str, verb: &str) -> Result<(String, String)> {
    let (name, value) = text.split_once('=').unwrap_or((text, ""));
    if name.is_empty() {
        let what = format!("invalid value \"{text}\" for --label: a label needs a name");
        return Err(Error::Usage { what, verb: verb.to_owned() });
    }
    Ok((name.to_owned(), value.to_owned()))
}

/// One `--filter`.
#[derive(Debug, PartialEq, Eq)]
enum Filter {
    /// A part of the name.
    Name(String),
    /// A label, with this value or any, that is there or is not.
    Label { name: String, value: Option<String>, there: bool },
    /// No container uses it.
    Dangling(bool),
    /// The only driver there is, or not.
    Driver(bool),
}

impl Filter {
    fn parse(text: &str, listing: bool) -> Result<Self> {
        let bad = |why: &str| Error::Usage {
            what: format!("invalid value \"{text}\" for --filter: {why}"),
            verb: if listing { "volume ls" } else { "volume prune" }.into(),
        };
        let (name, value) = text.split_once('=').ok_or_else(|| bad("it is NAME=VALUE"))?;
        let label = |there| {
            let (name, value) = match value.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (value, None),
            };
            Filter::Label { name: name.to_owned(), value, there }
        };
        match name {
            "label" => Ok(label(true)),
            "label!" => Ok(label(false)),
            "name" if listing => Ok(Filter::Name(value.to_owned())),
            "driver" if listing => Ok(Filter::Driver(value == "local")),
            "dangling" if listing => match value {
                "true" | "1" => Ok(Filter::Dangling(true)),
                "false" | "0" => Ok(Filter::Dangling(false)),
                _ => Err(bad("it is true or false")),
            },
            _ => Err(bad("there is no such filter here")),
        }
    }

    fn fits(&self, volume: &Found, used: bool) -> bool {
        match self {
            Filter::Name(part) => volume.name.contains(part),
            Filter::Label { name, value, there } => {
                let found = volume.labels.get(name);
                let fits = found.is_some_and(|found| value.as_ref().is_none_or(|value| value == found));
                fits == *there
            }
            Filter::Dangling(dangling) => *dangling != used,
            Filter::Driver(local) => *local,
        }
    }
}

/// Whether a volume fits: of several filters of one kind one is enough, as docker has it, but for labels, which all must.
fn matches(volumes: &Volumes<'_>, volume: &Found, filters: &[Filter]) -> Result<bool> {
    let used = !volumes.users(&volume.name)?.is_empty();
    let names: Vec<_> = filters.iter().filter(|filter| matches!(filter, Filter::Name(_))).collect();
    let mut others = filters.iter().filter(|filter| !matches!(filter, Filter::Name(_)));
    let named = names.is_empty() || names.iter().any(|filter| filter.fits(volume, used));
    Ok(named && others.all(|filter| filter.fits(volume, used)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volume(name: &str, labels: &[(&str, &str)]) -> Found {
        let labels = labels.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Found { name: name.into(), anonymous: false, labels, created_ns: 0 }
    }

    #[test]
    fn filters_choose_by_name_label_and_use() {
        let data = volume("data", &[("tier", "db")]);
        let fits = |text: &str, used| Filter::parse(text, true).unwrap().fits(&data, used);
        assert!(fits("name=at", false) && !fits("name=x", false));
        assert!(fits("label=tier", false) && fits("label=tier=db", false) && !fits("label=tier=web", false));
        assert!(fits("label!=other", false) && !fits("label!=tier", false) && fits("label!=tier=web", false));
        assert!(fits("dangling=true", false) && !fits("dangling=true", true) && fits("dangling=0", true));
        assert!(fits("driver=local", false) && !fits("driver=nfs", false));
        for bad in ["tier", "dangling=maybe", "size=1"] {
            assert!(Filter::parse(bad, true).unwrap_err().to_string().contains(bad), "{bad}");
        }
        assert!(Filter::parse("name=x", false).is_err(), "prune chooses by label alone");
    }
}
