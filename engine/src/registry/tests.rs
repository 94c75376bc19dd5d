//! Pulls and pushes of whole images, against a registry with faults.

use std::path::Path;
use std::sync::{Mutex, mpsc};
use std::time::Duration;

use serde_json::{Value, json};

use super::testing::{Fake, Fault, Guard, OCI_INDEX, client, patience};
use super::{Account, Accounts, Cancel, Client, Settings};
use crate::image::{BlobState, Digest, Images, Platform, PullStep, Pulled, Reference};
use crate::store::Store;
use crate::testing::{Item, gzip, layer};
use crate::{Error, Result};

const BASIC: Guard = Guard::Basic("Basic dXNlcjpzM2NyZXQ=");

/// A store, and files of accounts beside it.
struct Place {
    dir: tempfile::TempDir,
    store: Store,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("data")).unwrap();
        Place { dir, store }
    }

    fn client(&self) -> Client {
        client(self.dir.path(), Settings::default())
    }

    fn pull(&self, name: &str) -> Result<Pulled> {
        self.pull_with(&self.client(), name, &|_| {})
    }

    fn pull_with(
        &self,
        client: &Client,
        name: &str,
        watch: &(dyn Fn(PullStep<'_>) + Sync),
    ) -> Result<Pulled> {
        let platform = "linux/amd64".parse::<Platform>().unwrap();
        Images::new(&self.store).pull(&name.parse()?, &platform, client, &Cancel::default(), watch)
    }

    /// What the store holds, but for locks.
    fn files(&self) -> Vec<String> {
        let mut found = Vec::new();
        for part in ["blobs/sha256", "roots", "partial", "tmp"] {
            let Ok(entries) = std::fs::read_dir(self.store.root().join(part)) else { continue };
            let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
            found.extend(names.filter(|name| !name.ends_with(".image")).map(|name| format!("{part}/{name}")));
        }
        found
    }

    fn login(&self, host: &str) {
        let account = Account::Password { user: "user".into(), password: "s3cret".into() };
        Accounts::in_files(&self.dir.path().join("auth.json"), None).keep(host, &account).unwrap();
    }
}

/// Bytes that do not compress.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..len).map(|_| next()).collect()
}

fn tar(name: &str, seed: u64) -> Vec<u8> {
    layer(&[Item::file(name, &noise(seed, 300_000))])
}

/// A gzip, a zstd and a plain layer, each with its tar.
fn layers() -> Vec<(Vec<u8>, Vec<u8>)> {
    let (a, b, c) = (tar("a", 1), tar("b", 2), tar("c", 3));
    vec![(gzip(&a), a), (zstd::encode_all(b.as_slice(), 1).unwrap(), b), (c.clone(), c)]
}

fn digest_of(layer: &(Vec<u8>, Vec<u8>)) -> String {
    Digest::of(&layer.0).to_string()
}

#[test]
fn an_image_is_pulled_and_nothing_of_it_a_second_time() {
    let (fake, place, layers) = (Fake::open(), Place::new(), layers());
    let manifest = fake.image("lib/x", "v1", "amd64", &layers);
    let name = format!("{}/lib/x:v1", fake.host);
    let pulled = place.pull(&name).unwrap();
    assert!(pulled.is_new);
    assert_eq!(pulled.digest.to_string(), manifest["digest"].as_str().unwrap());
    let images = Images::new(&place.store);
    let image = images.find(&name).unwrap();
    assert_eq!((image.id, image.size), (pulled.id, 900_000));
    assert!(images.root(&image).unwrap().exists());
    let inspected = images.inspect(&image).unwrap();
    assert_eq!(inspected["RepoDigests"][0], format!("{}/lib/x@{}", fake.host, pulled.digest));
    assert_eq!(images.find(&format!("{}/lib/x@{}", fake.host, pulled.digest)).unwrap().id, image.id);
    assert_eq!(
        place.files().iter().filter(|file| file.starts_with("partial") || file.starts_with("tmp")).count(),
        0
    );
    let before = fake.count("GET", "/blobs/");
    assert_eq!(before, 4);
    let again = place.pull(&name).unwrap();
    assert_eq!((again.is_new, again.id), (false, image.id));
    assert_eq!(fake.count("GET", "/blobs/"), before);
}

