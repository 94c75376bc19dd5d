//! `servin system check`: whether the rows and the files agree, byte for byte, and what can be done where they do not.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::Store;
use crate::image::{Digest, Hashing, Images};
use crate::snapshot::Snapshots;
use crate::{Error, Result, chain, erofs};

/// Something that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What and where.
    pub what: String,
    /// What repairing does about it.
    pub remedy: Remedy,
    /// It was repaired.
    pub repaired: bool,
}

/// What can be done about a finding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Remedy {
    /// A file or directory that nothing speaks of is removed.
    Remove(PathBuf),
    /// A root file system is made anew from its layers.
    Rebuild(Digest),
    /// An image that has lost a blob is removed with its names, if no container is made from it.
    Forget(Digest),
    /// A row without files is removed.
    Drop(String),
    /// Nothing that we know.
    None,
}

/// Looks at everything below the data root; `progress` hears what is being looked at.
///
/// # Errors
/// If the database or a directory cannot be read at all.
pub fn check(store: &Store, repair: bool, progress: &mut dyn FnMut(&str)) -> Result<Vec<Finding>> {
    let mut findings = Vec::new();
    let mut find = |what: String, remedy: Remedy| findings.push(Finding { what, remedy, repaired: false });
    progress("the database");
    database(store, &mut find)?;
    // Rows of monitors that were killed are brought to their end by looking.
    crate::container::reconcile(store)?;
    progress("the images");
    images(store, progress, &mut find)?;
    progress("the containers");
    containers(store, &mut find)?;
    let snapshots = Snapshots::new(store);
    for found in snapshots.list()? {
        progress(&format!("snapshot {}", found.name));
        if let Err(why) = snapshots.check(&found) {
            find(format!("snapshot {}: {why}; \"servin snapshot rm\" removes it", found.name), Remedy::None);
        }
    }
    if repair {
        for finding in &mut findings {
            match mend(store, &finding.remedy) {
                Ok(done) => finding.repaired = done,
                Err(error) => finding.what.push_str(&format!(" (cannot be repaired: {})", chain(&error))),
            }
        }
        store.sweep()?;
    }
    Ok(findings)
}

fn database(store: &Store, find: &mut dyn FnMut(String, Remedy)) -> Result<()> {
    let fail = |source| Error::database("check", source);
    for pragma in ["PRAGMA integrity_check", "PRAGMA foreign_key_check"] {
        let mut statement = store.db().prepare(pragma).map_err(fail)?;
        let rows = statement.query_map((), |row| row.get::<_, String>(0)).map_err(fail)?;
        for row in rows {
            let text = row.map_err(fail)?;
            if text != "ok" {
                find(format!("the database: {pragma}: {text}"), Remedy::None);
            }
        }
    }
    Ok(())
}

fn images(store: &Store, progress: &mut dyn FnMut(&str), find: &mut dyn FnMut(String, Remedy)) -> Result<()> {
    let images = Images::new(store);
    let mut blobs = HashSet::new();
    let mut roots = HashSet::new();
    let mut checked = HashSet::new();
    for image in images.list()? {
        let (id, short) = (image.id, image.id.short());
        progress(&format!("image {short}"));
        roots.insert(id.hex() + &erofs::suffix());
        let mut is_whole = true;
        for (digest, size) in images.blob_sizes(&id)? {
            blobs.insert(digest.hex());
            if !checked.insert(digest) {
                continue;
            }
            if let Err(why) = blob(&store.blob_path(&digest), &digest, size) {
                is_whole = false;
                find(format!("blob {digest} of image {short}: {why}"), Remedy::Forget(id));
            }
        }
        // It is made when it is needed.
        let path = images.root_path(&id);
        if is_whole && path.exists() {
            let scratch = store.scratch()?;
            let built = scratch.path().join("root");
            images.build_root(&image, &built)?;
            match same(&built, &path) {
                Ok(true) => {}
                Ok(false) => find(
                    format!("the root file system of image {short} is not what its layers make"),
                    Remedy::Rebuild(id),
                ),
                Err(error) => {
                    find(format!("the root file system of image {short}: {error}"), Remedy::Rebuild(id));
                }
            }
        }
    }
    for (dir, known) in [("blobs/sha256", &blobs), ("roots", &roots)] {
        for (name, path) in entries(&store.root().join(dir))? {
            if !known.contains(&name) {
                find(format!("{} belongs to no image", path.display()), Remedy::Remove(path));
            }
        }
    }
    Ok(())
}

