//! The image `servin/base` comes with the program, as `base.tar` in the guest directory, and gets into a store when it is first
//! asked for. `base.id` beside it tells when a new version brought another one.

use std::fs;
use std::path::Path;

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
    /// As [`Images::find`], and `servin/base` is loaded from the guest directory if the store does not have it, or has that of
    /// another version. An image of this name that is not ours is left alone.
    ///
    /// # Errors
    /// Those of `find`, and those of [`Images::load`] for a damaged archive.
    pub fn find_or_base(
        &self,
        text: &str,
        guest: &Path,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<Image> {
        let is_base = text.parse::<Reference>().is_ok_and(|name| name.to_string() == BASE);
        let found = self.find(text);
        if !is_base {
            return found;
        }
        let stale = match &found {
            Ok(image) => {
                image.config.process.labels.contains_key(LABEL)
                    && offered(guest).is_some_and(|offered| offered != image.id)
            }
            Err(Error::NoSuchImage { .. }) => true,
            Err(_) => false,
        };
        let archive = guest.join(BASE_ARCHIVE);
        if stale && archive.exists() {
            self.load(Source::Path(&archive), &Platform::native(), progress)?;
            return self.find(text);
        }
        found
    }
}

/// The id of the image in the guest directory, if it says one.
fn offered(guest: &Path) -> Option<Digest> {
    fs::read_to_string(guest.join(BASE_ID)).ok()?.trim().parse().ok()
}
