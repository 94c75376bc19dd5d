use std::fs;

use super::*;

/// A guest directory with a kernel of 64 bytes: an ELF, or an Image on arm64.
fn guest(dir: &Path) {
    fs::create_dir_all(dir).unwrap();
    let mut elf = [0u8; 64];
    elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
    (elf[16], elf[18]) = (2, 62);
    if cfg!(target_arch = "aarch64") {
        elf = [0; 64];
        elf[0x38..0x3c].copy_from_slice(b"ARM\x64");
    }
    fs::write(dir.join(KERNEL), elf).unwrap();
    fs::write(dir.join(INITRAMFS), b"070701").unwrap();
}

fn manifest(dir: &Path, sha256: &str) {
    let json = format!(
        r#"{{"version":"6.12.1","sha256":"{sha256}","size":64,"key":"k","config_sha256":"c","source":"s","compiler":"gcc"}}"#
    );
    fs::write(dir.join(MANIFEST), json).unwrap();
}

#[test]
fn the_named_directory_wins_and_is_the_only_place() {
    let tmp = tempfile::tempdir().unwrap();
    let exe = tmp.path().join("target/debug/servin");
    guest(&tmp.path().join("target/guest"));
    let named = tmp.path().join("named");
    let error = Guest::search(None, Some(named.clone()), Some(&exe)).unwrap_err();
    assert!(
        matches!(&error, Error::NotFound { searched } if *searched == [(named.clone(), KERNEL)]),
        "{error}"
    );
    guest(&named);
    assert_eq!(Guest::search(None, Some(named.clone()), Some(&exe)).unwrap().kernel, named.join(KERNEL));
}

#[test]
fn an_installed_guest_is_found_beside_the_executable() {
    let tmp = tempfile::tempdir().unwrap();
    let lib = tmp.path().join("lib/servin");
    guest(&lib);
    let found = Guest::search(None, None, Some(&tmp.path().join("bin/servin"))).unwrap();
    assert_eq!(found.kernel, lib.join(KERNEL));
    assert_eq!(
        found.format,
        if cfg!(target_arch = "aarch64") { KernelFormat::Image } else { KernelFormat::Elf }
    );
    assert_eq!(found.initramfs, lib.join(INITRAMFS));
}

#[test]
fn the_development_tree_is_found_from_any_depth() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = tmp.path().join("target/guest");
    guest(&dir);
    for exe in [
        "target/debug/servin",
        "target/debug/deps/run-0123",
        "target/x86_64-unknown-linux-musl/release/servin",
    ] {
        assert_eq!(
            Guest::search(None, None, Some(&tmp.path().join(exe))).unwrap().kernel,
            dir.join(KERNEL),
            "{exe}"
        );
    }
}

#[test]
fn a_directory_without_an_initramfs_is_passed_over() {
    let tmp = tempfile::tempdir().unwrap();
    let (half, dir) = (tmp.path().join("target/lib/servin"), tmp.path().join("target/guest"));
    guest(&half);
    fs::remove_file(half.join(INITRAMFS)).unwrap();
    guest(&dir);
    let found = Guest::search(None, None, Some(&tmp.path().join("target/debug/servin"))).unwrap();
    assert_eq!(found.kernel, dir.join(KERNEL));
}

#[test]
fn nothing_found_names_every_place_and_the_cure() {
    let tmp = tempfile::tempdir().unwrap();
    let text = Guest::search(None, None, Some(&tmp.path().join("bin/servin"))).unwrap_err().to_string();
    for part in [
        &format!("lib/servin (no {KERNEL})"),
        &format!("guest (no {KERNEL})"),
        "make guest",
        "SERVIN_GUEST_DIR",
    ] {
        assert!(text.contains(part), "{part} is not in: {text}");
    }
}

#[test]
fn an_explicit_kernel_borrows_the_initramfs() {
    let tmp = tempfile::tempdir().unwrap();
    let (dir, own) = (tmp.path().join("guest"), tmp.path().join("own"));
    guest(&dir);
    guest(&own);
    let kernel = own.join(KERNEL);
    let found = Guest::search(Some(&kernel), Some(dir.clone()), None).unwrap();
    assert_eq!((found.kernel, found.initramfs), (kernel, dir.join(INITRAMFS)));
}

#[test]
fn an_explicit_directory_holds_both() {
    let tmp = tempfile::tempdir().unwrap();
    guest(tmp.path());
    let found = Guest::search(Some(tmp.path()), None, None).unwrap();
    assert_eq!(found.initramfs, tmp.path().join(INITRAMFS));
}

#[test]
fn an_explicit_path_that_is_missing_or_no_kernel_is_an_error() {
    let tmp = tempfile::tempdir().unwrap();
    guest(tmp.path());
    let missing = tmp.path().join("missing");
    assert!(
        matches!(Guest::search(Some(&missing), None, None), Err(Error::Read { path, .. }) if path == missing)
    );
    let text = tmp.path().join("notes.txt");
    fs::write(&text, "not a kernel").unwrap();
    let error = Guest::search(Some(&text), Some(tmp.path().into()), None).unwrap_err();
    assert!(matches!(error, Error::Format { .. }), "{error}");
}

#[test]
fn verify_tells_the_built_kernel_from_a_changed_one() {
    let tmp = tempfile::tempdir().unwrap();
    guest(tmp.path());
    let found = Guest::search(Some(tmp.path()), None, None).unwrap();
    assert!(matches!(found.verify(), Err(Error::Read { .. })), "no kernel.json yet");
    manifest(tmp.path(), "00");
    let Err(Error::Checksum { found: sum, .. }) = found.verify() else { panic!("a wrong sum passed") };
    manifest(tmp.path(), &sum);
    assert_eq!(found.verify().unwrap().version, "6.12.1");
    fs::write(&found.kernel, "changed").unwrap();
    assert!(matches!(found.verify(), Err(Error::Checksum { .. })));
}

#[test]
fn a_manifest_that_is_not_json_is_an_error() {
    let tmp = tempfile::tempdir().unwrap();
    guest(tmp.path());
    fs::write(tmp.path().join(MANIFEST), "{").unwrap();
    let found = Guest::search(Some(tmp.path()), None, None).unwrap();
    assert!(matches!(found.verify(), Err(Error::Manifest { .. })));
}
