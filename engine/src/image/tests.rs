//! Loading, listing, removing and saving, with archives of every form.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use super::*;
use crate::store::{Record, State, now_ns};
use crate::testing::{Item, gzip, layer};

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";

fn store() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("root")).unwrap();
    (dir, store)
}

fn amd64() -> Platform {
    "linux/amd64".parse().unwrap()
}

/// An archive in the making: names and contents.
#[derive(Clone, Default)]
struct Files(BTreeMap<String, Vec<u8>>);

impl Files {
    /// Adds a blob; returns its descriptor.
    fn blob(&mut self, media_type: &str, bytes: &[u8]) -> Value {
        let digest = Digest::of(bytes);
        self.0.insert(format!("blobs/sha256/{}", digest.hex()), bytes.to_vec());
        json!({ "mediaType": media_type, "digest": digest.to_string(), "size": bytes.len() })
    }

    /// Adds an image; `layers` are pairs of the blob and its uncompressed bytes.
    fn image(&mut self, architecture: &str, layers: &[(Vec<u8>, Vec<u8>)]) -> Value {
        let config = config(architecture, layers.iter().map(|(_, plain)| plain.as_slice()));
        let config = self.blob(CONFIG, config.as_bytes());
        let layers: Vec<_> = layers
            .iter()
            .map(|(blob, _)| self.blob("application/vnd.oci.image.layer.v1.tar+gzip", blob))
            .collect();
        let manifest =
            json!({ "schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers });
        self.blob(MANIFEST, manifest.to_string().as_bytes())
    }

    fn index(&mut self, manifests: Vec<Value>) {
        self.0.insert("oci-layout".into(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec());
        let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": manifests });
        self.0.insert("index.json".into(), index.to_string().into_bytes());
    }

    fn tar(&self) -> Vec<u8> {
        layer(&self.0.iter().map(|(name, bytes)| Item::file(name, bytes)).collect::<Vec<_>>())
    }

    fn write(&self, dir: &Path) {
        for (name, bytes) in &self.0 {
            fs::create_dir_all(dir.join(name).parent().unwrap()).unwrap();
            fs::write(dir.join(name), bytes).unwrap();
        }
    }
}

fn config<'a>(architecture: &str, layers: impl Iterator<Item = &'a [u8]>) -> String {
    let diff_ids: Vec<_> = layers.map(|plain| Digest::of(plain).to_string()).collect();
    json!({
        "architecture": architecture, "os": "linux", "created": "2026-01-02T03:04:05Z",
        "config": { "Cmd": ["sh"], "Env": ["A=b"], "Labels": { "k": "v" } },
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
        "history": [
            { "created": "2026-01-02T03:04:05Z", "created_by": "ADD base" },
            { "created_by": "CMD sh", "empty_layer": true },
        ],
    })
    .to_string()
}

fn named(mut descriptor: Value, name: &str) -> Value {
    descriptor["annotations"] = json!({ "io.containerd.image.name": name });
    descriptor
}

fn on(mut descriptor: Value, os: &str, architecture: &str) -> Value {
    descriptor["platform"] = json!({ "os": os, "architecture": architecture });
    descriptor
}

fn plain() -> Vec<u8> {
    layer(&[Item::file("etc/hello", b"hello\n"), Item::file("etc/old", b"old")])
}

fn upper() -> Vec<u8> {
    layer(&[Item::file("etc/.wh.old", b""), Item::file("etc/new", b"new!")])
}

/// Two layers, one gzip in two members and one zstd.
fn layers() -> Vec<(Vec<u8>, Vec<u8>)> {
    let (plain, upper) = (plain(), upper());
    let (one, two) = plain.split_at(700);
    vec![([gzip(one), gzip(two)].concat(), plain.clone()), (zstd::encode_all(&upper[..], 1).unwrap(), upper)]
}

fn layout() -> Files {
    let mut files = Files::default();
    let image = files.image("amd64", &layers());
    files.index(vec![named(image, "docker.io/library/hello:1")]);
    files
}

/// `docker save` as before version 25.
fn saved() -> Files {
    let mut files = Files::default();
    let config = config("amd64", [plain(), upper()].iter().map(Vec::as_slice));
    let name = format!("{}.json", Digest::of(config.as_bytes()).hex());
    files.0.insert("aaa/layer.tar".into(), plain());
    files.0.insert("bbb/layer.tar".into(), upper());
    let item = json!([{ "Config": name, "RepoTags": ["hello:1", "hello:2"], "Layers": ["aaa/layer.tar", "bbb/layer.tar"] }]);
    files.0.insert("manifest.json".into(), item.to_string().into_bytes());
    files.0.insert(name, config.into_bytes());
    files
}

/// A store with one image in it.
pub(super) fn whole_store() -> (tempfile::TempDir, Store, Digest) {
    let (dir, store) = store();
    load(&store, &layout().tar()).unwrap();
    let id = Images::new(&store).list().unwrap()[0].id;
    (dir, store, id)
}

fn load(store: &Store, mut tar: &[u8]) -> Result<Vec<LoadedImage>> {
    Images::new(store).load(Source::Stream(&mut tar), &amd64(), &mut |_| {})
}

/// Nothing but the directories: no blob, no root, no scratch.
fn assert_empty(store: &Store) {
    for dir in ["blobs/sha256", "roots", "tmp"] {
        let left: Vec<_> = fs::read_dir(store.root().join(dir)).unwrap().collect();
        assert!(left.is_empty(), "{dir}: {left:?}");
    }
    assert!(Images::new(store).list().unwrap().is_empty());
}

fn assert_is_hello(store: &Store, id: &str) {
    let images = Images::new(store);
    let image = images.find(id).unwrap();
    assert_eq!(image.config.process.cmd, ["sh"]);
    let root = fs::read(images.root(&image).unwrap()).unwrap();
    let found = crate::erofs::reader::read(&root);
    let paths: Vec<_> = found.keys().map(String::as_str).collect();
    assert_eq!(paths, ["/", "/etc", "/etc/hello", "/etc/new"]);
    assert_eq!(found["/etc/hello"].data, b"hello\n");
}

#[test]
fn an_oci_layout_loads_as_a_tar_a_compressed_tar_and_a_directory() {
    let tar = layout().tar();
    for bytes in [tar.clone(), gzip(&tar), zstd::encode_all(&tar[..], 1).unwrap()] {
        let (_dir, store) = store();
        let loaded = load(&store, &bytes).unwrap();
        assert_eq!(loaded.len(), 1);
        assert_eq!(loaded[0].names[0].familiar(), "hello:1");
        assert_is_hello(&store, "hello:1");
    }
    let (dir, store) = store();
    let path = dir.path().join("layout");
    layout().write(&path);
    Images::new(&store).load(Source::Path(&path), &amd64(), &mut |_| {}).unwrap();
    assert_is_hello(&store, "hello:1");
}

#[test]
fn a_docker_save_tar_loads_with_all_its_tags() {
    let (_dir, store) = store();
    let loaded = load(&store, &saved().tar()).unwrap();
    assert_eq!(loaded[0].names.iter().map(Reference::familiar).collect::<Vec<_>>(), ["hello:1", "hello:2"]);
    for name in ["hello:1", "docker.io/library/hello:2", &loaded[0].id.to_string(), &loaded[0].id.hex()[..5]]
    {
        assert_is_hello(&store, name);
    }
}

#[test]
fn layers_that_docker_save_links_are_found() {
    let (_dir, store) = store();
    let files = saved();
    let mut items: Vec<_> = files
        .0
        .iter()
        .filter(|(name, _)| *name != "bbb/layer.tar")
        .map(|(name, bytes)| Item::file(name, bytes))
        .collect();
    items.push(Item::file("ccc/layer.tar", &upper()));
    items.push(Item::symlink("bbb/layer.tar", "../ccc/layer.tar"));
    load(&store, &layer(&items)).unwrap();
    assert_is_hello(&store, "hello:1");
    items.pop();
    items.push(Item::symlink("bbb/layer.tar", "layer.tar"));
    assert!(matches!(load(&store, &layer(&items)), Err(Error::Archive { .. })), "a circle of links");
}

#[test]
fn what_save_writes_loads_again_as_the_same_image() {
    let (_dir, first) = store();
    load(&first, &saved().tar()).unwrap();
    let mut tar = Vec::new();
    Images::new(&first).save(&["hello:1"], &mut tar).unwrap();
    let (_dir, second) = store();
    let loaded = load(&second, &tar).unwrap();
    assert_eq!(loaded[0].names.iter().map(Reference::familiar).collect::<Vec<_>>(), ["hello:1"]);
    assert_is_hello(&second, "hello:1");
    let (one, two) =
        (Images::new(&first).find("hello:1").unwrap(), Images::new(&second).find("hello:1").unwrap());
    assert_eq!((one.id, one.manifest), (two.id, two.manifest));
    let mut again = Vec::new();
    Images::new(&second).save(&["hello:1"], &mut again).unwrap();
    assert!(tar == again, "the bytes differ");
    // The docker half alone is enough as well.
    let mut by_id = Vec::new();
    Images::new(&first).save(&[&one.id.short()], &mut by_id).unwrap();
    let (_dir, third) = store();
    assert_eq!(load(&third, &by_id).unwrap()[0].names, []);
}

#[test]
fn an_index_gives_the_platform_and_passes_over_attestations() {
    let mut files = Files::default();
    let attestation = files.image("unknown", &[]);
    let arm = files.image("arm64", &layers()[..1]);
    let amd = files.image("amd64", &layers());
    let mut annotated = on(attestation.clone(), "linux", "amd64");
    annotated["annotations"] = json!({ "vnd.docker.reference.type": "attestation-manifest" });
    let list = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [
        on(attestation, "unknown", "unknown"), annotated, on(arm, "linux", "arm64"), on(amd, "linux", "amd64"),
    ]});
    let inner = files.blob(INDEX, list.to_string().as_bytes());
    let middle = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [inner] });
    let outer = files.blob(INDEX, middle.to_string().as_bytes());
    files.index(vec![named(outer, "hello:1")]);
    let (_dir, store) = store();
    load(&store, &files.tar()).unwrap();
    assert_is_hello(&store, "hello:1");
    assert_eq!(Images::new(&store).list().unwrap().len(), 1);

    let (_dir, store) = self::store();
    let s390x = "linux/s390x".parse().unwrap();
    let tar = files.tar();
    let error =
        Images::new(&store).load(Source::Stream(&mut tar.as_slice()), &s390x, &mut |_| {}).unwrap_err();
    let expected = "standard input has no image for linux/s390x; it has linux/arm64, linux/amd64";
    assert_eq!(error.to_string(), expected);
    assert_empty(&store);
}

