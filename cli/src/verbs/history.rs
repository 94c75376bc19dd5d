//! `servin history`.

use serde_json::{Value, json};
use servin_engine::image::{Images, Step, guest_directory};
use servin_engine::store::now_ns;
use servin_engine::time::parse_rfc3339;

use super::progress::Line;
use crate::args::Global;
use crate::error::Result;
use crate::listing::Format;
use crate::{human, output};

/// The longest CREATED BY in a table that is to fit a terminal.
const COMMAND_WIDTH: usize = 45;

const COLUMNS: [(&str, &str); 5] = [
    ("IMAGE", "ID"),
    ("CREATED", "CreatedSince"),
    ("CREATED BY", "CreatedBy"),
    ("SIZE", "Size"),
    ("COMMENT", "Comment"),
];

/// Prints the steps that made an image, the newest first.
pub(crate) fn run(
    global: &Global,
    image: &str,
    quiet: bool,
    no_trunc: bool,
    human: bool,
    format: Option<&str>,
) -> Result<u8> {
    let format = Format::new(format, quiet, "history")?;
    let store = super::store(global)?;
    let images = Images::new(&store);
    let line = Line::new(false);
    let image =
        images.find_or_base(image, guest_directory().as_deref(), &mut |progress| line.show(progress))?;
    drop(line);
    let rows: Vec<Value> = images.history(&image)?.iter().map(|step| row(step, no_trunc, human)).collect();
    output::text(&format.show(&rows, &COLUMNS, "ID")?);
    Ok(0)
}

fn row(step: &Step, no_trunc: bool, human: bool) -> Value {
    let id = step
        .id
        .strip_prefix("sha256:")
        .filter(|_| !no_trunc)
        .map_or(step.id.as_str(), |hex| &hex[..12.min(hex.len())]);
    let mut command = step.created_by.replace(['\t', '\n'], " ");
    if !no_trunc && command.chars().count() > COMMAND_WIDTH {
        command = command.chars().take(COMMAND_WIDTH - 1).chain(['…']).collect();
    }
    // Reproducible builds say 1970, which means nothing.
    let since = match parse_rfc3339(&step.created).filter(|ns| *ns > 0) {
        Some(then) if human => human::ago(then, now_ns()),
        Some(_) => step.created.clone(),
        None => "N/A".into(),
    };
    json!({
        "ID": id,
        "CreatedAt": step.created,
        "CreatedSince": since,
        "CreatedBy": command,
        "Size": if human { human::size(step.size) } else { step.size.to_string() },
        "Comment": step.comment,
    })
}
