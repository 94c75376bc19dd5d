//! `push`: what the store has, byte for byte, to a registry.

use std::collections::BTreeSet;

use super::pull::together;
use super::{BlobState, Digest, Images, Reference, StoredBlob, names};
use crate::registry::{Access, Cancel, Client, Descriptor, Uploaded};
use crate::{Error, Result};

/// How far a push is. Blobs tell from several threads.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum Step<'a> {
    /// A layer, or the config.
    Blob {
        /// Its digest.
        digest: &'a Digest,
        /// Its bytes.
        size: u64,
        /// What happens to it: `Bytes(0)` before, `Known` or `Done` after.
        state: BlobState<'a>,
        /// Where it came from, when it is there.
        how: Option<Uploaded>,
    },
}

/// What was pushed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pushed {
    /// The image's id.
    pub id: Digest,
    /// Digest of its manifest.
    pub digest: Digest,
    /// Bytes of the manifest.
    pub size: u64,
}

/// Most other repositories that a blob is asked from.
const MOUNTS: u32 = 4;

impl Images<'_> {
    /// Sends the image of this name to the registry of its name. What is there is not sent again.
    ///
    /// # Errors
    /// [`Error::NoSuchImage`], and those of the registry. The tag is set last, so that it never names half an image.
    pub fn push(
        &self,
        name: &Reference,
        client: &Client,
        cancel: &Cancel,
        watch: &(dyn Fn(Step<'_>) + Sync),
    ) -> Result<Pushed> {
        let tag = match (name.tag(), name.digest()) {
            (Some(tag), None) => tag,
            _ => {
                let why = "what is pushed has a tag, and no digest";
                return Err(Error::Reference { text: name.to_string(), why });
            }
        };
        let image = self.find(&name.to_string())?;
        let blobs = self.blobs(&image.id)?;
        let missing = || Error::Missing { what: "the manifest".into(), place: "the store".into() };
        let (manifest, rest) = blobs.split_first().ok_or_else(missing)?;
        let (json, media_type) = self.stored_manifest(manifest)?;
        let mut wanted: Vec<(Descriptor, Vec<String>)> = Vec::new();
        for blob in rest {
            let one = Descriptor { digest: blob.digest, size: blob.size };
            if !wanted.iter().any(|(known, _)| *known == one) {
                wanted.push((one, self.neighbours(&blob.digest, name)?));
            }
        }
        let mut repositories = client.repositories(name, Access::Push, cancel);
        let Some(mut repository) = repositories.pop() else { return Err(missing()) };
        let others: BTreeSet<String> = wanted.iter().flat_map(|(_, from)| from.iter().cloned()).collect();
        repository.also_read(others);
        // The config last: it is small, and without its layers nothing.
        let one = usize::from(!wanted.is_empty());
        wanted.rotate_left(one);
        for (blob, _) in &wanted {
            let state = BlobState::Bytes(0);
            watch(Step::Blob { digest: &blob.digest, size: blob.size, state, how: None });
        }
        let paths = self.store.root().join("blobs/sha256");
        together(&wanted, cancel, |(blob, from)| {
            let how = repository.send_blob(blob, &paths.join(blob.digest.hex()), from)?;
            let state = if how == Uploaded::Sent { BlobState::Done } else { BlobState::Known };
            watch(Step::Blob { digest: &blob.digest, size: blob.size, state, how: Some(how) });
            Ok(())
        })?;
        repository.put_manifest(tag, &media_type, &json)?;
        self.store.write("remember the digest", |transaction| {
            names::set_digest(transaction, &name.name(), &manifest.digest, &image.id)
        })?;
        Ok(Pushed { id: image.id, digest: manifest.digest, size: manifest.size })
    }

    /// The stored manifest, and what it is.
    fn stored_manifest(&self, manifest: &StoredBlob) -> Result<(Vec<u8>, String)> {
        let path = self.store.blob_path(&manifest.digest);
        let json = std::fs::read(&path).map_err(|source| Error::io("read", &path, source))?;
        let found = Digest::of(&json);
        if found != manifest.digest {
            let what = "the stored manifest".to_owned();
            return Err(Error::WrongDigest { what, expected: manifest.digest, found });
        }
        let parsed: serde_json::Value = serde_json::from_slice(&json)
            .map_err(|source| Error::Json { what: format!("the manifest {found}"), source })?;
        let media_type = parsed.get("mediaType").and_then(serde_json::Value::as_str);
        let media_type = media_type.unwrap_or("application/vnd.oci.image.manifest.v1+json").to_owned();
        Ok((json, media_type))
    }

    /// Other repositories of the same registry that were seen to have a blob.
    fn neighbours(&self, blob: &Digest, name: &Reference) -> Result<Vec<String>> {
        let fail = |source| Error::database("look for other repositories", source);
        let sql = "SELECT DISTINCT name FROM repo_digests WHERE name >= ?1 AND name < ?2 AND name <> ?3
                   AND image IN (SELECT image FROM image_blobs WHERE blob = ?4) LIMIT ?5";
        let mut statement = self.store.db().prepare(sql).map_err(fail)?;
        let (from, to) = (format!("{}/", name.host()), format!("{}0", name.host()));
        let rows = statement
            .query_map((&from, to, name.name(), blob.to_string(), MOUNTS), |row| row.get::<_, String>(0));
        let rows = rows.map_err(fail)?.collect::<rusqlite::Result<Vec<_>>>().map_err(fail)?;
        Ok(rows.iter().filter_map(|name| name.strip_prefix(&from).map(str::to_owned)).collect())
    }
}