#[test]
fn nested_too_deep_an_index_is_refused() {
    let mut files = Files::default();
    let mut descriptor = files.image("amd64", &layers());
    for _ in 0..12 {
        let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [descriptor] });
        descriptor = files.blob(INDEX, index.to_string().as_bytes());
    }
    files.index(vec![descriptor]);
    let (_dir, store) = store();
    assert!(matches!(load(&store, &files.tar()), Err(Error::Limit { .. })));
    assert_empty(&store);
}

#[test]
fn every_wrong_byte_is_noticed_and_leaves_nothing() {
    for name in layout().0.keys().filter(|name| name.starts_with("blobs/")) {
        let mut files = layout();
        files.0.get_mut(name).unwrap()[10] ^= 1;
        let (dir, store) = store();
        assert!(matches!(load(&store, &files.tar()), Err(Error::WrongDigest { .. })), "{name}");
        // A directory is read blob by blob.
        let path = dir.path().join("layout");
        files.write(&path);
        let error = Images::new(&store).load(Source::Path(&path), &amd64(), &mut |_| {}).unwrap_err();
        assert!(matches!(error, Error::WrongDigest { .. } | Error::WrongSize { .. }), "{name}: {error}");
        assert_empty(&store);
        let mut files = layout();
        files.0.remove(name);
        assert!(matches!(load(&store, &files.tar()), Err(Error::Missing { .. })), "{name}");
        assert_empty(&store);
    }
}

