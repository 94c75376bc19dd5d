//! The container whose monitor this becomes, and what its machine is made from.

use std::path::PathBuf;
use std::time::Instant;

use servin_init::proto::{Lower, Root, Upper};

use super::launch::Launch;
use super::shares::{Share, shares};
use crate::container::{
    self, BindShare, Config, DEFAULT_DISK, Disk, Plan, ROOT_TAG, Request, RootSource, RunDir, Wanted,
    machine_memory,
};
use crate::guest::Guest;
use crate::image::{Image, Images};
use crate::network::{self, Card, Networks};
use crate::snapshot::Chain;
use crate::store::{self, State, Store};
use crate::template::Templates;
use crate::trace::Trace;
use crate::{Error, Result};

/// What the machine is made from.
#[derive(Debug, Clone)]
pub(crate) struct MachinePlan {
    /// Kernel and initramfs.
    pub(crate) guest: Guest,
    /// Bytes.
    pub(crate) memory: u64,
    /// Virtual CPUs.
    pub(crate) cpus: u32,
    /// A read-only disk that becomes `/dev/vda`.
    pub(crate) disk: Option<PathBuf>,
    /// The disk behind it, which takes the container's changes.
    pub(crate) changes: Option<Disk>,
    /// Directories and files of the host.
    pub(crate) shares: Vec<Share>,
    /// The network card.
    pub(crate) card: Option<Card>,
    /// The guest kernel's words go to standard error.
    pub(crate) verbose: bool,
    /// When the command was executed.
    pub(crate) began: Instant,
    /// The root file system.
    pub(crate) root: Root,
    /// The image's name, for people.
    pub(crate) image: String,
    /// Where templates are; without, the machine boots and leaves none.
    pub(crate) templates: Option<Templates>,
    /// The snapshot that it continues, with those that it builds on.
    pub(crate) snapshot: Option<Chain>,
    /// Its start is noted here.
    pub(crate) trace: Option<Trace>,
}

/// A container whose monitor this becomes.
pub(super) struct Found {
    pub(super) record: store::Record,
    pub(super) request: Request,
    pub(super) plan: Plan,
    pub(super) image: Option<Image>,
    pub(super) run: RunDir,
}

impl Found {
    /// A container that is there: it must not run.
    pub(super) fn again(store: &Store, id: &str) -> Result<Self> {
        let Some(record) = store.containers().get(id)? else {
            return Err(Error::NoSuchContainer { name: container::short(id) });
        };
        if !matches!(record.state, State::Created | State::Exited) {
            return Err(Error::Running { name: record.name });
        }
        let Config { request, plan } = serde_json::from_str(&record.config)
            .map_err(|source| Error::Json { what: format!("the record of {}", record.name), source })?;
        let image = match &record.image {
            Some(id) => Some(Images::new(store).find(&id.to_string())?),
            None => None,
        };
        let run = RunDir::create(store.root(), id)?;
        Ok(Found { record, request, plan, image, run })
    }

    /// Binds its ports anew; the record says which they are this time.
    pub(super) fn bind(&mut self, store: &Store) -> Result<Option<Card>> {
        self.request.network.count_anew();
        Networks::new(store).take_places(&self.record.id, &mut self.request.network)?;
        let mut card = card(store, &self.request, &mut self.plan)?;
        if let Some(card) = &mut card {
            card.plug(&self.request.network);
        }
        let config = Config { request: self.request.clone(), plan: self.plan.clone() };
        self.record.config = serde_json::to_string(&config)
            .map_err(|source| Error::Json { what: "the container's record".into(), source })?;
        Ok(card)
    }
}

/// Binds the ports that are to be published, and notes them in the plan; `None` for a container without a network card.
fn card(store: &Store, request: &Request, plan: &mut Plan) -> Result<Option<Card>> {
    let bound = network::bind(&request.network.wanted(&plan.exposed))?;
    plan.ports = bound.iter().map(|bound| bound.published.clone()).collect();
    Ok(request.network.has_card().then(|| Card::new(bound, store.root())))
}

/// The machine of a container.
pub(super) fn machine_plan(
    launch: &Launch,
    store: &Store,
    request: &Request,
    image: Option<&Image>,
    id: &str,
    shares: Vec<Share>,
    card: Option<Card>,
) -> Result<MachinePlan> {
    let trace = launch.trace.as_deref().map(Trace::create).transpose()?;
    let kernel = request.kernel.as_ref().map(|kernel| kernel.as_path());
    Ok(MachinePlan {
        guest: Guest::find(kernel)?,
        memory: machine_memory(request.memory),
        cpus: request.cpus.count(),
        disk: image.map(|image| Images::new(store).root(image)).transpose()?,
        changes: Some(Disk::new(&store.container_dir(id), request.disk.unwrap_or(DEFAULT_DISK))),
        shares,
        card,
        verbose: launch.keep_stderr,
        began: launch.began,
        root: root(request),
        image: match &request.root {
            RootSource::Image(name) => name.clone(),
            RootSource::Directory(_) => String::new(),
        },
        templates: (launch.warm && trace.is_none()).then(|| Templates::new(store)),
        snapshot: None,
        trace,
    })
}

/// A container that is made now, and its machine.
pub(super) fn made(
    launch: &Launch,
    store: &Store,
    mut request: Request,
    mut wanted: Wanted,
) -> Result<(Found, MachinePlan, Vec<BindShare>)> {
    // A taken port is an error before anything is made.
    let card = card(store, &request, &mut wanted.plan)?;
    let (shares, binds) = shares(&request)?;
    // What is wrong with the machine is told before there is a container.
    let mut machine_plan =
        machine_plan(launch, store, &request, wanted.image.as_ref(), &wanted.id, shares, card)?;
    let run = RunDir::create(store.root(), &wanted.id)?;
    let pid = i32::try_from(std::process::id()).ok();
    let record = match container::insert(store, &mut request, &wanted, pid) {
        Ok(record) => record,
        Err(error) => {
            let _ = run.remove();
            return Err(error);
        }
    };
    if let Some(card) = &mut machine_plan.card {
        card.plug(&request.network);
    }
    let Wanted { plan, image, .. } = wanted;
    Ok((Found { record, request, plan, image, run }, machine_plan, binds))
}

fn root(request: &Request) -> Root {
    let (lower, changes) = match request.root {
        RootSource::Image(_) => (Lower::Erofs("/dev/vda".into()), "/dev/vdb"),
        RootSource::Directory(_) => (Lower::Virtiofs(ROOT_TAG.into()), "/dev/vda"),
    };
    Root { lower, upper: Upper::Ext4(changes.into()) }
}
