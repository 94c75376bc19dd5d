//! `servin system df`.

use std::collections::HashSet;

use serde_json::{Value, json};
use servin_engine::container::short;
use servin_engine::image::Images;
use servin_engine::snapshot::Snapshots;
use servin_engine::store::{State, disk_usage};
use servin_engine::template::Templates;
use servin_engine::volume::Volumes;

use super::containers::open;
use crate::args::Global;
use crate::error::Result;
use crate::listing::Format;
use crate::{human, output};

const COLUMNS: &[(&str, &str)] = &[
    ("TYPE", "Type"),
    ("TOTAL", "TotalCount"),
    ("ACTIVE", "Active"),
    ("SIZE", "Size"),
    ("RECLAIMABLE", "Reclaimable"),
];

/// Prints what takes space below the data root.
pub(crate) fn run(global: &Global, verbose: bool, format: Option<&str>) -> Result<u8> {
    let format = Format::new(format, false, "system df")?;
    let store = open(global)?;
    let images = Images::new(&store);
    let containers = store.containers().list()?;
    let used: HashSet<_> = containers.iter().filter_map(|record| record.image).collect();
    let list = images.list()?;
    // Blobs are shared; what only unused images need can be had back.
    let mut image_rows = Vec::new();
    let (mut all, mut needed) = (HashSet::new(), HashSet::new());
    let (mut size, mut reclaimable) = (0, 0);
    for image in &list {
        let is_used = used.contains(&image.id);
        let root = images.root_size(&image.id);
        size += root;
        reclaimable += if is_used { 0 } else { root };
        let mut own = root;
        for (digest, bytes) in images.blob_sizes(&image.id)? {
            own += bytes;
            size += if all.insert(digest) { bytes } else { 0 };
            if is_used {
                needed.insert((digest, bytes));
            }
        }
        let names = images.names(&image.id)?;
        let name = names.first().map_or_else(|| "<none>".to_owned(), |name| name.familiar());
        image_rows.push(json!({
            "Name": name, "ID": image.id.short(), "Size": human::size(own),
            "Containers": containers.iter().filter(|record| record.image == Some(image.id)).count().to_string(),
        }));
    }
    let kept: u64 = needed.iter().map(|(_, bytes)| bytes).sum();
    let blobs: u64 = size - list.iter().map(|image| images.root_size(&image.id)).sum::<u64>();
    reclaimable += blobs.saturating_sub(kept);
    let lives = |state| matches!(state, State::Running | State::Paused);
    let sizes: Vec<u64> =
        containers.iter().map(|record| disk_usage(&store.container_dir(&record.id))).collect();
    let ended: u64 =
        containers.iter().zip(&sizes).filter(|(record, _)| !lives(record.state)).map(|(_, size)| size).sum();
    let templates = Templates::new(&store).list()?;
    let of_templates: u64 = templates.iter().map(|template| template.size).sum();
    let snapshots = Snapshots::new(&store).list()?;
    let volumes = Volumes::new(&store);
    let mut in_use = HashSet::new();
    for record in &containers {
        in_use.extend(volumes.of(&record.id)?.into_iter().map(|used| used.volume));
    }
    let list_of_volumes = volumes.list()?;
    let of_volumes: Vec<(bool, u64)> = list_of_volumes
        .iter()
        .map(|volume| (in_use.contains(&volume.name), disk_usage(&volumes.path(&volume.name))))
        .collect();
    let rows = [
        row(
            "Images",
            list.len(),
            list.iter().filter(|image| used.contains(&image.id)).count(),
            size,
            reclaimable,
        ),
        row(
            "Containers",
            containers.len(),
            containers.iter().filter(|record| lives(record.state)).count(),
            sizes.iter().sum(),
            ended,
        ),
        row(
            "Local Volumes",
            of_volumes.len(),
            of_volumes.iter().filter(|(is_used, _)| *is_used).count(),
            of_volumes.iter().map(|(_, size)| size).sum(),
            of_volumes.iter().filter(|(is_used, _)| !is_used).map(|(_, size)| size).sum(),
        ),
        row("Snapshots", snapshots.len(), 0, snapshots.iter().map(|found| found.size).sum(), 0),
        row("Templates", templates.len(), 0, of_templates, of_templates),
    ];
    let mut text = String::new();
    if verbose && format == Format::Table {
        text.push_str("Images:\n\n");
        let columns = [("NAME", "Name"), ("IMAGE ID", "ID"), ("SIZE", "Size"), ("CONTAINERS", "Containers")];
        text.push_str(&format.show(&image_rows, &columns, "ID")?);
        text.push_str("\nContainers:\n\n");
        let one = |(record, size): (&servin_engine::store::Record, &u64)| json!({ "ID": short(&record.id), "Names": record.name, "State": record.state.as_str(), "Size": human::size(*size) });
        let container_rows: Vec<Value> = containers.iter().zip(&sizes).map(one).collect();
        let columns = [("CONTAINER ID", "ID"), ("NAMES", "Names"), ("STATE", "State"), ("SIZE", "Size")];
        text.push_str(&format.show(&container_rows, &columns, "ID")?);
        text.push_str("\nSnapshots:\n\n");
        let snapshot_rows: Vec<Value> = snapshots
            .iter()
            .map(|found| json!({ "Name": found.name, "Container": found.about.name, "Size": human::size(found.size) }))
            .collect();
        let columns = [("NAME", "Name"), ("CONTAINER", "Container"), ("SIZE", "Size")];
        text.push_str(&format.show(&snapshot_rows, &columns, "Name")?);
        text.push_str("\nTemplates:\n\n");
        let template_rows: Vec<Value> = templates
            .iter()
            .map(|template| json!({ "ID": short(&template.key), "Image": template.about.image, "Size": human::size(template.size) }))
            .collect();
        let columns = [("TEMPLATE ID", "ID"), ("IMAGE", "Image"), ("SIZE", "Size")];
        text.push_str(&format.show(&template_rows, &columns, "ID")?);
    } else {
        text = format.show(&rows, COLUMNS, "Type")?;
    }
    output::text(&text);
    Ok(0)
}

fn row(kind: &str, total: usize, active: usize, size: u64, reclaimable: u64) -> Value {
    let percent = |bytes: u64| bytes.saturating_mul(100).checked_div(size).unwrap_or(0);
    json!({
        "Type": kind, "TotalCount": total.to_string(), "Active": active.to_string(), "Size": human::size(size),
        "Reclaimable": format!("{} ({}%)", human::size(reclaimable), percent(reclaimable)),
    })
}
