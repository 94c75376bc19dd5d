//! `servin vm`: the machines that containers run in, and the templates that warm starts clone.

mod status;

use std::collections::BTreeSet;

use serde_json::{Value, json};
use servin_engine::container::{container_memory, short};
use servin_engine::monitor::wire::Failure;
use servin_engine::store::now_ns;
use servin_engine::template::{Template, Templates};
use servin_engine::time::rfc3339;

use crate::args::{Global, Run, Vm};
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
pub(crate) fn run(global: &Global, typed: Vm) -> Result<u8> {
    match typed {
        Vm::Status { quiet, no_trunc, format } => {
            return status::machines(global, &Format::new(format.as_deref(), quiet, "vm status")?, no_trunc);
        }
        Vm::Config { format } => {
            return status::settings(global, &Format::new(format.as_deref(), false, "vm config")?);
        }
        Vm::Pull(run) => return pull(global, *run),
        _ => {}
    }
    let templates = Templates::new(&super::store(global)?);
    match &typed {
        Vm::Update => return update(global, &templates),
        Vm::Images { quiet, no_trunc, format } => {
            let format = Format::new(format.as_deref(), *quiet, "vm images")?;
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
            removed(&templates.prune(keep)?);
        }
        _ => {}
    }
    Ok(0)
}

fn removed(gone: &[Template]) {
    let freed: u64 = gone.iter().map(|template| template.size).sum();
    let lines: String = gone.iter().map(|template| format!("Deleted: {}\n", template.key)).collect();
    output::text(&format!("{lines}Total reclaimed space: {}\n", human::size(freed)));
}

/// Makes the template of an image, or finds it made, and prints its key.
fn pull(global: &Global, run: Run) -> Result<u8> {
    let (image, quiet) = (run.words.first().map(|word| word.display().to_string()), run.quiet);
    let asked = now_ns();
    let code = super::run::template(global, run).map_err(of_pull)?;
    if code != 0 {
        return Ok(code);
    }
    // The one that was made or cloned just now.
    let templates = Templates::new(&super::store(global)?).list()?;
    let of_image = templates.iter().filter(|template| Some(&template.about.image) == image.as_ref());
    let Some(template) = of_image.max_by_key(|template| template.used_ns) else {
        let what = "no template was left: --debug tells why".to_owned();
        return Err(Error::Usage { what, verb: "vm images pull".into() });
    };
    let (key, size) = (short(&template.key), human::size(template.size));
    let how = if template.about.created_ns >= asked { "made" } else { "is up to date" };
    output::text(&match quiet {
        true => format!("{}\n", template.key),
        false => format!("{}: template {key} {how} ({size})\n", template.about.image),
    });
    Ok(0)
}

/// A failure of the run that was to leave a template, which is none of a run here.
fn of_pull(error: Error) -> Error {
    match error.with_code(1) {
        Error::Usage { what, .. } => Error::Usage { what, verb: "vm images pull".into() },
        Error::Monitor(failure) => Error::Monitor(Failure { code: 1, ..failure }),
        other => other,
    }
}

/// Makes every template anew that today's runs would not clone, and removes what none of them would.
fn update(global: &Global, templates: &Templates) -> Result<u8> {
    let began = now_ns();
    let wanted: BTreeSet<_> = templates
        .list()?
        .into_iter()
        .map(|template| (template.about.image, template.about.memory_mib, template.about.cpus))
        .collect();
    let mut worst = 0;
    for (image, memory, cpus) in wanted {
        let run = Run {
            rm: true,
            memory: Some(format!("{}m", container_memory(memory << 20) >> 20)),
            cpus: Some(cpus.to_string()),
            pull: Some("never".into()),
            words: vec![image.clone().into()],
            ..Run::default()
        };
        match pull(global, run) {
            Ok(code) => worst = worst.max(code),
            // An image that is gone takes its templates with it, and the others are made all the same.
            Err(error) => {
                output::line(&format!("{image}: {error}"), None);
                worst = worst.max(1);
            }
        }
    }
    removed(&templates.prune_unused(began)?);
    Ok(worst)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_template_that_cannot_be_made_is_a_failure_like_others() {
        let failure = Failure { code: 125, text: "no such image".into(), hint: None };
        assert_eq!(of_pull(Error::Monitor(failure)).code(), 1);
        let usage = of_pull(Error::Usage { what: "x".into(), verb: "run".into() });
        assert_eq!(
            (usage.code(), usage.hint().as_deref()),
            (1, Some("see \"servin vm images pull --help\""))
        );
    }
}