#[test]
fn a_wrong_size_and_a_wrong_diff_id_are_refused() {
    let mut files = layout();
    let index = String::from_utf8(files.0["index.json"].clone()).unwrap();
    let size =
        files.0.iter().find(|(_, bytes)| bytes.starts_with(br#"{"config":{"digest""#)).unwrap().1.len();
    files
        .0
        .insert("index.json".into(), index.replace(&format!("\"size\":{size}"), "\"size\":1").into_bytes());
    let (_dir, store) = store();
    assert!(matches!(load(&store, &files.tar()), Err(Error::WrongSize { expected: 1, .. })));

    let mut files = Files::default();
    let mut wrong = layers();
    wrong[1].1.push(0);
    let image = files.image("amd64", &wrong);
    files.index(vec![image]);
    let error = load(&store, &files.tar()).unwrap_err();
    assert!(
        matches!(error, Error::WrongDigest { .. }) && error.to_string().contains("content of layer"),
        "{error}"
    );
    assert_empty(&store);
}

#[test]
fn a_hostile_layer_or_archive_is_refused_and_leaves_nothing() {
    let (_dir, store) = store();
    let outside = layer(&[Item::file("../../escape", b"x")]);
    let mut files = Files::default();
    let image = files.image("amd64", &[(outside.clone(), outside)]);
    files.index(vec![image]);
    let error = load(&store, &files.tar()).unwrap_err();
    assert!(error.to_string().ends_with("entry \"../../escape\": the path leaves the root"), "{error}");
    for item in [Item::file("../escape", b"x"), Item::symlink("a", "../../b"), Item::device("d", true, 1, 3)]
    {
        assert!(matches!(load(&store, &layer(&[item])), Err(Error::Archive { .. })));
    }
    for (bytes, why) in [
        (&b""[..], "standard input cannot be loaded: it is empty"),
        (&layer(&[Item::file("repositories", b"{}")]), "older than 1.10"),
        (
            &layer(&[Item::file("x", b"{}")]),
            "neither index.json (an OCI layout) nor manifest.json (docker save)",
        ),
        (b"BZh91AY&SY", "cannot read standard input"),
        (&[7; 2000], "cannot read standard input"),
    ] {
        let error = load(&store, bytes).unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
    }
    let cut = &layout().tar()[..2000];
    assert!(load(&store, cut).is_err());
    assert_empty(&store);
}

#[test]
fn a_config_with_more_or_fewer_layers_is_refused() {
    let mut files = saved();
    let manifest = String::from_utf8(files.0["manifest.json"].clone()).unwrap();
    files.0.insert("manifest.json".into(), manifest.replace(",\"bbb/layer.tar\"", "").into_bytes());
    let (_dir, store) = store();
    let error = load(&store, &files.tar()).unwrap_err();
    assert!(error.to_string().contains("1 layers, and its config speaks of 2"), "{error}");
}

#[test]
fn tags_move_and_the_last_name_takes_the_image_along() {
    let (_dir, store) = store();
    let images = Images::new(&store);
    load(&store, &saved().tar()).unwrap();
    let id = images.find("hello:1").unwrap().id;
    images.tag("hello:1", &"other".parse().unwrap()).unwrap();
    assert_eq!(images.find("other").unwrap().id, id);
    let removed = |text: &str| images.remove(text, false).unwrap();
    assert_eq!(removed("hello:1"), [Removed::Untagged("hello:1".into())]);
    assert!(matches!(images.find("hello:1"), Err(Error::NoSuchImage { .. })));
    let by_id = images.remove(&id.short(), false).unwrap_err();
    assert!(by_id.to_string().contains("it has 2 names"), "{by_id}");
    removed("hello:2");
    assert_eq!(removed("other"), [Removed::Untagged("other:latest".into()), Removed::Deleted(id)]);
    assert_empty(&store);
    assert!(matches!(images.remove("other", false), Err(Error::NoSuchImage { .. })));
}

#[test]
fn by_id_with_force_an_image_goes_with_all_names() {
    let (_dir, store) = store();
    let id = load(&store, &saved().tar()).unwrap()[0].id;
    let removed = Images::new(&store).remove(&id.to_string(), true).unwrap();
    let untagged = |name: &str| Removed::Untagged(name.into());
    assert_eq!(removed, [untagged("hello:1"), untagged("hello:2"), Removed::Deleted(id)]);
    assert_empty(&store);
}

#[test]
fn an_image_with_a_container_stays() {
    let (_dir, store) = store();
    let images = Images::new(&store);
    let id = load(&store, &layout().tar()).unwrap()[0].id;
    let record = Record {
        id: "c".repeat(64),
        name: "web".into(),
        image: Some(id),
        config: "{}".into(),
        state: State::Exited,
        pid: None,
        exit_code: Some(0),
        oom: false,
        error: String::new(),
        created_ns: now_ns(),
        started_ns: None,
        finished_ns: None,
        restarts: 0,
    };
    store.containers().insert(&record).unwrap();
    let error = images.remove("hello:1", false).unwrap_err();
    assert_eq!(
        error.to_string(),
        "cannot remove image hello:1: container cccccccccccc is made from it: remove that first"
    );
    assert!(images.remove(&id.short(), true).is_err());
    assert_eq!(images.prune(true).unwrap().0, []);
    // With force the name goes, the image stays.
    assert_eq!(images.remove("hello:1", true).unwrap(), [Removed::Untagged("hello:1".into())]);
    assert_is_hello(&store, &id.short());
    store.containers().remove(&record.id).unwrap();
    let (removed, freed) = images.prune(false).unwrap();
    assert_eq!(removed, [Removed::Deleted(id)]);
    assert!(freed > 0);
    assert_empty(&store);
}

#[test]
fn images_share_blobs_and_the_last_one_takes_them() {
    let (_dir, store) = store();
    let images = Images::new(&store);
    load(&store, &layout().tar()).unwrap();
    let mut files = Files::default();
    let image = files.image("amd64", &layers()[..1]);
    files.index(vec![named(image, "base:1")]);
    load(&store, &files.tar()).unwrap();
    assert_eq!(fs::read_dir(store.root().join("blobs/sha256")).unwrap().count(), 2 + 2 + 2);
    images.remove("hello:1", false).unwrap();
    let base = images.find("base:1").unwrap();
    let mut tar = Vec::new();
    images.save(&["base:1"], &mut tar).unwrap();
    assert_eq!(images.history(&base).unwrap()[1].size, 9);
    images.remove("base:1", false).unwrap();
    assert_empty(&store);
}

#[test]
fn loading_twice_and_in_parallel_is_one_image() {
    let (_dir, store) = store();
    let root = store.root().to_path_buf();
    std::thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| load(&Store::open(&root).unwrap(), &layout().tar()).unwrap());
        }
    });
    load(&store, &saved().tar()).unwrap();
    let images = Images::new(&store).list().unwrap();
    assert_eq!(images.len(), 1, "the same config is the same image, however it is packed");
    assert_is_hello(&store, "hello:2");
}

