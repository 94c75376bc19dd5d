//! `image inspect` and `history`, in docker's words, so that scripts written for docker read them.

use serde_json::{Map, Value, json};

use super::{Image, Images, Reference};
use crate::time::rfc3339;
use crate::{Error, Result};

/// One line of `history`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// The image's id on the newest step, else `<missing>`, as docker has it.
    pub id: String,
    /// When (RFC 3339), or empty.
    pub created: String,
    /// The command.
    pub created_by: String,
    /// Bytes of the files that the step added; 0 where it made no layer.
    pub size: u64,
    /// A comment.
    pub comment: String,
}

impl Images<'_> {
    /// The JSON object of `image inspect`, with docker's field names.
    pub fn inspect(&self, image: &Image) -> Result<Value> {
        let names = self.names(&image.id)?;
        let raw: Value = serde_json::from_str(&image.config_json)
            .map_err(|source| Error::Json { what: "the image's config".into(), source })?;
        let text = |key: &str| raw.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        let last = image.config.history.last();
        let mut out = json!({
            "Id": image.id.to_string(),
            "RepoTags": names.iter().map(Reference::familiar).collect::<Vec<_>>(),
            "RepoDigests": self.repo_digests(image)?.iter().map(Reference::familiar).collect::<Vec<_>>(),
            "Parent": "",
            "Comment": last.map_or("", |step| &step.comment),
            "Created": image.config.created,
            "DockerVersion": text("docker_version"),
            "Author": image.config.author,
            "Config": config(raw.get("config")),
            "Architecture": image.config.architecture,
            "Os": image.config.os,
            "Size": image.size,
            "VirtualSize": image.size,
            "GraphDriver": { "Name": "erofs", "Data": { "RootFile": self.root_path(&image.id).to_string_lossy() } },
            "RootFS": { "Type": "layers", "Layers": image.config.rootfs.diff_ids },
            "Metadata": { "LastTagTime": rfc3339(self.last_tag(image)?.unwrap_or(image.loaded_ns)) },
        });
        if let (false, Some(object)) = (image.config.variant.is_empty(), out.as_object_mut()) {
            object.insert("Variant".into(), image.config.variant.clone().into());
        }
        Ok(out)
    }

    /// The steps that made an image, the newest first.
    pub fn history(&self, image: &Image) -> Result<Vec<Step>> {
        let blobs = self.blobs(&image.id)?;
        let mut sizes = blobs.iter().skip(2).map(|blob| blob.unpacked);
        let mut steps = Vec::new();
        for step in &image.config.history {
            steps.push(Step {
                id: "<missing>".into(),
                created: step.created.clone(),
                created_by: step.created_by.clone(),
                size: if step.empty_layer { 0 } else { sizes.next().unwrap_or(0) },
                comment: step.comment.clone(),
            });
        }
        // Layers that no step speaks of.
        for size in sizes {
            let (created, created_by, comment) = Default::default();
            steps.push(Step { id: "<missing>".into(), created, created_by, size, comment });
        }
        if let Some(newest) = steps.last_mut() {
            newest.id = image.id.to_string();
        }
        steps.reverse();
        Ok(steps)
    }

    /// The digests by which registries know an image, each with its repository, sorted.
    pub fn repo_digests(&self, image: &Image) -> Result<Vec<Reference>> {
        let fail = |source| Error::database("list digests", source);
        let sql = "SELECT name, digest FROM repo_digests WHERE image = ?1 ORDER BY name, digest";
        let mut statement = self.store.db().prepare(sql).map_err(fail)?;
        let rows = statement
            .query_map([image.id.to_string()], |row| Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?)))
            .map_err(fail)?;
        rows.map(|row| {
            let (name, digest) = row.map_err(fail)?;
            format!("{name}@{digest}").parse()
        })
        .collect()
    }

    fn last_tag(&self, image: &Image) -> Result<Option<i64>> {
        let sql = "SELECT max(tagged_ns) FROM tags WHERE image = ?1";
        let last = self.store.db().query_row(sql, [image.id.to_string()], |row| row.get(0));
        last.map_err(|source| Error::database("list tags", source))
    }
}

/// The `config` object with every field that docker always prints.
fn config(raw: Option<&Value>) -> Value {
    let mut out = json!({
        "Hostname": "", "Domainname": "", "User": "", "AttachStdin": false, "AttachStdout": false,
        "AttachStderr": false, "Tty": false, "OpenStdin": false, "StdinOnce": false, "Env": null, "Cmd": null,
        "Image": "", "Volumes": null, "WorkingDir": "", "Entrypoint": null, "OnBuild": null, "Labels": null,
    });
    let own = raw.and_then(Value::as_object).map_or_else(Map::new, Map::clone);
    if let Some(object) = out.as_object_mut() {
        object.extend(own);
    }
    out
}