#[test]
fn layers_that_another_image_has_are_not_fetched() {
    let (fake, place, layers) = (Fake::open(), Place::new(), layers());
    fake.image("x", "1", "amd64", &layers[..2]);
    fake.image("y", "1", "amd64", &layers);
    place.pull(&format!("{}/x:1", fake.host)).unwrap();
    place.pull(&format!("{}/y:1", fake.host)).unwrap();
    for layer in &layers {
        assert_eq!(fake.count("GET", &digest_of(layer)), 1);
    }
}

#[test]
fn what_may_go_over_is_tried_again_and_cut_blobs_are_resumed() {
    for (faults, ranges) in [
        (vec![Fault::Asks(0)], vec![]),
        (vec![Fault::Status(503), Fault::Status(500), Fault::Status(429)], vec![]),
        (vec![Fault::Reset, Fault::Reset], vec![]),
        (vec![Fault::Cut(1000), Fault::Cut(1000)], vec!["bytes=1000-", "bytes=2000-"]),
        (vec![Fault::Cut(1000), Fault::NoRange], vec!["bytes=1000-"]),
        (vec![Fault::Cut(0), Fault::Cut(300)], vec!["bytes=300-"]),
        // Each attempt brings enough to be counted as progress: more of them than the patience has.
        (
            vec![Fault::Cut(70_000); 4],
            vec!["bytes=70000-", "bytes=140000-", "bytes=210000-", "bytes=280000-"],
        ),
    ] {
        let (fake, place, layers) = (Fake::open(), Place::new(), layers());
        fake.image("x", "1", "amd64", &layers);
        let digest = digest_of(&layers[0]);
        for fault in &faults {
            fake.fault(&digest, 1, fault.clone());
        }
        place.pull(&format!("{}/x:1", fake.host)).unwrap_or_else(|error| panic!("{faults:?}: {error}"));
        let failed = faults.iter().filter(|fault| **fault != Fault::NoRange).count();
        assert_eq!(fake.count("GET", &digest), failed + 1, "{faults:?}");
        let log = fake.content().log.clone();
        let asked: Vec<_> = log
            .iter()
            .filter(|line| line.contains(&digest))
            .filter_map(|line| line.split(' ').find(|word| word.starts_with("bytes=")))
            .collect();
        assert_eq!(asked, ranges, "{faults:?}");
    }
}

#[test]
fn a_silent_registry_is_left_and_asked_again() {
    let (fake, place, layers) = (Fake::open(), Place::new(), layers());
    fake.image("x", "1", "amd64", &layers);
    fake.fault(&digest_of(&layers[1]), 1, Fault::Stall(5000));
    let patience = super::Patience { silence: Duration::from_millis(300), ..patience() };
    let accounts = Accounts::in_files(&place.dir.path().join("auth.json"), None);
    let client = Client::new(Settings::default(), accounts, patience);
    let why = Mutex::new(Vec::new());
    place
        .pull_with(&client, &format!("{}/x:1", fake.host), &|step| {
            if let PullStep::Blob { state: BlobState::Again(text), .. } = step {
                why.lock().unwrap().push(text.to_owned());
            }
        })
        .unwrap();
    assert!(why.into_inner().unwrap().iter().any(|why| why.contains("cut after 5000")));
}

#[test]
fn a_registry_that_stays_broken_is_given_up_and_the_next_pull_goes_on() {
    let (fake, place, layers) = (Fake::open(), Place::new(), layers());
    fake.image("x", "1", "amd64", &layers[..1]);
    let digest = digest_of(&layers[0]);
    fake.fault(&digest, 1, Fault::Cut(100_000));
    fake.fault(&digest, 3, Fault::Status(503));
    let name = format!("{}/x:1", fake.host);
    let error = crate::chain(&place.pull(&name).unwrap_err());
    assert!(error.contains("given up after 4 attempts") && error.contains("503"), "{error}");
    assert!(matches!(Images::new(&place.store).find(&name), Err(Error::NoSuchImage { .. })));
    fake.content().log.clear();
    place.pull(&name).unwrap();
    assert_eq!(fake.count("GET", "bytes=100000-"), 1, "{:?}", fake.content().log);
    assert_eq!(fake.count("GET", &digest), 1);
}

