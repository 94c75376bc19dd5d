//! `save`: a tar that is an OCI layout and has docker's `manifest.json` beside, so that docker, podman, skopeo and we read it.
//! The same images give the same bytes.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use serde_json::{Value, json};

use super::{Digest, Hashing, Image, Images, Reference, StoredBlob};
use crate::{Error, Result};

impl Images<'_> {
    /// Writes images, each given by name or id. An image given by a name keeps that name, one given by its id has none.
    ///
    /// # Errors
    /// [`Error::NoSuchImage`] before anything is written; a blob that is not what it was ends the tar in the middle.
    pub fn save(&self, wanted: &[&str], out: &mut dyn Write) -> Result<()> {
        let mut images: Vec<(Image, BTreeSet<Reference>)> = Vec::new();
        for text in wanted {
            let image = self.find(text)?;
            // An id may look like a name; it is one only if the image has it.
            let name = match text.parse::<Reference>() {
                Ok(name) => self.names(&image.id)?.into_iter().find(|known| known.tagged() == name.tagged()),
                Err(_) => None,
            };
            match images.iter_mut().find(|(known, _)| known.id == image.id) {
                Some((_, names)) => names.extend(name),
                None => images.push((image, name.into_iter().collect())),
            }
        }
        let mut blobs: BTreeMap<Digest, StoredBlob> = BTreeMap::new();
        let (mut index, mut saved) = (Vec::new(), Vec::new());
        for (image, names) in &images {
            let parts = self.blobs(&image.id)?;
            let path = |digest: &Digest| format!("blobs/sha256/{}", digest.hex());
            saved.push(json!({
                "Config": path(&image.id),
                "RepoTags": if names.is_empty() { Value::Null } else { names.iter().map(Reference::familiar).collect() },
                "Layers": parts.iter().skip(2).map(|blob| path(&blob.digest)).collect::<Vec<_>>(),
            }));
            let manifest =
                parts.first().ok_or_else(|| Error::NoSuchImage { reference: image.id.to_string() })?;
            let described = self.describe(image, manifest)?;
            if names.is_empty() {
                index.push(described.clone());
            }
            for name in names {
                let mut described = described.clone();
                if let Some(object) = described.as_object_mut() {
                    let annotations = json!({
                        "io.containerd.image.name": name.to_string(),
                        "org.opencontainers.image.ref.name": name.tag(),
                    });
                    object.insert("annotations".into(), annotations);
                }
                index.push(described);
            }
            blobs.extend(parts.into_iter().map(|blob| (blob.digest, blob)));
        }
        let mut tar = ::tar::Builder::new(out);
        let fail = |source| Error::io("write", "the archive", source);
        for dir in ["blobs/", "blobs/sha256/"] {
            tar.append_data(&mut header(0o755, 0, ::tar::EntryType::Directory), dir, io::empty())
                .map_err(fail)?;
        }
        for blob in blobs.values() {
            self.append(&mut tar, blob)?;
        }
        let index = json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": index,
        });
        let layout = json!({ "imageLayoutVersion": "1.0.0" });
        for (name, value) in
            [("index.json", index), ("manifest.json", Value::from(saved)), ("oci-layout", layout)]
        {
            let bytes = value.to_string();
            let mut header = header(0o644, bytes.len() as u64, ::tar::EntryType::Regular);
            tar.append_data(&mut header, name, bytes.as_bytes()).map_err(fail)?;
        }
        tar.into_inner().and_then(|out| out.flush()).map_err(fail)
    }

    /// The descriptor of an image's manifest.
    fn describe(&self, image: &Image, manifest: &StoredBlob) -> Result<Value> {
        let path = self.store.blob_path(&manifest.digest);
        let json = std::fs::read(&path).map_err(|source| Error::io("read", &path, source))?;
        let parsed: Value = serde_json::from_slice(&json)
            .map_err(|source| Error::Json { what: format!("the manifest {}", manifest.digest), source })?;
        let media_type = parsed.get("mediaType").and_then(Value::as_str);
        let mut platform = json!({ "architecture": image.config.architecture, "os": image.config.os });
        if let (false, Some(object)) = (image.config.variant.is_empty(), platform.as_object_mut()) {
            object.insert("variant".into(), image.config.variant.clone().into());
        }
        Ok(json!({
            "mediaType": media_type.unwrap_or("application/vnd.oci.image.manifest.v1+json"),
            "digest": manifest.digest.to_string(),
            "size": manifest.size,
            "platform": platform,
        }))
    }

    fn append(&self, tar: &mut ::tar::Builder<&mut dyn Write>, blob: &StoredBlob) -> Result<()> {
        let path = self.store.blob_path(&blob.digest);
        let file = File::open(&path).map_err(|source| Error::io("open", &path, source))?;
        let size = file.metadata().map_err(|source| Error::io("open", &path, source))?.len();
        let what = || format!("the stored blob {}", blob.digest);
        if size != blob.size {
            return Err(Error::WrongSize { what: what(), expected: blob.size, found: size });
        }
        let mut reader = Hashing::new(file);
        let name = Path::new("blobs/sha256").join(blob.digest.hex());
        tar.append_data(&mut header(0o644, size, ::tar::EntryType::Regular), name, &mut reader)
            .map_err(|source| Error::io("write", "the archive", source))?;
        let (_, found, _) = reader.finish();
        if found != blob.digest {
            return Err(Error::WrongDigest { what: what(), expected: blob.digest, found });
        }
        Ok(())
    }
}

fn header(mode: u32, size: u64, kind: ::tar::EntryType) -> ::tar::Header {
    let mut header = ::tar::Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header
}
