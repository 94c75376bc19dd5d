//! What one container mounts, for another as well.

use super::{VolumeMount, Volumes};
use crate::container::{Config, Request, Text};
use crate::{Error, Result};

impl Volumes<'_> {
    /// Adds to `request` what a container mounts of the host and of volumes, but where the request mounts something itself.
    /// `read_only` decides for all of it; `None` leaves each as that container has it.
    ///
    /// # Errors
    /// No such container; a database that fails.
    pub fn lend(&self, container: &str, read_only: Option<bool>, request: &mut Request) -> Result<()> {
        let record = self.store.containers().find(container)?;
        let config: Config = serde_json::from_str(&record.config)
            .map_err(|source| Error::Json { what: format!("the record of container {container}"), source })?;
        for mut bind in config.request.binds {
            if !taken(request, &bind.target) {
                bind.read_only = read_only.unwrap_or(bind.read_only);
                request.binds.push(bind);
            }
        }
        for used in self.of(&record.id)? {
            if !taken(request, &used.target) {
                request.volumes.push(VolumeMount {
                    name: Some(used.volume),
                    target: used.target,
                    read_only: read_only.unwrap_or(used.read_only),
                    no_copy: true,
                });
            }
        }
        Ok(())
    }
}

fn taken(request: &Request, target: &Text) -> bool {
    request.binds.iter().any(|bind| bind.target == *target)
        || request.tmpfs.iter().any(|tmpfs| tmpfs.target == *target)
        || request.volumes.iter().any(|volume| volume.target == *target)
}
