//! A new container that continues one that was saved.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::container::{Request, Restart, Wanted, new_id, short};
use crate::image::Images;
use crate::network::{Mode, Publish};
use crate::snapshot::{self, Chain};
use crate::store::Store;
use crate::volume::Volumes;
use crate::{Error, Result};

/// A container that is wanted from a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restore {
    /// The snapshot's directory; absolute.
    pub snapshot: PathBuf,
    /// Name of the container; one is made up without.
    pub name: Option<String>,
    /// Its host name; its short id without, unless the saved one was given a name.
    pub hostname: Option<String>,
    /// Ports to be published. Those of the saved container are its own.
    pub publish: Vec<Publish>,
    /// Remove it when it ends.
    pub remove: bool,
    /// The command does not watch the program.
    pub detach: bool,
}

impl Restore {
    /// What the new container is, and where it is saved. Everything that it needs and that is not in the snapshot must be there.
    pub(crate) fn open(&self, store: &Store) -> Result<(Request, Wanted, Chain)> {
        let (about, chain) = snapshot::open(store, &self.snapshot)?;
        let name = snapshot::Snapshots::new(store).name_of(&self.snapshot);
        let fail = |why: String| Error::Snapshot { name: name.clone(), why };
        let image = match about.image()? {
            Some(id) => Some(Images::new(store).find(&id.to_string()).map_err(|error| match error {
                Error::NoSuchImage { .. } => fail(format!(
                    "its image {id} is not here: get it with \"servin pull\" or \"servin load\""
                )),
                other => other,
            })?),
            None => None,
        };
        let volumes = Volumes::new(store);
        for name in about.volumes.iter().filter_map(|volume| volume.name.as_deref()) {
            volumes.get(name).map_err(|_| fail(format!("its volume {name} is not here")))?;
        }
        let mut request = about.config.request;
        request.name.clone_from(&self.name);
        if self.hostname.is_some() {
            request.hostname.clone_from(&self.hostname);
        }
        request.network.publish.clone_from(&self.publish);
        request.network.publish_all = false;
        for one in &mut request.network.attachments {
            if matches!(one.mode, Mode::Shared(_)) {
                // It has a place of its own there, beside the saved one's.
                (one.address, one.mac, one.place) = (None, None, None);
            }
        }
        request.volumes = about.volumes;
        // The guest has them open: an empty directory in the place of one would not do.
        request.binds.iter_mut().for_each(|bind| bind.must_exist = true);
        request.remove = self.remove;
        if self.remove {
            request.restart = Restart::No;
        }
        request.detach = self.detach;
        let id = new_id()?;
        let mut plan = about.config.plan;
        plan.hostname = request.hostname.clone().unwrap_or_else(|| short(&id));
        plan.machine_id = id.get(..32).map(Into::into);
        plan.ports.clear();
        Ok((request, Wanted { id, plan, image }, chain))
    }
}