#[test]
fn what_is_not_what_was_promised_is_refused_and_leaves_nothing() {
    for fault in [Fault::Flip, Fault::Short] {
        let (fake, place, layers) = (Fake::open(), Place::new(), layers());
        fake.image("x", "1", "amd64", &layers[..1]);
        fake.fault(&digest_of(&layers[0]), 9, fault.clone());
        let error = place.pull(&format!("{}/x:1", fake.host)).unwrap_err();
        assert!(
            matches!(
                (&fault, &error),
                (Fault::Flip, Error::WrongDigest { .. }) | (_, Error::WrongSize { .. })
            ),
            "{fault:?}: {error}"
        );
        // The config is whole, and the next pull may have it.
        let left = place.files();
        assert!(left.iter().all(|file| file.starts_with("partial/")) && left.len() == 1, "{left:?}");
        assert!(!left[0].contains(&Digest::of(&layers[0].0).hex()));
    }
}

#[test]
fn a_wrong_diff_id_or_size_is_refused() {
    let (fake, place, layers) = (Fake::open(), Place::new(), layers());
    let lie = [Digest::of(b"something else").to_string()];
    fake.image_of("x", "1", "amd64", &layers[..1], &lie);
    let error = place.pull(&format!("{}/x:1", fake.host)).unwrap_err();
    assert!(matches!(error, Error::WrongDigest { .. }), "{error}");
    // A descriptor that says a byte more than there is.
    fake.image("y", "1", "amd64", &layers[..1]);
    let bytes = {
        let content = fake.content();
        let config = content.blobs.iter().find(|(_, bytes)| {
            bytes.starts_with(b"{") && !bytes.windows(64).any(|part| part == &lie[0].as_bytes()[7..])
        });
        config.unwrap().1.clone()
    };
    let manifest = json!({
        "schemaVersion": 2, "mediaType": super::testing::OCI_MANIFEST,
        "config": { "mediaType": "application/vnd.oci.image.config.v1+json", "digest": Digest::of(&bytes).to_string(), "size": bytes.len() },
        "layers": [{ "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": digest_of(&layers[0]), "size": layers[0].0.len() + 1 }],
    });
    fake.manifest("y", "2", super::testing::OCI_MANIFEST, &manifest);
    let error = place.pull(&format!("{}/y:2", fake.host)).unwrap_err();
    assert!(matches!(error, Error::WrongSize { .. }), "{error}");
    assert!(
        place.store.db().query_row("SELECT count(*) FROM images", (), |row| row.get::<_, i64>(0)).unwrap()
            == 0
    );
}

#[test]
fn the_manifest_that_fits_is_found_in_nested_indexes_behind_an_attestation() {
    let (fake, place, layers) = (Fake::open(), Place::new(), layers());
    let with = |mut descriptor: Value, os: &str, cpu: &str| {
        descriptor["platform"] = json!({ "os": os, "architecture": cpu });
        descriptor
    };
    let attestation =
        with(fake.manifest("x", "att", super::testing::OCI_MANIFEST, &json!({})), "unknown", "unknown");
    let arm = with(fake.image("x", "arm", "arm64", &layers[..1]), "linux", "arm64");
    let amd = with(fake.image("x", "amd", "amd64", &layers[1..2]), "linux", "amd64");
    let index =
        |manifests: &[&Value]| json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests });
    let inner = fake.manifest("x", "inner", OCI_INDEX, &index(&[&attestation, &arm, &amd]));
    let outer = fake.manifest("x", "1", OCI_INDEX, &index(&[&inner]));
    fake.manifest("x", "2", OCI_INDEX, &index(&[&attestation, &arm]));
    let pulled = place.pull(&format!("{}/x:1", fake.host)).unwrap();
    assert_eq!(pulled.digest.to_string(), outer["digest"].as_str().unwrap());
    assert_eq!(fake.count("GET", &digest_of(&layers[0])), 0, "a layer of another platform was fetched");
    let error = place.pull(&format!("{}/x:2", fake.host)).unwrap_err().to_string();
    assert!(
        error.contains("no image for linux/amd64")
            && error.contains("linux/arm64")
            && !error.contains("unknown"),
        "{error}"
    );
    let error = place.pull(&format!("{}/x:arm", fake.host)).unwrap_err();
    assert!(matches!(error, Error::NoPlatform { .. }), "{error}");
    assert_eq!(fake.count("GET", &digest_of(&layers[0])), 0);
    // Whoever names one manifest means it.
    place.pull(&format!("{}/x@{}", fake.host, arm["digest"].as_str().unwrap())).unwrap();
}

