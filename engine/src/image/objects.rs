//! Where the objects of images come from: what reads manifests does not know whether it is an archive or a registry.

use oci_spec::image::Descriptor;

use super::Digest;
use super::archive::{Archive, Blob, JSON_MAX, verify};
use crate::{Error, Result};

/// Where the objects of images come from: an archive, or a registry.
pub(super) trait Objects {
    /// Its name in messages.
    fn place(&self) -> &str;
    /// The blob of a descriptor, digest and size checked.
    fn object(&mut self, descriptor: &Descriptor, what: &str) -> Result<Blob>;
    /// The blobs of all layers of an image.
    fn layers(&mut self, layers: &[Descriptor]) -> Result<Vec<Blob>> {
        layers.iter().map(|layer| self.object(layer, "the layer")).collect()
    }
    /// An error about it.
    fn bad(&self, why: String) -> Error {
        Error::Archive { place: self.place().to_owned(), why }
    }
}

impl Objects for Archive<'_> {
    fn place(&self) -> &str {
        &self.place
    }

    fn object(&mut self, descriptor: &Descriptor, what: &str) -> Result<Blob> {
        let digest: Digest = descriptor.digest().to_string().parse()?;
        let blob = self.blob(&digest, what)?;
        verify(&blob, &digest, Some(descriptor.size()), &format!("{what} {digest}"))?;
        Ok(blob)
    }
}

/// The content of a small file.
pub(super) fn json_of(blob: &Blob, what: &str) -> Result<Vec<u8>> {
    if blob.size > JSON_MAX {
        return Err(Error::Limit {
            what: format!("{what} with {} bytes", blob.size),
            limit: format!("{} MiB", JSON_MAX >> 20),
        });
    }
    std::fs::read(&blob.path).map_err(|source| Error::io("read", &blob.path, source))
}
