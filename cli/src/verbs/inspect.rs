//! `servin inspect` and `servin image inspect`.

use serde::Serialize;
use serde_json::Value;
use servin_engine::Error as Failure;
use servin_engine::image::{Images, guest_directory};
use servin_engine::store::Store;

use super::containers::open;
use super::details;
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
    let store = open(global)?;
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
            Ok(record) => return details::container(store, &record),
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
