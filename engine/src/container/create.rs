//! A new container: its image found, its plan made, its row and its directory.

use std::os::unix::fs::DirBuilderExt;

use super::{Config, Plan, Request, RootSource, new_id, new_name};
use crate::events::Events;
use crate::image::{self, Image, Images, Process};
use crate::network::Networks;
use crate::store::{Record, State, Store, now_ns};
use crate::volume::{self, VolumeMount, Volumes};
use crate::{Error, Result};

/// How often a made-up name is tried.
const NAMES: u32 = 16;

/// A container before it has a row.
#[derive(Debug)]
pub(crate) struct Wanted {
    pub(crate) id: String,
    pub(crate) plan: Plan,
    pub(crate) image: Option<Image>,
}

impl Wanted {
    /// Joins a request with its image.
    pub(crate) fn new(store: &Store, request: &Request) -> Result<Self> {
        let image = match &request.root {
            RootSource::Image(name) => {
                let guest = image::guest_directory();
                let image = Images::new(store).find_or_base(name, guest.as_deref(), &mut |_| {})?;
                image.must_run_here()?;
                Some(image)
            }
            RootSource::Directory(_) => None,
        };
        let id = new_id()?;
        let defaults = Process::default();
        let plan = Plan::new(request, image.as_ref().map_or(&defaults, |image| &image.config.process), &id)?;
        Ok(Wanted { id, plan, image })
    }
}

/// Makes a container without starting it.
///
/// # Errors
/// As a start of it would fail before its machine: no such image, a name that is taken, nothing to run.
pub fn create(store: &Store, request: &Request) -> Result<Record> {
    let wanted = Wanted::new(store, request)?;
    let mut request = request.clone();
    let record = insert(store, &mut request, &wanted, None)?;
    let request = &request;
    let image = wanted.image.as_ref();
    let root = image.map(|image| Images::new(store).root(image)).transpose();
    let attached = root.and_then(|root| attach_volumes(store, &record.id, request, image, root.as_deref()));
    if let Err(error) = attached {
        let _ = super::remove_container(store, &record, true);
        return Err(error);
    }
    Ok(record)
}

/// Gives a new container its volumes; `root` is the image's file.
pub(crate) fn attach_volumes(
    store: &Store,
    id: &str,
    request: &Request,
    image: Option<&Image>,
    root: Option<&std::path::Path>,
) -> Result<()> {
    let volumes = volumes(request, image);
    if volumes.is_empty() { Ok(()) } else { Volumes::new(store).attach(id, &volumes, root) }
}

/// Whether a container has volumes at all.
pub(crate) fn has_volumes(request: &Request, image: Option<&Image>) -> bool {
    !volumes(request, image).is_empty()
}

fn volumes(request: &Request, image: Option<&Image>) -> Vec<VolumeMount> {
    let defaults = Process::default();
    volume::wanted(request, image.map_or(&defaults, |image| &image.config.process))
}

/// What a row says of its container.
fn config(request: &Request, wanted: &Wanted) -> Result<String> {
    let config = Config { request: request.clone(), plan: wanted.plan.clone() };
    serde_json::to_string(&config)
        .map_err(|source| Error::Json { what: "the container's record".into(), source })
}

/// Makes the directory and the row; `pid` is the monitor's, if one starts it at once. The request is given its places on
/// networks that it shares.
pub(crate) fn insert(
    store: &Store,
    request: &mut Request,
    wanted: &Wanted,
    pid: Option<i32>,
) -> Result<Record> {
    let config = config(request, wanted)?;
    let dir = store.container_dir(&wanted.id);
    std::fs::DirBuilder::new().mode(0o700).create(&dir).map_err(|source| Error::io("make", &dir, source))?;
    let mut record = Record {
        id: wanted.id.clone(),
        name: String::new(),
        image: wanted.image.as_ref().map(|image| image.id),
        config,
        state: State::Created,
        pid,
        exit_code: None,
        oom: false,
        error: String::new(),
        created_ns: now_ns(),
        started_ns: None,
        finished_ns: None,
        restarts: 0,
    };
    let mut attempt = 0;
    loop {
        record.name = match &request.name {
            Some(name) => name.clone(),
            None => new_name(attempt)?,
        };
        match insert_row(store, &mut record, request, wanted) {
            Ok(()) => {
                let image = request.root.name();
                let about = [("image", image.as_str()), ("name", record.name.as_str())];
                Events::new(store.root()).add("container", "create", &record.id, &about);
                return Ok(record);
            }
            Err(Error::NameTaken { .. }) if request.name.is_none() && attempt < NAMES => attempt += 1,
            Err(error) => {
                let _ = std::fs::remove_dir_all(&dir);
                return Err(error);
            }
        }
    }
}

/// The row, and in one step with it the places on networks that are shared.
fn insert_row(store: &Store, record: &mut Record, request: &mut Request, wanted: &Wanted) -> Result<()> {
    if !request.network.is_shared() {
        return store.containers().insert(record);
    }
    store.write("record the container", |db| {
        store.containers().insert(record)?;
        Networks::new(store).attach(db, record, &mut request.network)?;
        record.config = config(request, wanted)?;
        store.containers().update(record)
    })
}
