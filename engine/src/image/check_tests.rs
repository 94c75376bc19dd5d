//! What `system check` finds in a store with one image, and what it repairs.

use std::fs;
use std::path::Path;

use super::tests::whole_store;
use super::*;
use crate::store::{Finding, Remedy, check};

/// What is found after something was done to the store, and what is left when that was repaired.
fn after(change: impl Fn(&Store, &Digest)) -> (Vec<Finding>, Vec<Finding>, usize) {
    let (_dir, store, id) = whole_store();
    assert_eq!(check(&store, false, &mut |_| {}).unwrap(), []);
    change(&store, &id);
    let found = check(&store, false, &mut |_| {}).unwrap();
    let repaired = check(&store, true, &mut |_| {}).unwrap();
    assert!(repaired.iter().all(|finding| finding.repaired), "{repaired:?}");
    let left = check(&store, false, &mut |_| {}).unwrap();
    (found, left, Images::new(&store).list().unwrap().len())
}

fn flip(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(path, bytes).unwrap();
}

fn layer_path(store: &Store, id: &Digest) -> PathBuf {
    let (digest, _) = Images::new(store).blob_sizes(id).unwrap()[2];
    store.blob_path(&digest)
}

#[test]
fn a_changed_root_file_system_is_made_anew() {
    let (found, left, images) = after(|store, id| flip(&Images::new(store).root_path(id)));
    assert!(matches!(found.as_slice(), [Finding { remedy: Remedy::Rebuild(_), .. }]), "{found:?}");
    assert_eq!((left, images), (vec![], 1));
}

#[test]
fn an_image_that_has_lost_a_blob_is_forgotten() {
    for lose in [
        flip as fn(&Path),
        |path: &Path| fs::remove_file(path).unwrap(),
        |path: &Path| fs::write(path, "x").unwrap(),
    ] {
        let (found, left, images) = after(|store, id| lose(&layer_path(store, id)));
        assert!(matches!(found.as_slice(), [Finding { remedy: Remedy::Forget(_), .. }]), "{found:?}");
        assert_eq!((left, images), (vec![], 0));
    }
}

#[test]
fn what_nothing_speaks_of_is_removed() {
    let (found, left, images) = after(|store, _| {
        fs::write(store.root().join("blobs/sha256/strange"), "x").unwrap();
        fs::write(store.root().join("roots/strange"), "x").unwrap();
        fs::create_dir(store.root().join("containers/strange")).unwrap();
    });
    assert_eq!(found.len(), 3, "{found:?}");
    assert!(found.iter().all(|finding| matches!(finding.remedy, Remedy::Remove(_))));
    assert_eq!((left, images), (vec![], 1));
}
