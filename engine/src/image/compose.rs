//! Images made here: of a container (`commit`), or of a plain tar (`import`).

use std::fs::File;
use std::io::{self, BufWriter, Read, Write};

use serde_json::{Map, Value, json};

use super::archive::Blob;
use super::contents::{Found, manifest_of};
use super::{Digest, Hashing, Image, Images, LoadedImage, Platform, Reference, layer};
use crate::store::now_ns;
use crate::time::rfc3339;
use crate::{Error, Result};

/// What a new image says of itself beyond its layers.
#[derive(Clone, Debug, Default)]
pub struct Composed {
    /// Its name, if it is to have one.
    pub name: Option<Reference>,
    /// Who made it.
    pub author: String,
    /// What was done before that made no layer, in its history.
    pub before: Vec<String>,
    /// What it was made by, in its history.
    pub created_by: String,
    /// A comment, in its history.
    pub comment: String,
    /// Changes of its configuration.
    pub changes: Vec<Change>,
}

/// A change of an image's configuration, as a line of a Dockerfile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// `CMD`, `ENTRYPOINT`, `SHELL`: a list of words.
    Words(&'static str, Vec<String>),
    /// `HEALTHCHECK`, as docker writes it.
    Healthcheck(Value),
    /// `USER`, `WORKDIR`, `STOPSIGNAL`: a text.
    Text(&'static str, String),
    /// `ENV`: `NAME=value`.
    Env(String, String),
    /// `LABEL`.
    Label(String, String),
    /// `EXPOSE`, `VOLUME`: something in a set.
    Member(&'static str, String),
}

impl Change {
    fn apply(&self, process: &mut Map<String, Value>) {
        match self {
            Change::Words(key, words) => _ = process.insert((*key).into(), json!(words)),
            Change::Healthcheck(check) => _ = process.insert("Healthcheck".into(), check.clone()),
            Change::Text(key, text) => _ = process.insert((*key).into(), json!(text)),
            Change::Env(name, value) => {
                let mut list = process.get("Env").and_then(Value::as_array).cloned().unwrap_or_default();
                let prefix = format!("{name}=");
                list.retain(|old| !old.as_str().is_some_and(|old| old.starts_with(&prefix)));
                list.push(format!("{name}={value}").into());
                process.insert("Env".into(), list.into());
            }
            Change::Label(name, value) => object(process, "Labels", name, json!(value)),
            Change::Member(key, name) => object(process, key, name, json!({})),
        }
    }
}

/// Puts a value into an object within an object.
fn object(process: &mut Map<String, Value>, key: &str, name: &str, value: Value) {
    let mut map = process.get(key).and_then(Value::as_object).cloned().unwrap_or_default();
    map.insert(name.to_owned(), value);
    process.insert(key.to_owned(), map.into());
}

/// The text that goes through a writer into a layer.
type WriteLayer<'a> = &'a mut dyn FnMut(&mut dyn Write) -> Result<()>;

impl Images<'_> {
    /// Makes an image of another and one more layer, which `write` writes as a tar.
    ///
    /// # Errors
    /// The base is gone, or the layer is no layer.
    pub fn commit(&self, base: &Image, composed: &Composed, write: WriteLayer<'_>) -> Result<LoadedImage> {
        self.on(base, composed, Some(write))
    }

    /// Makes an image of another with the same layers.
    ///
    /// # Errors
    /// The base is gone.
    pub fn configure(&self, base: &Image, composed: &Composed) -> Result<LoadedImage> {
        self.on(base, composed, None)
    }

    fn on(&self, base: &Image, composed: &Composed, write: Option<WriteLayer<'_>>) -> Result<LoadedImage> {
        let blobs = self.blobs(&base.id)?;
        let diff_ids =
            base.config.rootfs.diff_ids.iter().map(|id| id.parse()).collect::<Result<Vec<Digest>>>()?;
        let layers = blobs.iter().skip(2).zip(diff_ids).map(|(blob, diff_id)| {
            let path = self.store.blob_path(&blob.digest);
            (Blob { path, digest: blob.digest, size: blob.size }, diff_id)
        });
        let config = serde_json::from_str(&base.config_json)
            .map_err(|source| Error::Json { what: "the image's config".into(), source })?;
        self.compose(config, layers.collect(), composed, write)
    }

    /// Makes an image of one layer: a tar, plain or compressed.
    ///
    /// # Errors
    /// The source is no tar of files.
    pub fn import(
        &self,
        source: &mut dyn Read,
        platform: &Platform,
        composed: &Composed,
    ) -> Result<LoadedImage> {
        let mut config = json!({ "architecture": platform.architecture, "os": platform.os, "config": {} });
        if let (false, Some(object)) = (platform.variant.is_empty(), config.as_object_mut()) {
            object.insert("variant".into(), platform.variant.clone().into());
        }
        let fail = |source| Error::Files { what: "read the archive".into(), source };
        let (mut stream, _) = layer::decompress(source).map_err(fail)?;
        let write: WriteLayer<'_> = &mut |out| io::copy(&mut stream, out).map(drop).map_err(fail);
        self.compose(config, Vec::new(), composed, Some(write))
    }

    fn compose(
        &self,
        mut config: Value,
        mut layers: Vec<(Blob, Digest)>,
        composed: &Composed,
        write: Option<WriteLayer<'_>>,
    ) -> Result<LoadedImage> {
        let scratch = self.store.scratch()?;
        let path = scratch.path().join("layer");
        let fail = |source| Error::io("write", &path, source);
        let has_layer = write.is_some();
        if let Some(write) = write {
            let file = File::create_new(&path).map_err(fail)?;
            let mut out = Hashing::new(BufWriter::with_capacity(1 << 18, file));
            write(&mut out)?;
            out.flush().map_err(fail)?;
            let (_, digest, size) = out.finish();
            layers.push((Blob { path: path.clone(), digest, size }, digest));
        }

        let created = rfc3339(now_ns());
        let not_an_object =
            || Error::Archive { place: "the image's config".into(), why: "it is no object".into() };
        let map = config.as_object_mut().ok_or_else(not_an_object)?;
        let diff_ids: Vec<String> = layers.iter().map(|(_, id)| id.to_string()).collect();
        map.insert("rootfs".into(), json!({ "type": "layers", "diff_ids": diff_ids }));
        let mut history = map.get("history").and_then(Value::as_array).cloned().unwrap_or_default();
        for step in &composed.before {
            history.push(json!({ "created": created, "created_by": step, "empty_layer": true }));
        }
        if has_layer || !composed.created_by.is_empty() {
            let mut step = json!({
                "created": created, "created_by": composed.created_by, "comment": composed.comment,
                "author": composed.author,
            });
            if let (false, Some(step)) = (has_layer, step.as_object_mut()) {
                step.insert("empty_layer".into(), true.into());
            }
            history.push(step);
        }
        map.insert("history".into(), history.into());
        map.insert("created".into(), created.into());
        if !composed.author.is_empty() {
            map.insert("author".into(), composed.author.clone().into());
        }
        let mut process = map.get("config").and_then(Value::as_object).cloned().unwrap_or_default();
        composed.changes.iter().for_each(|change| change.apply(&mut process));
        map.insert("config".into(), process.into());
        // What docker writes of the container that the base was made of says nothing of this one.
        for old in ["container", "container_config", "id", "parent"] {
            map.remove(old);
        }

        let stage = |name: &str, bytes: &[u8]| {
            let path = scratch.path().join(name);
            std::fs::write(&path, bytes).map_err(|source| Error::io("write", &path, source))?;
            Ok::<_, Error>(Blob { path, digest: Digest::of(bytes), size: bytes.len() as u64 })
        };
        let config_json = config.to_string().into_bytes();
        let config = stage("config", &config_json)?;
        let blobs: Vec<Blob> = layers.iter().map(|(blob, _)| blob.clone()).collect();
        let manifest = stage("manifest", &manifest_of(&config, &blobs)?)?;
        let names = composed.name.iter().cloned().collect();
        let found = Found { names, manifest, config, config_json, layers, pulled: None };
        let made = self.install(vec![found], scratch.path(), &mut |_| {})?;
        made.into_iter().next().ok_or_else(|| Error::NoSuchImage { reference: String::new() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_made_as_a_dockerfile_would() {
        let mut process =
            json!({ "Env": ["PATH=/bin", "A=1"], "Labels": { "old": "x" } }).as_object().cloned().unwrap();
        for change in [
            Change::Env("A".into(), "2".into()),
            Change::Words("Cmd", vec!["sh".into(), "-c".into()]),
            Change::Text("User", "nobody".into()),
            Change::Label("new".into(), "y".into()),
            Change::Member("ExposedPorts", "80/tcp".into()),
        ] {
            change.apply(&mut process);
        }
        assert_eq!(
            Value::from(process),
            json!({ "Env": ["PATH=/bin", "A=2"], "Cmd": ["sh", "-c"], "User": "nobody",
                    "Labels": { "old": "x", "new": "y" }, "ExposedPorts": { "80/tcp": {} } })
        );
    }
}