/// Whether a blob's bytes are the promised ones.
fn blob(path: &Path, digest: &Digest, size: u64) -> std::result::Result<(), String> {
    let mut file = File::open(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => "its file is missing".to_owned(),
        _ => format!("it cannot be opened: {error}"),
    })?;
    let mut hashing = Hashing::new(io::sink());
    io::copy(&mut file, &mut hashing).map_err(|error| format!("it cannot be read: {error}"))?;
    match hashing.finish() {
        (_, _, count) if count != size => Err(format!("it has {count} bytes and not {size}")),
        (_, found, _) if found != *digest => Err(format!("its bytes have the digest {found}")),
        _ => Ok(()),
    }
}

/// Whether two files have the same bytes.
fn same(one: &Path, other: &Path) -> io::Result<bool> {
    let (mut one, mut other) = (File::open(one)?, File::open(other)?);
    if one.metadata()?.len() != other.metadata()?.len() {
        return Ok(false);
    }
    let (mut a, mut b) = (vec![0; 1 << 16], vec![0; 1 << 16]);
    loop {
        let count = one.read(&mut a)?;
        if count == 0 {
            return Ok(true);
        }
        let (a, b) = (a.get(..count).unwrap_or_default(), b.get_mut(..count).unwrap_or_default());
        other.read_exact(b)?;
        if a != b {
            return Ok(false);
        }
    }
}

fn containers(store: &Store, find: &mut dyn FnMut(String, Remedy)) -> Result<()> {
    let mut known = HashSet::new();
    for record in store.containers().list()? {
        known.insert(record.id.clone());
        if let Err(error) = serde_json::from_str::<crate::container::Config>(&record.config) {
            find(format!("container {}: its record cannot be read: {error}", record.name), Remedy::None);
        }
        if !store.container_dir(&record.id).is_dir() {
            let what = format!("container {}: its files are missing", record.name);
            find(what, Remedy::Drop(record.id));
        }
    }
    for (name, path) in entries(&store.root().join("containers"))? {
        // A container that is being made has its files before its row; its run directory says that it is.
        if !known.contains(&name) && !store.root().join("run").join(&name).exists() {
            find(format!("{} belongs to no container", path.display()), Remedy::Remove(path));
        }
    }
    Ok(())
}

fn entries(dir: &Path) -> Result<Vec<(String, PathBuf)>> {
    let fail = |source| Error::io("read", dir, source);
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).map_err(fail)? {
        let entry = entry.map_err(fail)?;
        found.push((entry.file_name().to_string_lossy().into_owned(), entry.path()));
    }
    found.sort();
    Ok(found)
}

/// Repairs one finding; says whether something was done.
fn mend(store: &Store, remedy: &Remedy) -> Result<bool> {
    let images = Images::new(store);
    match remedy {
        Remedy::None => Ok(false),
        // Inside a transaction, so that nobody is about to record it.
        Remedy::Remove(path) => store.write("repair", |_| {
            let is_dir = fs::symlink_metadata(path).is_ok_and(|meta| meta.is_dir());
            let removed = if is_dir { fs::remove_dir_all(path) } else { fs::remove_file(path) };
            match removed {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    Err(Error::io("remove", path, error))
                }
                _ => Ok(true),
            }
        }),
        Remedy::Rebuild(id) => {
            let path = images.root_path(id);
            fs::remove_file(&path).map_err(|source| Error::io("remove", &path, source))?;
            images.root(&images.find(&id.to_string())?)?;
            Ok(true)
        }
        Remedy::Forget(id) => match images.remove(&id.to_string(), true) {
            // A second blob of one image.
            Ok(_) | Err(Error::NoSuchImage { .. }) => Ok(true),
            Err(error) => Err(error),
        },
        Remedy::Drop(id) => store.containers().remove(id),
    }
}

/// Bytes on disk of everything below a directory: holes take none. One that is not there has none.
#[must_use]
pub fn disk_usage(dir: &Path) -> u64 {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let sizes = entries.filter_map(|entry| {
        let meta = entry.metadata().ok()?;
        Some(if meta.is_dir() { disk_usage(&entry.path()) } else { meta.blocks().saturating_mul(512) })
    });
    sizes.sum()
}