#[test]
fn tokens_that_end_are_renewed_and_none_goes_to_another_host() {
    let blobs = Fake::start(Guard::Open, None, true, false);
    let elsewhere = format!("http://{}", blobs.host);
    let fake = Fake::start(Guard::Tokens("Basic -"), Some(elsewhere), false, false);
    let (place, layers) = (Place::new(), layers());
    fake.image("x", "1", "amd64", &layers);
    blobs.content().blobs = fake.content().blobs.clone();
    fake.fault(&digest_of(&layers[0]), 1, Fault::Expire);
    place.pull(&format!("{}/x:1", fake.host)).unwrap();
    assert!(
        fake.count("GET", "/token?service=test&scope=repository:x:pull") >= 2,
        "{:?}",
        fake.content().log
    );
    assert!(blobs.content().log.iter().all(|line| line.ends_with(" -")), "{:?}", blobs.content().log);
    assert_eq!(blobs.count("GET", "/blobs/"), 4);
}

#[test]
fn an_account_is_sent_to_its_registry_alone_and_a_wrong_one_is_told() {
    let (fake, place, layers) = (Fake::guarded(BASIC), Place::new(), layers());
    fake.image("x", "1", "amd64", &layers[..1]);
    let name = format!("{}/x:1", fake.host);
    let error = place.pull(&name).unwrap_err().to_string();
    assert!(error.contains(&format!("servin login {}", fake.host)), "{error}");
    place.login(&fake.host);
    place.pull(&name).unwrap();
    let wrong = Account::Password { user: "user".into(), password: "wrong".into() };
    let error = place.client().verify(&fake.host, &wrong).unwrap_err().to_string();
    assert!(error.contains("denied"), "{error}");
    let right = Account::Password { user: "user".into(), password: "s3cret".into() };
    place.client().verify(&fake.host, &right).unwrap();
    let tokens = Fake::guarded(Guard::Tokens("Basic dXNlcjpzM2NyZXQ="));
    place.client().verify(&tokens.host, &right).unwrap();
    let error = place.client().verify(&tokens.host, &wrong).unwrap_err().to_string();
    assert!(error.contains("incorrect username or password"), "{error}");
}

#[test]
fn what_was_pulled_is_pushed_byte_for_byte_and_known_blobs_are_not_sent() {
    let (from, to, place, layers) =
        (Fake::open(), Fake::guarded(Guard::Tokens("Basic dXNlcjpzM2NyZXQ=")), Place::new(), layers());
    from.image("x", "1", "amd64", &layers);
    let pulled = place.pull(&format!("{}/x:1", from.host)).unwrap();
    let images = Images::new(&place.store);
    let push = |name: &str| {
        let name: Reference = name.parse().unwrap();
        images.tag(&pulled.id.to_string(), &name).unwrap();
        images.push(&name, &place.client(), &Cancel::default(), &|_| {})
    };
    let name = format!("{}/mine:2", to.host);
    let error = push(&name).unwrap_err().to_string();
    assert!(error.contains("denied") && error.contains("login"), "{error}");
    place.login(&to.host);
    to.blob(&layers[1].0);
    assert_eq!(push(&name).unwrap().digest, pulled.digest);
    assert_eq!(to.count("PUT", "/blobs/"), 3, "one of four blobs was there");
    assert_eq!(to.content().blobs, from.content().blobs);
    // Another repository of the same registry: the blobs are taken from the first.
    let before = to.content().blobs.clone();
    to.content().blobs.clear();
    push(&format!("{}/other:2", to.host)).unwrap();
    assert_eq!(to.count("POST", "from=mine"), 4);
    assert!(
        to.count("GET", "scope=repository:other:pull,push&scope=repository:mine:pull") > 0,
        "{:?}",
        to.content().log
    );
    to.content().blobs = before;
    let other = Place::new();
    other.login(&to.host);
    assert_eq!(other.pull(&name).unwrap().id, pulled.id);
}

#[test]
fn an_upload_that_breaks_is_begun_anew() {
    let (from, to, place, layers) = (Fake::open(), Fake::open(), Place::new(), layers());
    from.image("x", "1", "amd64", &layers);
    let pulled = place.pull(&format!("{}/x:1", from.host)).unwrap();
    let name: Reference = format!("{}/y:1", to.host).parse().unwrap();
    let images = Images::new(&place.store);
    images.tag(&pulled.id.to_string(), &name).unwrap();
    to.fault("/blobs/uploads/session", 1, Fault::Reset);
    to.fault("/blobs/uploads/session", 1, Fault::Status(503));
    to.fault("/manifests/", 1, Fault::Asks(0));
    images.push(&name, &place.client(), &Cancel::default(), &|_| {}).unwrap();
    assert_eq!(to.content().blobs, from.content().blobs);
}

