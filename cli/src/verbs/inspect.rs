//! `servin inspect` and `servin image inspect`.

use serde::Serialize;
use serde_json::{Value, json};
use servin_engine::Error as Failure;
use servin_engine::image::{Images, guest_directory};
use servin_engine::store::{Record, State, Store};
use servin_engine::time::rfc3339;

use super::progress::Line;
use crate::args::{Global, Inspect};
use crate::error::{Error, Result};
use crate::output;
use crate::template::Template;

/// Prints what is known of containers and images. What is not found is said, the others are printed, and the code is 1.
pub(crate) fn run(global: &Global, typed: &Inspect) -> Result<u8> {
    let bad = |why: String| Error::Usage { what: format!("--format: {why}"), verb: "inspect".into() };
    let template = match typed.format.as_deref() {
        None | Some("") => None,
        Some("json") => Some(Template::parse("{{json .}}").map_err(bad)?),
        Some(text) => Some(Template::parse(text).map_err(bad)?),
    };
    let store = super::store(global)?;
    let mut found = Vec::new();
    let mut code = 0;
    for name in &typed.names {
        match object(&store, name, typed.kind.as_deref()) {
            Ok(value) => found.push(value),
            Err(error) => {
                output::line(&output::chain(&error), None);
                code = 1;
            }
        }
    }
    let mut text = String::new();
    match template {
        Some(template) => {
            for value in &found {
                text.push_str(&template.render(value).map_err(bad)?);
                text.push('\n');
            }
        }
        None => text = pretty(&Value::from(found)) + "\n",
    }
    output::text(&text);
    Ok(code)
}

fn object(store: &Store, name: &str, kind: Option<&str>) -> Result<Value> {
    if kind != Some("image") {
        match store.containers().find(name) {
            Ok(record) => return Ok(container(&record)),
            Err(Failure::NoSuchContainer { .. }) if kind.is_none() => {}
            Err(error) => return Err(error.into()),
        }
    }
    let images = Images::new(store);
    let line = Line::new(false);
    match images.find_or_base(name, guest_directory().as_deref(), &mut |progress| line.show(progress)) {
        Ok(image) => Ok(images.inspect(&image)?),
        Err(Failure::NoSuchImage { .. } | Failure::Reference { .. }) if kind.is_none() => {
            Err(Error::Usage { what: format!("no such container or image: {name}"), verb: String::new() })
        }
        Err(error) => Err(error.into()),
    }
}

/// A container with docker's field names, from its row.
fn container(record: &Record) -> Value {
    let never = "0001-01-01T00:00:00Z".to_owned();
    let time = |ns: Option<i64>| ns.map_or_else(|| never.clone(), rfc3339);
    let is_up = matches!(record.state, State::Running | State::Paused);
    json!({
        "Id": record.id,
        "Name": format!("/{}", record.name),
        "Created": rfc3339(record.created_ns),
        "Image": record.image.map_or_else(String::new, |image| image.to_string()),
        "State": {
            "Status": record.state.as_str(),
            "Running": is_up,
            "Paused": record.state == State::Paused,
            "OOMKilled": record.oom,
            "Pid": record.pid.filter(|_| is_up).unwrap_or(0),
            "ExitCode": record.exit_code.unwrap_or(0),
            "Error": record.error,
            "StartedAt": time(record.started_ns),
            "FinishedAt": time(record.finished_ns),
        },
        "Request": serde_json::from_str::<Value>(&record.config).unwrap_or(Value::Null),
    })
}

/// JSON with docker's indentation of four.
fn pretty(value: &Value) -> String {
    let mut out = Vec::new();
    let formatter = serde_json::ser::PrettyFormatter::with_indent(b"    ");
    let written = value.serialize(&mut serde_json::Serializer::with_formatter(&mut out, formatter));
    match written {
        Ok(()) => String::from_utf8_lossy(&out).into_owned(),
        Err(_) => value.to_string(),
    }
}
