//! What matters only where a real directory is behind the share.

#[cfg(unix)]
use std::os::unix::fs::{MetadataExt as _, PermissionsExt};
use std::path::Path;

use super::super::testing::Client;
use super::super::vfs::{Errno, ROOT};
use super::*;

const RDWR: u32 = 2;

/// Each of these is asked of every way in which this host can hold files.
macro_rules! tests {
    ($($(#[$on:meta])? $test:ident)*) => {
        #[cfg(target_os = "linux")]
        mod held_by_descriptor {
            $($(#[$on])? #[test] fn $test() { super::$test::<super::super::by_descriptor::ByDescriptor>(); })*
        }
        #[cfg(unix)]
        mod held_by_name {
            $($(#[$on])? #[test] fn $test() { super::$test::<super::super::by_name::ByName>(); })*
        }
        #[cfg(windows)]
        mod held_by_handle {
            $($(#[$on])? #[test] fn $test() { super::$test::<super::super::windows::ByHandle>(); })*
        }
    };
}
tests! {
    the_host_sees_writes_at_once_and_the_guest_the_hosts
    where_the_guest_keeps_writes_the_host_does_not_say_where_data_is
    symbolic_links_of_the_host_lead_nowhere
    a_directory_swapped_for_a_link_is_stale_not_followed
    a_shared_file_is_alone_in_its_share
    copies_between_files_stay_on_the_host
    descriptors_are_bounded_however_many_files_the_guest_knows
    a_restored_share_knows_its_files_and_handles_by_name
    #[cfg(unix)] pipes_are_not_opened_and_devices_not_made
    #[cfg(unix)] new_files_have_the_asked_mode_whatever_our_umask_and_the_callers_owner
}

/// Makes a link of the host's; false, and says so, where it has none.
fn symlink(target: impl AsRef<Path>, link: impl AsRef<Path>) -> bool {
    #[cfg(unix)]
    std::os::unix::fs::symlink(target, link).unwrap();
    #[cfg(windows)]
    {
        let (target, link) = (target.as_ref(), link.as_ref());
        let made = if target.is_dir() {
            std::os::windows::fs::symlink_dir(target, link)
        } else {
            std::os::windows::fs::symlink_file(target, link)
        };
        // Wine makes none and says nothing.
        if let Err(why) = made.and_then(|()| link.symlink_metadata()) {
            println!("skipped: no symbolic links can be made here: {why}");
            return false;
        }
    }
    true
}

fn share<S: System>(path: &Path) -> Client {
    Client::new(Box::new(Passthrough::<S>::directory(path, Options::default()).unwrap()))
}

fn the_host_sees_writes_at_once_and_the_guest_the_hosts<S: System>() {
    let dir = tempfile::tempdir().unwrap();
    let mut fs = share::<S>(dir.path());
    let (_, handle) = fs.create(ROOT, "file", RDWR, 0o644).unwrap();
    fs.write(handle, 0, b"from the guest").unwrap();
    assert_eq!(std::fs::read(dir.path().join("file")).unwrap(), b"from the guest");
    std::fs::write(dir.path().join("file"), b"from the host").unwrap();
    assert_eq!(fs.read(handle, 0, 100).unwrap(), b"from the host");
    assert_eq!(fs.lookup(ROOT, "file").unwrap().size, 13);
}

fn where_the_guest_keeps_writes_the_host_does_not_say_where_data_is<S: System>() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options { writeback: true, ..Options::default() };
    let mut fs = Client::new(Box::new(Passthrough::<S>::directory(dir.path(), options).unwrap()));
    let (_, handle) = fs.create(ROOT, "file", RDWR, 0o644).unwrap();
    fs.write(handle, 0, b"data").unwrap();
    assert_eq!(fs.lseek(handle, 0, 3), Err(Errno::NOSYS));
}

fn symbolic_links_of_the_host_lead_nowhere<S: System>() {
    let outside = tempfile::tempdir().unwrap();
    std::fs::write(outside.path().join("secret"), b"secret").unwrap();
    let dir = tempfile::tempdir().unwrap();
    if !symlink(outside.path(), dir.path().join("dir")) {
        return;
    }
    symlink(outside.path().join("secret"), dir.path().join("file"));
    let mut fs = share::<S>(dir.path());
    let link = fs.lookup(ROOT, "dir").unwrap().node;
    assert_eq!(fs.lookup(link, "secret"), Err(Errno::NOTDIR));
    assert!(fs.mkdir(link, "new", 0o755).is_err() && fs.create(link, "new", RDWR, 0o600).is_err());
    assert!(fs.list(link, 500, false).is_err());
    let file = fs.lookup(ROOT, "file").unwrap().node;
    assert_eq!(fs.open(file, RDWR), Err(Errno::LOOP));
    assert!(fs.setattr(file, 1 << 3, 0, 0, (0, 0)).is_err(), "truncating through a link");
    assert!(fs.create(ROOT, "file", RDWR, 0o600).is_err(), "creating through a link");
    assert_eq!(std::fs::read(outside.path().join("secret")).unwrap(), b"secret");
}

fn a_directory_swapped_for_a_link_is_stale_not_followed<S: System>() {
    let outside = tempfile::tempdir().unwrap();
    std::fs::write(outside.path().join("file"), b"secret").unwrap();
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("sub")).unwrap();
    std::fs::write(dir.path().join("sub/file"), b"mine").unwrap();
    let options = Options { max_nodes_open: 2, ..Options::default() };
    let mut fs = Client::new(Box::new(Passthrough::<S>::directory(dir.path(), options).unwrap()));
    let file = fs.walk("sub/file").unwrap().node;
    // Other lookups push the descriptors of `sub` and `file` out.
    for n in 0..4 {
        std::fs::write(dir.path().join(format!("f{n}")), b"").unwrap();
        fs.lookup(ROOT, &format!("f{n}")).unwrap();
    }
    std::fs::rename(dir.path().join("sub"), dir.path().join("old")).unwrap();
    if symlink(outside.path(), dir.path().join("sub")) {
        assert_eq!(fs.open(file, 0), Err(Errno::STALE));
        let link = dir.path().join("sub");
        (if cfg!(windows) { std::fs::remove_dir(link) } else { std::fs::remove_file(link) }).unwrap();
    }
    std::fs::rename(dir.path().join("old"), dir.path().join("sub")).unwrap();
    let handle = fs.open(file, 0).unwrap();
    assert_eq!(fs.read(handle, 0, 10).unwrap(), b"mine");
}

#[cfg(unix)]
fn pipes_are_not_opened_and_devices_not_made<S: System>() {
    let dir = tempfile::tempdir().unwrap();
    let mut fs = share::<S>(dir.path());
    let pipe = fs.mknod(ROOT, "pipe", 0o010_644, 0).unwrap().node;
    assert_eq!(fs.open(pipe, 0), Err(Errno::NXIO));
    assert_eq!(fs.create(ROOT, "pipe", RDWR, 0o600), Err(Errno::NXIO));
    assert_eq!(fs.mknod(ROOT, "disk", 0o060_666, 0x0800), Err(Errno::PERM));
    assert_eq!(fs.mknod(ROOT, "null", 0o020_666, 0x0103), Err(Errno::PERM));
    assert!(!dir.path().join("disk").exists());
}

#[cfg(unix)]
fn new_files_have_the_asked_mode_whatever_our_umask_and_the_callers_owner<S: System>() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o777)).unwrap();
    let mut fs = share::<S>(dir.path());
    fs.uid = 1234;
    let (_, handle) = fs.create(ROOT, "file", RDWR, 0o666).unwrap();
    let sub = fs.mkdir(ROOT, "dir", 0o1777).unwrap();
    assert_eq!(sub.mode, 0o041_777);
    fs.release(handle).unwrap();
    let meta = std::fs::metadata(dir.path().join("file")).unwrap();
    assert_eq!(meta.mode() & 0o7777, 0o666);
    if rustix::process::geteuid().is_root() {
        assert_eq!((meta.uid(), meta.gid()), (1234, 1234));
        let made = fs.lookup(ROOT, "file").unwrap();
        let given = fs.setattr(made.node, 1 << 1 | 1 << 2, 0, 0, (77, 88)).unwrap();
        assert_eq!((given.uid, given.gid), (77, 88));
    }
}

fn a_shared_file_is_alone_in_its_share<S: System>() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("shared"), b"one").unwrap();
    std::fs::write(dir.path().join("hidden"), b"two").unwrap();
    let fs = Passthrough::<S>::file(&dir.path().join("shared"), Options::default()).unwrap();
    let mut fs = Client::new(Box::new(fs));
    let names: Vec<_> = fs.list(ROOT, 1000, true).unwrap().into_iter().map(|(name, _)| name).collect();
    assert_eq!(names.iter().filter(|name| !name.starts_with('.')).collect::<Vec<_>>(), ["shared"]);
    assert_eq!(fs.lookup(ROOT, "hidden"), Err(Errno::NOENT));
    assert_eq!(fs.create(ROOT, "new", RDWR, 0o600), Err(Errno::BUSY));
    assert!(fs.unlink(ROOT, "shared").is_err() && fs.unlink(ROOT, "hidden").is_err());
    assert!(fs.rename((ROOT, "shared"), (ROOT, "hidden"), 0).is_err());
    let file = fs.lookup(ROOT, "shared").unwrap().node;
    let handle = fs.open(file, RDWR).unwrap();
    fs.write(handle, 0, b"ONE").unwrap();
    assert_eq!(std::fs::read(dir.path().join("shared")).unwrap(), b"ONE");
    assert!(Passthrough::<S>::file(Path::new("/"), Options::default()).is_err());
    assert!(Passthrough::<S>::directory(&dir.path().join("shared"), Options::default()).is_err());
}

fn copies_between_files_stay_on_the_host<S: System>() {
    let dir = tempfile::tempdir().unwrap();
    let mut fs = share::<S>(dir.path());
    std::fs::write(dir.path().join("from"), b"0123456789").unwrap();
    let from = fs.lookup(ROOT, "from").unwrap().node;
    let from = fs.open(from, 0).unwrap();
    let (_, to) = fs.create(ROOT, "to", RDWR, 0o600).unwrap();
    assert_eq!(fs.copy_range((from, 2), (to, 1), 5).unwrap(), 5);
    assert_eq!(std::fs::read(dir.path().join("to")).unwrap(), b"\x0023456");
    assert_eq!(fs.copy_range((to, 0), (from, 0), 5), Err(Errno::BADF), "the target is not open for writing");
}

fn descriptors_are_bounded_however_many_files_the_guest_knows<S: System>() {
    let dir = tempfile::tempdir().unwrap();
    for n in 0..50 {
        std::fs::write(dir.path().join(format!("{n}")), b"").unwrap();
    }
    let options = Options { max_nodes_open: 8, max_handles: 3, ..Options::default() };
    let mut host = Passthrough::<S>::directory(dir.path(), options).unwrap();
    let entries: Vec<_> = (0..50)
        .map(|n| host.lookup(ROOT, Name::new(n.to_string().as_bytes()).unwrap()).unwrap().node)
        .collect();
    let (known, open) = host.nodes.counts();
    assert!(known == 51 && open <= 9, "{known} {open}");
    for &node in &entries {
        host.getattr(node, None).unwrap();
    }
    for &node in &entries[..3] {
        host.open(node, 0).unwrap();
    }
    assert_eq!(host.open(entries[3], 0), Err(Errno::NFILE));
    for &node in &entries {
        host.forget(node, 1);
    }
    assert_eq!(host.nodes.counts().0, 1);
}

fn a_restored_share_knows_its_files_and_handles_by_name<S: System>() {
    let dir = tempfile::tempdir().unwrap();
    let mut before = share::<S>(dir.path());
    let sub = before.mkdir(ROOT, "sub", 0o755).unwrap().node;
    let (file, handle) = before.create(sub, "file", RDWR, 0o600).unwrap();
    before.write(handle, 0, b"kept").unwrap();
    let (gone, _) = before.create(sub, "gone", RDWR, 0o600).unwrap();
    before.rig.transport().pause();
    let saved = before.rig.transport().save().unwrap();
    let gone_path = dir.path().join("sub/gone");
    if cfg!(windows) {
        // An open file may keep its name when it is removed.
        std::fs::rename(gone_path, dir.path().join("sub/other")).unwrap();
    } else {
        std::fs::remove_file(gone_path).unwrap();
    }

    let device = super::super::Fs::new(
        "share",
        Box::new(Passthrough::<S>::directory(dir.path(), Options::default()).unwrap()),
    );
    let mem = std::sync::Arc::clone(before.rig.shared_mem());
    let line = std::sync::Arc::new(crate::testing::CountingLine::default());
    let mut after = crate::virtio::MmioTransport::new(
        Box::new(device.unwrap()),
        mem,
        line,
        crate::virtio::Activation::Inline,
    )
    .unwrap();
    after.restore(&saved).unwrap();
    std::mem::swap(before.rig.transport(), &mut after);
    assert_eq!(before.read(handle, 0, 10).unwrap(), b"kept");
    assert_eq!(before.getattr(file.node).unwrap().size, 4);
    assert_eq!(before.getattr(gone.node), Err(Errno::STALE));
    assert_eq!(before.lookup(sub, "file").unwrap().node, file.node);
}
