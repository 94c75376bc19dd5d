//! The image `servin/base` comes with the program, as `base.tar` in the guest directory, and gets into a store when it is first
//! asked for. `base.id` beside it tells when a new version brought another one.

use std::fs;
use std::path::{Path, PathBuf};

use super::{Digest, Image, Images, Platform, Progress, Reference, Source};
use crate::{Error, Result};

/// The name of the image that comes with the program.
pub const BASE: &str = "docker.io/servin/base:latest";
/// The archive's name in a guest directory.
pub const BASE_ARCHIVE: &str = "base.tar";
/// The file with the archive's image id.
const BASE_ID: &str = "base.id";
/// A label that tells our base image from one that a user gave the same name.
const LABEL: &str = "servin.base";

impl Images<'_> {
    /// As [`Images::find`], and `servin/base` is loaded from the guest directory ([`guest_directory`]) if the store does not
    /// have it, or has that of another version. An image of this name that is not ours is left alone.
    ///
    /// # Errors
    /// Those of `find`, [`Error::NoBaseImage`], and those of [`Images::load`] for a damaged archive.
    pub fn find_or_base(
        &self,
        text: &str,
        guest: Option<&Path>,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<Image> {
        let is_base = text.parse::<Reference>().is_ok_and(|name| name.to_string() == BASE);
        let found = self.find(text);
        if !is_base {
            return found;
        }
        let ours = match &found {
            Ok(image) => image.config.process.labels.contains_key(LABEL).then_some(Some(image.id)),
            Err(Error::NoSuchImage { .. }) => Some(None),
            Err(_) => None,
        };
        match (ours, guest) {
            (Some(None), None) => Err(Error::NoBaseImage),
            (Some(known), Some(guest))
                if known.is_none() || offered(guest).is_some_and(|id| Some(id) != known) =>
            {
                self.load(Source::Path(&guest.join(BASE_ARCHIVE)), &Platform::native(), progress)?;
                // The one of the version before has lost its name; it stays only for containers that are made from it.
                if let Some(old) = known {
                    match self.remove(&old.to_string(), false) {
                        Ok(_) | Err(Error::ImageInUse { .. } | Error::NoSuchImage { .. }) => {}
                        Err(error) => return Err(error),
                    }
                }
                self.find(text)
            }
            _ => found,
        }
    }
}

/// The directory beside the program that holds the base image, if one does.
#[must_use]
pub fn guest_directory() -> Option<PathBuf> {
    servin_guest_kernel::Guest::locate(BASE_ARCHIVE)
}

/// The id of the image in the guest directory, if it says one.
fn offered(guest: &Path) -> Option<Digest> {
    fs::read_to_string(guest.join(BASE_ID)).ok()?.trim().parse().ok()
}
