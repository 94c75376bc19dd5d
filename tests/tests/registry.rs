//! Pulls, pushes and logins against Debian's docker-registry on loopback.
//!
//! The registry comes from the folder of test images (`tests/images/build.sh`): the same on every host.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::json;
use servin_tests::machine::{Outcome, Servin};
use servin_tests::packages;
use servin_tests::registry::Registry;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

fn archive() -> String {
    let dir = std::env::var("SERVIN_GUEST_DIR").expect("SERVIN_GUEST_DIR is set by make test");
    Path::new(&dir).join("base.tar").to_str().unwrap().to_owned()
}

/// Loads the base image, and gives it this name.
fn load(servin: &Servin, name: &str) {
    let loaded = servin.go(&["load", "-q", "-i", &archive()]);
    assert_eq!(loaded.code, Some(0), "{loaded:?}");
    servin.go(&["tag", "servin/base", name]).expect(0, "");
}

fn id(servin: &Servin, name: &str) -> String {
    servin.go(&["inspect", "-f", "{{.Id}}", name]).text()
}

fn ok(outcome: Outcome) -> Outcome {
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    outcome
}

#[test]
fn what_is_pushed_with_an_account_is_pulled_with_it_alone() {
    let Some(registry) = Registry::start(true) else { return };
    let (one, other) = (Servin::without_machine(), Servin::without_machine());
    let name = registry.name("team/base:1");
    load(&one, &name);
    let refused = one.go(&["push", &name]);
    assert!(refused.code == Some(1) && refused.stderr.contains("servin login"), "{refused:?}");
    for (word, code) in [("wrong", 1), ("s3cret", 0)] {
        let login = one.go(&["login", "-u", "servin", "-p", word, &registry.host]);
        assert_eq!(login.code, Some(code), "{login:?}");
    }
    let pushed = ok(one.go(&["push", &name])).text();
    let digest = pushed.split(' ').find(|word| word.starts_with("sha256:")).unwrap().to_owned();
    assert_eq!(other.go(&["pull", "-q", &name]).code, Some(1));
    let known = format!("{{\"auths\": {{\"{}\": {{\"auth\": \"c2VydmluOnMzY3JldA==\"}}}}}}", registry.host);
    fs::create_dir_all(other.folder().join(".docker")).unwrap();
    fs::write(other.folder().join(".docker/config.json"), known).unwrap();
    other.go(&["pull", "-q", &name]).expect(0, &format!("{name}\n"));
    assert_eq!(id(&one, &name), id(&other, &name));
    let digests = other.go(&["inspect", "-f", "{{index .RepoDigests 0}}", &name]).text();
    assert_eq!(digests, format!("{}@{digest}\n", registry.name("team/base")));
    ok(one.go(&["logout", &registry.host]));
    assert_eq!(one.go(&["pull", "-q", &name]).code, Some(1));
}

#[test]
fn a_pull_that_is_killed_at_any_point_leaves_a_store_that_holds() {
    let Some(registry) = Registry::start(false) else { return };
    let (one, other) = (Servin::without_machine(), Servin::without_machine());
    let name = registry.name("base:1");
    load(&one, &name);
    ok(one.go(&["push", "-q", &name]));
    for step in 0..12u64 {
        let mut child = other.command(["pull", "-q", &name]).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(step * 15));
        let _ = child.kill();
        let whole = child.wait().unwrap().success();
        let listed = ok(other.go(&["images", "-q"])).text().lines().count();
        assert!(listed == 1 || (listed == 0 && !whole), "{listed} images");
        if listed == 1 {
            ok(other.go(&["save", "-o", "/dev/null", &name]));
            ok(other.go(&["rmi", &name]));
        }
        assert_eq!(fs::read_dir(other.data_root().join("tmp")).unwrap().count(), 0, "something was left");
    }
    ok(other.go(&["pull", "-q", &name]));
    assert_eq!(id(&one, &name), id(&other, &name));
}

#[test]
fn run_pulls_what_is_missing_and_tells_it_apart_from_the_output() {
    let Some(registry) = Registry::start(false) else { return };
    let Some(servin) = Servin::on_any_host() else { return };
    let name = registry.name("base:1");
    load(&servin, &name);
    ok(servin.go(&["push", "-q", &name]));
    ok(servin.go(&["rmi", &name]));
    let refused = servin.go(&["run", "--rm", "--pull", "never", &name, "true"]);
    assert!(refused.code == Some(125) && refused.stderr.contains("no such image"), "{refused:?}");
    let outcome = servin.go(&["run", "--rm", &name, "sh", "-c", "echo out; exit 7"]);
    outcome.expect(7, "out\n");
    assert!(outcome.stderr.contains("Unable to find image") && outcome.stderr.contains("Digest: sha256:"));
}

#[test]
fn a_credential_helper_keeps_the_password_instead_of_the_file() {
    let Some(registry) = Registry::start(true) else { return };
    let mut servin = Servin::without_machine();
    let programs = servin.folder().join("bin");
    let kept = servin.folder().join("kept");
    fs::create_dir_all(&programs).unwrap();
    // Keeps what `store` is given, and gives it for the server that it is of.
    let script = format!(
        r#"#!/bin/sh
read -r input
case $1 in
  store) printf '%s' "$input" >'{kept}' ;;
  get) grep -sF "\"$input\"" '{kept}' || {{ echo 'credentials not found in native keychain'; exit 1; }} ;;
  erase) rm '{kept}' ;;
