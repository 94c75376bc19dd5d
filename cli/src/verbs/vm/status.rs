//! `servin vm status` and `servin vm config`.

use serde_json::{Value, json};
use servin_engine::container::{DEFAULT_DISK, DEFAULT_MEMORY, short};
use servin_engine::guest::{Guest, INITRAMFS, KERNEL};
use servin_engine::host::{self, Host};
use servin_engine::store::State;
use servin_engine::template::LIMIT;
use servin_engine::time::rfc3339;

use crate::args::Global;
use crate::error::Result;
use crate::listing::Format;
use crate::verbs::containers::{config, open};
use crate::{human, output};

const MACHINES: &[(&str, &str)] = &[
    ("CONTAINER ID", "ID"),
    ("NAME", "Name"),
    ("PID", "PID"),
    ("STATUS", "Status"),
    ("CPUS", "CPUs"),
    ("MEMORY", "Memory"),
    ("RESIDENT", "Resident"),
    ("STARTED", "StartedAt"),
];

const SETTINGS: &[(&str, &str)] = &[("SETTING", "Setting"), ("VALUE", "Value"), ("CHANGED BY", "ChangedBy")];

/// The machines that run.
pub(super) fn machines(global: &Global, format: &Format, whole: bool) -> Result<u8> {
    let store = open(global)?;
    let mut rows = Vec::new();
    for record in store.containers().list()? {
        let (State::Running | State::Paused, Some(pid)) = (record.state, record.pid) else { continue };
        let request = config(&record)?.request;
        rows.push(json!({
            "ID": if whole { record.id.clone() } else { short(&record.id) },
            "Name": record.name,
            "PID": pid,
            "Status": if record.state == State::Paused { "paused" } else { "running" },
            "CPUs": request.cpus.count(),
            "Memory": human::memory(request.memory),
            "Resident": host::resident(pid).map_or_else(|| "-".to_owned(), human::memory),
            "StartedAt": record.started_ns.map_or_else(String::new, rfc3339),
        }));
    }
    output::text(&format.show(&rows, MACHINES, "ID")?);
    Ok(0)
}

/// What a machine is made of where nothing else is said.
pub(super) fn settings(global: &Global, format: &Format) -> Result<u8> {
    let setting =
        |name: &str, value: String, by: &str| json!({ "Setting": name, "Value": value, "ChangedBy": by });
    let place = |file| match Guest::locate(file) {
        Some(dir) => dir.join(file).display().to_string(),
        None => "not found".to_owned(),
    };
    let host = Host::look();
    let hypervisor = host.usable().map_or("none: \"servin doctor\" says why", host::Kind::name);
    let huge_pages = host.huge_pages.unwrap_or_else(|| "none".into());
    let rows: Vec<Value> = vec![
        setting("hypervisor", hypervisor.to_owned(), "the host"),
        setting("huge pages", huge_pages, "the host"),
        setting(
            "data root",
            crate::verbs::data_root(global)?.display().to_string(),
            "--data-root, SERVIN_DATA_ROOT",
        ),
        setting("kernel", place(KERNEL), "run --kernel, SERVIN_GUEST_DIR"),
        setting("initramfs", place(INITRAMFS), "SERVIN_GUEST_DIR"),
        setting("memory", human::memory(DEFAULT_MEMORY), "run --memory"),
        setting("cpus", "1".to_owned(), "run --cpus"),
        setting("disk", human::memory(DEFAULT_DISK), "run --storage-opt size="),
        setting("warm start", "on".to_owned(), "run --no-warm"),
        setting("templates", format!("at most {}", human::memory(LIMIT)), "vm images prune --keep"),
    ];
    output::text(&format.show(&rows, SETTINGS, "Setting")?);
    Ok(0)
}