#[test]
fn a_certificate_is_trusted_by_its_own_authority_alone() {
    let (fake, place, layers) = (Fake::over_tls(), Place::new(), layers());
    fake.image("x", "1", "amd64", &layers);
    let name = format!("{}/x:1", fake.host);
    let error = place.pull(&name).unwrap_err();
    assert!(matches!(&error, Error::Registry(super::Error::Certificate { .. })), "{error}");
    assert_eq!(fake.count("", "/v2/"), 0, "something was sent over HTTP");
    let certificates = place.dir.path().join("certs");
    std::fs::create_dir_all(certificates.join(&fake.host)).unwrap();
    std::fs::write(certificates.join(&fake.host).join("ca.crt"), include_bytes!("testing/ca.crt")).unwrap();
    let mut settings = Settings::default();
    settings.add_certificates(&certificates);
    let client = client(place.dir.path(), settings);
    place.pull_with(&client, &name, &|_| {}).unwrap();
    // Or nobody asks.
    let settings =
        Settings::parse(format!(r#"{{"insecure-registries": ["{}"]}}"#, fake.host).as_bytes()).unwrap();
    let client = super::testing::client(place.dir.path(), settings);
    Place::new().pull_with(&client, &name, &|_| {}).unwrap();
}

#[test]
fn mirrors_come_first_and_the_registry_itself_last() {
    let (broken, mirror, fake, place, layers) =
        (Fake::open(), Fake::open(), Fake::open(), Place::new(), layers());
    fake.image("x", "1", "amd64", &layers);
    mirror.image("x", "1", "amd64", &layers);
    mirror.fault(&digest_of(&layers[2]), 99, Fault::Status(404));
    let json = json!({ "mirrors": { fake.host.clone(): [format!("http://{}", broken.host), format!("http://{}/", mirror.host)] } });
    let client = client(place.dir.path(), Settings::parse(json.to_string().as_bytes()).unwrap());
    place.pull_with(&client, &format!("{}/x:1", fake.host), &|_| {}).unwrap();
    assert_eq!((broken.count("GET", "/manifests/1"), fake.count("GET", "/manifests/")), (1, 0));
    assert_eq!((mirror.count("GET", "/blobs/"), fake.count("GET", "/blobs/")), (4, 1));
    assert!(Images::new(&place.store).find(&format!("{}/x:1", fake.host)).is_ok());
}

/// Pulls in a thread with a store of its own; `waits` is told when it waits for somebody.
fn pull_apart(root: &Path, dir: &Path, name: &str, waits: &Mutex<mpsc::Sender<()>>) -> Result<Pulled> {
    let store = Store::open(root)?;
    let client = client(dir, Settings::default());
    let platform = "linux/amd64".parse::<Platform>()?;
    Images::new(&store).pull(&name.parse()?, &platform, &client, &Cancel::default(), &|step| {
        if matches!(step, PullStep::Waiting | PullStep::Blob { state: BlobState::Waiting, .. }) {
            waits.lock().unwrap().send(()).unwrap();
        }
    })
}

#[test]
fn two_pulls_at_once_share_the_image_or_the_layer() {
    // The same image, and two images with a layer in common.
    for other in ["x", "y"] {
        let (fake, place, layers) = (Fake::open(), Place::new(), layers());
        fake.image("x", "1", "amd64", &layers[..1]);
        fake.image("y", "1", "amd64", &layers[..2]);
        let digest = digest_of(&layers[0]);
        fake.fault(&digest, 1, Fault::Held);
        let (told, waits) = mpsc::channel();
        let told = Mutex::new(told);
        let (root, dir) = (place.store.root().to_path_buf(), place.dir.path());
        std::thread::scope(|scope| {
            let pull = |repository: &str| {
                let name = format!("{}/{repository}:1", fake.host);
                let (root, told) = (&root, &told);
                scope.spawn(move || pull_apart(root, dir, &name, told))
            };
            let both = [pull("x"), pull(other)];
            waits.recv_timeout(Duration::from_secs(60)).expect("one of them waits");
            fake.release();
            for one in both {
                one.join().unwrap().unwrap();
            }
        });
        assert_eq!(fake.count("GET", &digest), 1, "{other}");
        assert!(place.files().iter().all(|file| !file.starts_with("partial")), "{:?}", place.files());
    }
}