esac
"#,
        kept = kept.display()
    );
    let program = programs.join("docker-credential-test");
    fs::write(&program, script).unwrap();
    fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let path = std::env::var("PATH").unwrap_or_default();
    servin.env.push(("PATH".into(), format!("{}:{path}", programs.display())));
    let accounts = servin.folder().join("auth.json");
    servin.env.push(("SERVIN_AUTH_FILE".into(), accounts.display().to_string()));
    fs::write(&accounts, r#"{"credsStore": "test"}"#).unwrap();
    let name = registry.name("base:1");
    load(&servin, &name);
    assert_eq!(servin.go(&["push", &name]).code, Some(1));
    let login =
        servin.go_with_input(&["login", "-u", "servin", "--password-stdin", &registry.host], b"s3cret\n");
    login.expect(0, "Login Succeeded\n");
    assert!(!fs::read_to_string(&accounts).unwrap().contains("auths"), "the file has it too");
    assert!(fs::read_to_string(&kept).unwrap().contains("s3cret"));
    ok(servin.go(&["push", &name]));
    ok(servin.go(&["logout", &registry.host]));
    assert!(!kept.exists());
    assert_eq!(servin.go(&["push", &name]).code, Some(1));
}

/// Lists these references of the repository in an index with this tag.
fn put_index(registry: &Registry, repository: &str, tag: &str, members: &[(&str, &str, Option<&str>)]) {
    let manifests = members.iter().map(|(reference, kind, cpu)| {
        let (status, body) = registry.ask("GET", &format!("{repository}/manifests/{reference}"), kind, b"");
        assert_eq!(status, 200, "{reference}");
        let mut member = json!({ "mediaType": kind, "digest": reference, "size": body.len() });
        if let Some(cpu) = cpu {
            member["platform"] = json!({ "os": "linux", "architecture": cpu });
        }
        member
    });
    let manifests = manifests.collect::<Vec<_>>();
    let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": manifests }).to_string();
    let put = registry.ask("PUT", &format!("{repository}/manifests/{tag}"), INDEX, index.as_bytes());
    assert_eq!(put.0, 201, "{}", String::from_utf8_lossy(&put.1));
}

#[test]
fn a_tag_of_several_platforms_gives_the_one_that_is_wanted() {
    let Some(registry) = Registry::start(false) else { return };
    let Some(images) = packages::folder() else { return };
    let Some(servin) = Servin::on_any_host() else { return };
    let archive = images.join("multi.tar");
    let name = registry.name("team/multi");
    let architecture = |name: &str| servin.go(&["inspect", "-f", "{{.Architecture}}", name]).text();
    let cpus = ["arm64", "amd64"];
    let digests = cpus.map(|cpu| {
        // The archive is an index of an index, with an attestation before the platforms.
        let platform = format!("linux/{cpu}");
        ok(servin.go(&["load", "-q", "--platform", &platform, "-i", archive.to_str().unwrap()]));
        assert_eq!(architecture("test/multi"), format!("{cpu}\n"));
        let tag = format!("{name}:{cpu}");
        servin.go(&["tag", "test/multi", &tag]).expect(0, "");
        let pushed = ok(servin.go(&["push", &tag])).text();
        ok(servin.go(&["rmi", &tag, "test/multi"]));
        pushed.split(' ').find(|word| word.starts_with("sha256:")).unwrap().to_owned()
    });
    let members = [0, 1].map(|at| (digests[at].as_str(), MANIFEST, Some(cpus[at])));
    put_index(&registry, "team/multi", "flat", &members);
    let (_, flat) = registry.ask("GET", "team/multi/manifests/flat", INDEX, b"");
    let inner = format!("sha256:{}", sha256(&servin, &flat));
    put_index(&registry, "team/multi", "nested", &[(&inner, INDEX, None)]);

    let refused = servin.go(&["pull", "--platform", "linux/s390x", &format!("{name}:flat")]);
    let both = refused.stderr.contains("linux/arm64") && refused.stderr.contains("linux/amd64");
    assert!(refused.code == Some(1) && both, "{refused:?}");
    for (tag, cpu) in [("flat", "arm64"), ("nested", "arm64"), ("flat", "amd64")] {
        let tag = format!("{name}:{tag}");
        ok(servin.go(&["pull", "-q", "--platform", &format!("linux/{cpu}"), &tag]));
        assert_eq!(architecture(&tag), format!("{cpu}\n"));
        ok(servin.go(&["rmi", &tag]));
    }
    let native = if cfg!(target_arch = "aarch64") { "arm64\n" } else { "amd64\n" };
    let outcome = servin.go(&["run", "--rm", &format!("{name}:nested")]);
    outcome.expect(0, native);
}

/// The digest of these bytes, by the program that every host has.
fn sha256(servin: &Servin, data: &[u8]) -> String {
    let file = servin.folder().join("index.json");
    fs::write(&file, data).unwrap();
    let out = Command::new("sha256sum").arg(&file).output().unwrap();
    String::from_utf8_lossy(&out.stdout).split(' ').next().unwrap().to_owned()
}
