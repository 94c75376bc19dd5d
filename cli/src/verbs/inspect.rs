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
    let store = open(global)?;
    show(typed.verb(), &typed.names, typed.format.as_deref(), |name| object(&store, name, typed))
}

/// Prints what `find` knows of each name, as JSON or as the format says: `inspect` of whatever `verb` is about.
pub(super) fn show(
    verb: &str,
    names: &[String],
    format: Option<&str>,
    find: impl Fn(&str) -> Result<Value>,
) -> Result<u8> {
    let bad = |why: String| Error::Usage { what: format!("--format: {why}"), verb: verb.to_owned() };
    let template = match format {
        None | Some("") => None,
        Some("json") => Some(Template::parse("{{json .}}").map_err(bad)?),
        Some(text) => Some(Template::parse(text).map_err(bad)?),
    };
    let (mut found, mut code) = (Vec::new(), 0);
    for name in names {
        match find(name) {
            Ok(value) => found.push(value),
            Err(error) => {
                output::failure(&error);
                code = 1;
            }
        }
    }
    let text = match template {
        Some(template) => found
            .iter()
            .map(|value| Ok(template.render(value).map_err(bad)? + "\n"))
            .collect::<Result<String>>()?,
        None => pretty(&Value::from(found)) + "\n",
    };
    output::text(&text);
    Ok(code)
}

fn object(store: &Store, name: &str, typed: &Inspect) -> Result<Value> {
    let kind = typed.kind.as_deref();
    if kind == Some("volume") {
        return super::volume::known(store, name);
    }
    if kind == Some("network") {
        return super::network::known(store, name);
    }
    if kind != Some("image") {
        match store.containers().find(name) {
            Ok(record) => return details::container(store, &record, typed.size),
            Err(Failure::NoSuchContainer { .. }) if kind.is_none() => {}
            Err(error) => return Err(error.into()),
        }
    }
    let images = Images::new(store);
    let line = Line::new(false);
    match images.find_or_base(name, guest_directory().as_deref(), &mut |progress| line.show(progress)) {
        Ok(image) => Ok(images.inspect(&image)?),
        Err(Failure::NoSuchImage { .. } | Failure::Reference { .. }) if kind.is_none() => {
            let network = |_| super::network::known(store, name);
            super::volume::known(store, name).or_else(network).map_err(|_| Error::Usage {
                what: format!("no such container, image, volume or network: {name}"),
                verb: typed.verb().into(),
            })
        }
        Err(error) => Err(error.into()),
    }
}

/// JSON with docker's indentation of four.
pub(super) fn pretty(value: &Value) -> String {
    let mut out = Vec::new();
    let formatter = serde_json::ser::PrettyFormatter::with_indent(b"    ");
    let written = value.serialize(&mut serde_json::Serializer::with_formatter(&mut out, formatter));
    match written {
        Ok(()) => String::from_utf8_lossy(&out).into_owned(),
        Err(_) => value.to_string(),
    }
}
