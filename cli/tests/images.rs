//! The verbs of images as a user calls them. No hypervisor is needed; the archive is the one that `engine/base/build.sh` makes.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// A data root and a guest directory of its own.
struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../engine/base/build.sh");
        let built = Command::new(script)
            .arg(dir.path().join("guest"))
            .env_remove("SERVIN_MINIROOTFS")
            .output()
            .unwrap();
        assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
        Place { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn archive(&self) -> String {
        self.path("guest/base.tar").to_str().unwrap().to_owned()
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_servin"));
        command.args(words).stdin(Stdio::null());
        command.env("SERVIN_DATA_ROOT", self.path("data")).env("SERVIN_GUEST_DIR", self.path("guest"));
        command
    }

    fn run(&self, words: &[&str]) -> Output {
        self.command(words).output().unwrap()
    }

    /// Standard output of a command that must succeed and say nothing else.
    fn out(&self, words: &[&str]) -> String {
        let done = self.run(words);
        let stderr = String::from_utf8_lossy(&done.stderr).into_owned();
        assert_eq!((done.status.code(), stderr.as_str()), (Some(0), ""), "{words:?}");
        String::from_utf8(done.stdout).unwrap()
    }

    /// Standard error of a command that must fail with 1 and print nothing.
    fn fails(&self, words: &[&str]) -> String {
        let done = self.run(words);
        assert_eq!((done.status.code(), done.stdout.as_slice()), (Some(1), &b""[..]), "{words:?}");
        String::from_utf8(done.stderr).unwrap()
    }
}

#[test]
fn an_archive_is_loaded_from_a_file_and_from_standard_input() {
    let place = Place::new();
    assert_eq!(place.out(&["load", "-i", &place.archive()]), "Loaded image: servin/base:latest\n");
    let piped = |words: &[&str]| {
        place.command(words).stdin(fs::File::open(place.archive()).unwrap()).output().unwrap().stdout
    };
    assert_eq!(piped(&["load"]), b"Loaded image: servin/base:latest\n");
    assert_eq!(piped(&["image", "load", "-i", "-"]), b"Loaded image: servin/base:latest\n");
    let listing = place.out(&["images"]);
    assert!(listing.starts_with("REPOSITORY    TAG      IMAGE ID"), "{listing}");
    assert_eq!(listing.lines().count(), 2);
}

#[test]
fn a_listing_is_ids_json_or_a_template_and_takes_filters() {
    let place = Place::new();
    place.out(&["load", "-i", &place.archive()]);
    place.out(&["tag", "servin/base", "mine:1"]);
    let id = place.out(&["images", "-q"]);
    assert_eq!(id.len(), 13, "{id}");
    assert!(place.out(&["images", "-q", "--no-trunc"]).starts_with(&format!("sha256:{}", id.trim())));
    assert_eq!(place.out(&["images", "--format", "{{.Repository}}:{{.Tag}}", "mine"]), "mine:1\n");
    assert_eq!(place.out(&["images", "--filter", "reference=serv*/b*", "--format", "{{.ID}}"]), id);
    assert_eq!(place.out(&["images", "-q", "--filter", "dangling=true"]), "");
    let json = place.out(&["images", "--format", "json", "mine"]);
    assert!(json.contains("\"Repository\":\"mine\"") && json.ends_with("}\n"), "{json}");
    assert!(place.fails(&["images", "--filter", "nonsense=1"]).contains("there are dangling"));
    assert!(place.fails(&["images", "--format", "{{.Nope}}"]).contains("there is no field .Nope"));
}

#[test]
fn the_base_image_is_there_without_being_loaded() {
    let place = Place::new();
    let format = "{{.Os}} {{json .Config.Cmd}} {{index .RepoTags 0}}";
    assert_eq!(
        place.out(&["inspect", "-f", format, "servin/base"]),
        "linux [\"/bin/sh\"] servin/base:latest\n"
    );
    assert!(place.out(&["history", "--no-trunc", "servin/base"]).contains("CMD [\"/bin/sh\"]"));
    let shown = place.out(&["image", "inspect", "servin/base"]);
    assert!(shown.starts_with("[\n    {\n        \"Architecture\"") && shown.ends_with("]\n"), "{shown}");
}

#[test]
fn what_is_saved_can_be_loaded_elsewhere() {
    let (here, there) = (Place::new(), Place::new());
    let file = here.path("saved.tar");
    here.out(&["save", "-o", file.to_str().unwrap(), "servin/base"]);
    let piped = here.run(&["save", "servin/base"]).stdout;
    assert!(piped == fs::read(&file).unwrap(), "a file and a pipe get different bytes");
    assert_eq!(
        there.out(&["load", "-q", "-i", file.to_str().unwrap()]),
        "Loaded image: servin/base:latest\n"
    );
    assert_eq!(here.out(&["images", "-q", "--no-trunc"]), there.out(&["images", "-q", "--no-trunc"]));
    // A failure leaves no half of a file.
    let nowhere = here.path("none.tar");
    here.fails(&["save", "-o", nowhere.to_str().unwrap(), "servin/base", "nope"]);
    let left: Vec<_> =
        fs::read_dir(here.dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(!left.iter().any(|name| name.to_string_lossy().contains("none")), "{left:?}");
}

#[test]
fn a_name_and_then_the_image_is_removed() {
    let place = Place::new();
    place.out(&["load", "-i", &place.archive()]);
    place.out(&["tag", "servin/base", "mine"]);
    assert_eq!(place.out(&["rmi", "mine"]), "Untagged: mine:latest\n");
    let done = place.run(&["rmi", "nope", "servin/base"]);
    assert_eq!(done.status.code(), Some(1), "one was not there");
    let (out, err) = (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    assert!(out.starts_with("Untagged: servin/base:latest\nDeleted: sha256:"), "{out}");
    assert!(err.starts_with("servin: no such image: nope") && err.lines().count() == 1, "{err}");
    assert_eq!(place.out(&["images", "-q"]), "");
    assert_eq!(fs::read_dir(place.path("data/blobs/sha256")).unwrap().count(), 0);
}

#[test]
fn what_cannot_be_done_is_one_line_and_changes_nothing() {
    let place = Place::new();
    for (words, why) in [
        (&["load", "-i", "/nonexistent"][..], "cannot open /nonexistent: No such file"),
        (&["load"], "standard input cannot be loaded: it is empty"),
        (&["load", "--platform", "linux", "-i", "x"], "invalid platform \"linux\""),
        (&["tag", "nope", "mine"], "no such image: nope"),
        (&["tag", "servin/base", "Mine"], "invalid image reference \"Mine\": the name must be lower case"),
        (&["history", "nope"], "no such image: nope"),
        (&["save", "nope"], "no such image: nope"),
        (&["image", "prune"], "say --force where nobody can be asked"),
        (&["image", "build", "x"], "cannot open the context x: No such file"),
    ] {
        let said = place.fails(words);
        assert!(said.starts_with("servin: ") && said.contains(why), "{words:?}: {said}");
    }
    let done = place.run(&["inspect", "nope"]);
    assert_eq!((done.status.code(), done.stdout.as_slice()), (Some(1), &b"[]\n"[..]));
    assert_eq!(place.out(&["images", "-q"]), "");
}

#[test]
fn a_reader_that_leaves_does_not_hang_a_save() {
    let place = Place::new();
    let mut save = place
        .command(&["save", "servin/base"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(save.stdout.take());
    assert_eq!(save.wait().unwrap().code(), Some(1));
}
