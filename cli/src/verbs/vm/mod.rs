//! `servin vm images`: the templates that warm starts clone.

use serde_json::{Value, json};
use servin_engine::container::short;
use servin_engine::store::now_ns;
use servin_engine::template::{Template, Templates};
use servin_engine::time::rfc3339;

use crate::args::{Global, Vm};
use crate::error::{Error, Result};
use crate::listing::Format;
use crate::{human, output, spec};

const COLUMNS: &[(&str, &str)] = &[
    ("TEMPLATE ID", "ID"),
    ("IMAGE", "Image"),
    ("MEMORY", "Memory"),
    ("CPUS", "CPUs"),
    ("CREATED", "CreatedSince"),
    ("USED", "UsedSince"),
    ("SIZE", "Size"),
];

/// Does what was asked.
pub(crate) fn run(global: &Global, typed: &Vm) -> Result<u8> {
    let templates = Templates::new(&super::store(global)?);
    match typed {
        Vm::Images { quiet, no_trunc, format } => {
            let format = Format::new(format.as_deref(), *quiet, "vm")?;
            let rows: Vec<Value> =
                templates.list()?.iter().map(|template| row(template, *no_trunc)).collect();
            output::text(&format.show(&rows, COLUMNS, "ID")?);
        }
        Vm::Prune { keep } => {
            let keep = match keep {
                None => 0,
                Some(text) => spec::size::bytes(text).map_err(|why| Error::Value {
                    flag: "--keep",
                    value: text.clone(),
                    why,
                    code: 1,
                })?,
            };
            let gone = templates.prune(keep)?;
            let freed: u64 = gone.iter().map(|template| template.size).sum();
            let lines: String = gone.iter().map(|template| format!("Deleted: {}\n", template.key)).collect();
            output::text(&format!("{lines}Total reclaimed space: {}\n", human::size(freed)));
        }
    }
    Ok(0)
}

fn row(template: &Template, whole: bool) -> Value {
    let about = &template.about;
    json!({
        "ID": if whole { template.key.clone() } else { short(&template.key) },
        "Image": about.image,
        "Memory": human::size(about.memory_mib << 20),
        "CPUs": about.cpus.to_string(),
        "CreatedAt": rfc3339(about.created_ns),
        "CreatedSince": human::ago(about.created_ns, now_ns()),
        "UsedAt": rfc3339(template.used_ns),
        "UsedSince": human::ago(template.used_ns, now_ns()),
        "Size": human::size(template.size),
    })
}
