//! `servin ps`.

use serde_json::{Value, json};
use servin_engine::container::{RootSource, short};
use servin_engine::store::{Record, State, now_ns};
use servin_engine::time::rfc3339;

use super::containers::{config, open};
use crate::args::{Global, Ps};
use crate::error::Result;
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

/// Prints the containers, the newest first.
pub(crate) fn run(global: &Global, typed: &Ps) -> Result<u8> {
    let format = Format::new(typed.format.as_deref(), typed.quiet, "ps")?;
    let store = open(global)?;
    let mut records = store.containers().list()?;
    records.retain(|record| typed.all || matches!(record.state, State::Running | State::Paused));
    let rows = records.iter().map(|record| row(record, typed.no_trunc)).collect::<Result<Vec<_>>>()?;
    output::text(&format.show(&rows, COLUMNS, "ID")?);
    Ok(0)
}

fn row(record: &Record, whole: bool) -> Result<Value> {
    let config = config(record)?;
    let mut command: Vec<String> = config.plan.argv.iter().map(ToString::to_string).collect();
    command.iter_mut().for_each(|word| *word = word.replace(['\n', '\r', '\t'], " "));
    let mut command = command.join(" ");
    if !whole && command.chars().count() > 20 {
        command = command.chars().take(19).chain(['…']).collect();
    }
    let image = match &config.request.root {
        RootSource::Image(name) => name.clone(),
        RootSource::Directory(dir) => dir.to_string(),
    };
    let labels: Vec<String> =
        config.plan.labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
    Ok(json!({
        "ID": if whole { record.id.clone() } else { short(&record.id) },
        "Image": image,
        "Command": format!("\"{command}\""),
        "CreatedAt": rfc3339(record.created_ns),
        "RunningFor": human::ago(record.created_ns, now_ns()),
        "Status": status(record, now_ns()),
        "State": record.state.as_str(),
        "Ports": "",
        "Names": record.name,
        "Labels": labels.join(","),
    }))
}

fn status(record: &Record, now: i64) -> String {
    let since = |then: Option<i64>| {
        human::span(now.saturating_sub(then.unwrap_or(record.created_ns)) / 1_000_000_000)
    };
    match record.state {
        State::Created => "Created".into(),
        State::Running => format!("Up {}", since(record.started_ns)),
        State::Paused => format!("Up {} (Paused)", since(record.started_ns)),
        State::Exited => {
            format!("Exited ({}) {} ago", record.exit_code.unwrap_or_default(), since(record.finished_ns))
        }
        State::Removing => "Removal In Progress".into(),
    }
}