#[test]
fn a_root_file_system_is_built_anew_where_it_is_missing() {
    let (_dir, store) = store();
    let images = Images::new(&store);
    load(&store, &layout().tar()).unwrap();
    let image = images.find("hello:1").unwrap();
    let path = images.root(&image).unwrap();
    let before = fs::read(&path).unwrap();
    fs::remove_file(&path).unwrap();
    assert!(fs::read(images.root(&image).unwrap()).unwrap() == before);
}

#[test]
fn inspect_and_history_speak_docker() {
    let (_dir, store) = store();
    let images = Images::new(&store);
    load(&store, &saved().tar()).unwrap();
    let image = images.find("hello:1").unwrap();
    let json = images.inspect(&image).unwrap();
    assert_eq!(json["Id"], image.id.to_string());
    assert_eq!(json["RepoTags"], json!(["hello:1", "hello:2"]));
    assert_eq!(json["Config"]["Cmd"], json!(["sh"]));
    assert_eq!(json["Config"]["Entrypoint"], Value::Null);
    assert_eq!((&json["Os"], &json["Architecture"]), (&json!("linux"), &json!("amd64")));
    assert_eq!(json["RootFS"]["Layers"].as_array().unwrap().len(), 2);
    assert_eq!(json["Size"], 6 + 3 + 4);
    let steps = images.history(&image).unwrap();
    let line = |step: &Step| (step.created_by.clone(), step.size);
    let lines: Vec<_> = steps.iter().map(line).collect();
    assert_eq!(lines, [(String::new(), 4), ("CMD sh".into(), 0), ("ADD base".into(), 9)]);
    assert_eq!((steps[0].id.clone(), steps[2].id.as_str()), (image.id.to_string(), "<missing>"));
}

