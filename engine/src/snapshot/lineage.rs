//! Snapshots that have only what changed since another one, their parent.
//!
//! `about.json` has the snapshot's number, and the parent's number and the sum of its `sums`. A parent is looked for by its
//! number, beside the snapshot and in the data root: so both may be copied, under whatever names.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use super::{About, Snapshots, sums};

/// No more snapshots than this build on each other; the next one is whole.
const MOST: usize = 32;

/// What is known of a snapshot's parent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parent {
    /// Its number.
    pub number: String,
    /// Its name when the snapshot was made, for people.
    pub name: String,
    /// The sum of its `sums`, and so of every byte of it.
    pub sums: String,
}

/// The directories of a snapshot and of those that it builds on: a whole one first, itself last.
pub(crate) type Chain = Vec<PathBuf>;

/// A parent that is kept from being removed while its child is made.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) parent: Parent,
    /// It, and those below it.
    pub(super) chain: Chain,
    /// Its directory, with a shared lock.
    _lock: File,
}

/// Finds the first of these numbers among the snapshots of the data root that another one can build on, and holds it.
pub(super) fn hold(snapshots: Snapshots<'_>, numbers: &[String]) -> Option<Held> {
    numbers.iter().find_map(|number| {
        let (path, _) = find(number, &[snapshots.dir()])?;
        let lock = File::open(&path).ok()?;
        flock(&lock, FlockOperation::NonBlockingLockShared).ok()?;
        // It may have been removed before it was locked; from here on it stays.
        let (path, about) = find(number, &[snapshots.dir()])?;
        let chain = chain(snapshots, &path, &about).ok().filter(|chain| chain.len() < MOST)?;
        let parent = Parent {
            number: number.clone(),
            name: path.file_name()?.to_string_lossy().into_owned(),
            sums: sums::own(&path).ok()?,
        };
        Some(Held { parent, chain, _lock: lock })
    })
}

/// The directories of a snapshot and of those that it builds on.
///
/// # Errors
/// What is wrong with its lineage, for people. Of those files only the sums are looked at.
pub(super) fn chain(snapshots: Snapshots<'_>, path: &Path, about: &About) -> Result<Chain, String> {
    let mut chain = vec![path.to_path_buf()];
    let mut next = about.parent.clone();
    while let Some(parent) = next {
        if chain.len() >= MOST {
            return Err(format!("more than {MOST} snapshots build on each other"));
        }
        let name = &parent.name;
        let mut places = vec![snapshots.dir()];
        places.extend(path.parent().map(Path::to_path_buf));
        let Some((path, about)) = find(&parent.number, &places) else {
            return Err(format!(
                "it has only what changed since the snapshot {name} ({}), which is neither beside it nor in the data root",
                parent.number
            ));
        };
        if sums::own(&path)? != parent.sums {
            return Err(format!("the snapshot {name}, on which it builds, was altered since"));
        }
        chain.push(path);
        next = about.parent;
    }
    chain.reverse();
    Ok(chain)
}

/// The snapshot of this number.
fn find(number: &str, places: &[PathBuf]) -> Option<(PathBuf, About)> {
    let entries = places.iter().flat_map(|dir| fs::read_dir(dir).into_iter().flatten());
    entries.filter_map(Result::ok).find_map(|entry| {
        let path = entry.path();
        let about = super::about(&path).ok()?;
        (about.number.as_deref() == Some(number)).then_some((path, about))
    })
}
