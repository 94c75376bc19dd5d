//! `servin commit`.

use std::time::Instant;

use servin_engine::Error as Failure;
use servin_engine::container::{Config, Text};
use servin_engine::files::{FilesAsk, TarWriter};
use servin_engine::image::{Change, Composed, Images};

use super::containers::config;
use super::files::server;
use crate::args::{About, Commit, Global};
use crate::error::Result;
use crate::{output, spec};

/// Makes an image of a container and prints its id.
pub(crate) fn run(global: &Global, began: Instant, typed: &Commit) -> Result<u8> {
    let mut composed = about(&typed.about, typed.reference.as_deref())?;
    let (record, mut client) = server(global, began, &typed.name)?;
    let Some(id) = record.image else {
        return Err(
            Failure::Unsupported { what: "an image of a container without one (--rootfs)".into() }.into()
        );
    };
    let of_container = config(&record)?;
    composed.created_by = words(&of_container.plan.argv).join(" ");
    let own = std::mem::take(&mut composed.changes);
    composed.changes = settings(&of_container);
    composed.changes.extend(own);
    let store = super::store(global)?;
    let images = Images::new(&store);
    let base = images.find(&id.to_string())?;
    let made = images.commit(&base, &composed, &mut |out| {
        client.ask(&FilesAsk::Layer { pause: typed.pause })?;
        let mut tar = TarWriter::new(out);
        tar.receive(&mut client, &|path| Some(path.to_vec()))?;
        tar.finish().map_err(|source| Failure::io("write", "the layer", source))?;
        // Before the image is recorded: of a commit that fails there is none.
        client.finish()
    })?;
    output::text(&format!("{}\n", made.id));
    Ok(0)
}

/// What was typed about the image.
pub(super) fn about(typed: &About, reference: Option<&str>) -> Result<Composed> {
    Ok(Composed {
        name: reference.map(str::parse).transpose()?,
        author: typed.author.clone().unwrap_or_default(),
        comment: typed.message.clone().unwrap_or_default(),
        changes: spec::change::changes(&typed.changes)?,
        ..Composed::default()
    })
}

fn words(list: &[Text]) -> Vec<String> {
    list.iter().map(ToString::to_string).collect()
}

/// What the container was given, as the image's defaults.
fn settings(Config { request, plan }: &Config) -> Vec<Change> {
    let mut changes = Vec::new();
    if let Some(entrypoint) = &request.entrypoint {
        let program = if entrypoint.0.is_empty() { Vec::new() } else { vec![entrypoint.to_string()] };
        changes.push(Change::Words("Entrypoint", program));
    }
    if request.entrypoint.is_some() || !request.args.is_empty() {
        changes.push(Change::Words("Cmd", words(&request.args)));
    }
    for variable in words(&plan.env) {
        if let Some((name, value)) = variable.split_once('=') {
            changes.push(Change::Env(name.to_owned(), value.to_owned()));
        }
    }
    changes.push(Change::Text("User", plan.user.clone()));
    changes.push(Change::Text("WorkingDir", plan.cwd.to_string()));
    changes.extend(plan.labels.iter().map(|(name, value)| Change::Label(name.clone(), value.clone())));
    changes
}