#[test]
fn ambiguous_missing_and_malformed_names_are_told_apart() {
    let (_dir, store) = store();
    let images = Images::new(&store);
    assert!(matches!(images.find("none"), Err(Error::NoSuchImage { .. })));
    assert!(matches!(images.find("abc"), Err(Error::NoSuchImage { .. })));
    assert!(matches!(images.find("No/Such"), Err(Error::Reference { .. })));
    for start in ["ab", "ac"] {
        let id = format!("sha256:{start}{}", "0".repeat(62));
        store.db().execute("INSERT INTO images VALUES (?1, ?1, '{}', 0, 0)", [id]).unwrap();
    }
    assert!(matches!(images.find("a"), Err(Error::AmbiguousImage { count: 2, .. })));
    assert_eq!(images.find("ab").unwrap().id.short(), "ab0000000000");
    assert_eq!(images.find("sha256:ac").unwrap().id.short(), "ac0000000000");
}

#[test]
fn an_image_is_found_by_the_digest_of_its_manifest() {
    let (_dir, store) = store();
    let images = Images::new(&store);
    load(&store, &layout().tar()).unwrap();
    let image = images.find("hello:1").unwrap();
    assert_eq!(images.find(&format!("hello@{}", image.manifest)).unwrap().id, image.id);
    assert!(images.find(&format!("other@{}", image.manifest)).is_err());
    assert!(images.find(&format!("hello@{}", Digest::of(b""))).is_err());
}

/// What `engine/base/build.sh` makes, in a directory of its own.
fn guest() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("base/build.sh");
    let done =
        std::process::Command::new(script).arg(dir.path()).env_remove("SERVIN_MINIROOTFS").output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    dir
}

#[test]
fn the_base_image_is_loaded_when_it_is_first_asked_for_and_when_it_is_new() {
    let guest = guest();
    let (_dir, store) = store();
    let images = Images::new(&store);
    assert!(matches!(images.find("servin/base"), Err(Error::NoSuchImage { .. })));
    let find = |text: &str| images.find_or_base(text, Some(guest.path()), &mut |_| {});
    let without = images.find_or_base("servin/base", None, &mut |_| {});
    assert!(matches!(without, Err(Error::NoBaseImage)));
    assert!(matches!(find("other"), Err(Error::NoSuchImage { .. })));
    let image = find("servin/base").unwrap();
    assert_eq!(image.config.process.cmd, ["/bin/sh"]);
    let root = fs::read(images.root(&image).unwrap()).unwrap();
    let found = crate::erofs::reader::read(&root);
    assert!(
        String::from_utf8_lossy(&found["/etc/os-release"].data).contains("ID=servin-base\nID_LIKE=alpine\n")
    );
    assert_eq!((found["/tmp"].mode, found["/root"].mode), (0o041777, 0o040700));
    assert_eq!(found["/bin/sh"].data, b"/bin/busybox");
    assert!(root.len() < 3 << 20, "{} bytes", root.len());

    let loaded = image.loaded_ns;
    assert_eq!(find("servin/base").unwrap().loaded_ns, loaded, "it was loaded again");
    // Another version has another id, and a store that is older than the program follows it.
    let old = format!("sha256:{}", "0".repeat(64));
    let db = store.db();
    db.execute("INSERT INTO images SELECT ?1, manifest, config, size, 7 FROM images", [&old]).unwrap();
    db.execute("UPDATE tags SET image = ?1", [&old]).unwrap();
    assert_eq!(find("servin/base:latest").unwrap().id, image.id);
    assert_eq!(images.list().unwrap().len(), 1, "the old one stays without a name");
    // One that only has the name is the user's.
    load(&store, &layout().tar()).unwrap();
    images.tag("hello:1", &"servin/base".parse().unwrap()).unwrap();
    assert_eq!(find("servin/base").unwrap().id, images.find("hello:1").unwrap().id);
}

#[test]
fn the_base_image_is_the_same_whenever_it_is_built() {
    let read = |dir: tempfile::TempDir| fs::read(dir.path().join(BASE_ARCHIVE)).unwrap();
    assert!(read(guest()) == read(guest()));
}
