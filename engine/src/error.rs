//! The one error type of the crate. A variant says what was being done; the source adds the reason and is never
//! repeated in the text.

use std::io;
use std::path::{Path, PathBuf};

use crate::image::Digest;

/// What can go wrong in the engine.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file operation of the host failed.
    #[error("cannot {what} {}", path.display())]
    Io {
        /// The verb: "open", "write", ...
        what: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The reason.
        #[source]
        source: io::Error,
    },
    /// The file system that holds the data root is full, or its quota is used up.
    #[error(
        "no space left for {}: free some space on that file system, or choose another place with --data-root",
        path.display()
    )]
    DiskFull {
        /// The file that could not grow.
        path: PathBuf,
    },
    /// A port of the host cannot be published.
    #[error("cannot publish {address}/{protocol}{}", if source.kind() == io::ErrorKind::AddrInUse { ": something else has the port; choose another" } else { "" })]
    Port {
        /// Where.
        address: std::net::SocketAddr,
        /// What for.
        protocol: crate::network::Protocol,
        /// The reason.
        #[source]
        source: io::Error,
    },
    /// The container's network card.
    #[error("cannot make the container's network card")]
    Card(#[source] io::Error),
    /// There is no default place for the data root.
    #[error(
        "no place for the data root: none of SERVIN_DATA_ROOT, XDG_DATA_HOME and HOME is set; use --data-root"
    )]
    NoDataRoot,
    /// The data root belongs to another user, or is not a directory.
    #[error("{} cannot be the data root: {why}", path.display())]
    BadDataRoot {
        /// The path in question.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The data root was written by a newer version.
    #[error("the data root {} has layout {found}, and this version knows {known}: use the newer servin", path.display())]
    NewerLayout {
        /// The data root.
        path: PathBuf,
        /// The layout that was found.
        found: i64,
        /// The layout this version writes.
        known: i64,
    },
    /// The database of the store failed.
    #[error("cannot {what} in the store's database")]
    Database {
        /// The verb and object.
        what: &'static str,
        /// The reason.
        #[source]
        source: rusqlite::Error,
    },
    /// A name is already taken by another container.
    #[error(
        "the name \"{name}\" is in use by container {by}: remove or rename that one, or choose another name"
    )]
    NameTaken {
        /// The wanted name.
        name: String,
        /// Short id of its owner.
        by: String,
    },
    /// No container has this name or id.
    #[error("no such container: {name}")]
    NoSuchContainer {
        /// What was asked for.
        name: String,
    },
    /// A prefix fits several containers.
    #[error("\"{prefix}\" is the beginning of {count} container ids: give more of it")]
    AmbiguousContainer {
        /// What was asked for.
        prefix: String,
        /// How many fit.
        count: usize,
    },

    /// Neither the request nor the image says what to run.
    #[error("no command was given, and the image names none")]
    NoCommand,
    /// The container has no monitor.
    #[error("container {name} is not running")]
    NotRunning {
        /// Its name.
        name: String,
    },
    /// The container lives.
    #[error("container {name} is running: stop it first, or use --force")]
    Running {
        /// Its name.
        name: String,
    },
    /// Another command starts the container, or works with its files.
    #[error("container {id} is being started or copied from by another command: try again when that is done")]
    Busy {
        /// Its short id.
        id: String,
    },
    /// The files of a container cannot be worked with as asked.
    #[error("cannot {what}")]
    Files {
        /// What was being done.
        what: String,
        /// The reason.
        #[source]
        source: io::Error,
    },
    /// A directory or file that was to be shared cannot be.
    #[error("cannot share {} with the container: {why}", path.display())]
    Share {
        /// The host's path.
        path: PathBuf,
        /// Why not.
        why: String,
    },
    /// More shares than a machine has places for devices.
    #[error(
        "{count} directories, files and volumes are wanted in the container, and a machine takes {most}: put several into \
         one directory"
    )]
    TooManyShares {
        /// How many were asked for.
        count: usize,
        /// How many are possible.
        most: usize,
    },
    /// A volume cannot have this name.
    #[error(
        "\"{name}\" is no name of a volume: it has 2 to 128 letters, digits, _ . or -, and begins with a letter or digit"
    )]
    VolumeName {
        /// What was asked for.
        name: String,
    },
    /// No volume has this name.
    #[error("no such volume: {name} (\"servin volume ls\" lists them)")]
    NoSuchVolume {
        /// What was asked for.
        name: String,
    },
    /// A volume to be removed belongs to containers.
    #[error("volume {name} is in use by {users}: remove that first")]
    VolumeInUse {
        /// The volume.
        name: String,
        /// Containers, or a snapshot.
        users: String,
    },
    /// Something of the host is mounted in a volume that is to be removed.
    #[error("something is mounted at {}: unmount it first", path.display())]
    VolumeMounted {
        /// The mount point.
        path: PathBuf,
    },
    /// A new volume could not be given what the image has in its place.
    #[error("cannot copy what the image has there into the volume {name}")]
    FillVolume {
        /// The volume.
        name: String,
        /// The reason.
        #[source]
        source: io::Error,
    },
    /// A snapshot cannot have this name.
    #[error(
        "\"{name}\" is no name of a snapshot: it has 2 to 128 letters, digits, _ . or -, and begins with a letter or digit"
    )]
    SnapshotName {
        /// What was asked for.
        name: String,
    },
    /// Something is where a snapshot is to be.
    #[error("{} is there already: choose another name, or remove it first", path.display())]
    SnapshotExists {
        /// Where.
        path: PathBuf,
    },
    /// There is no such snapshot.
    #[error("no such snapshot: {name} (\"servin snapshot ls\" lists them)")]
    NoSuchSnapshot {
        /// What was asked for.
        name: String,
    },
    /// A snapshot cannot be removed.
    #[error("cannot remove the snapshot {name}: {by} has only what changed since; remove that first")]
    SnapshotInUse {
        /// Its name.
        name: String,
        /// What builds on it.
        by: String,
    },
    /// A snapshot cannot be restored here.
    #[error("cannot restore {name}: {why}")]
    Snapshot {
        /// Its name or directory.
        name: String,
        /// Why not.
        why: String,
    },
    /// The guest kernel or initramfs is not there or not usable.
    #[error(transparent)]
    Guest(#[from] servin_guest_kernel::Error),
    /// The virtual machine cannot be made.
    #[error("cannot make the virtual machine")]
    Machine(#[from] servin_vmm::Error),
    /// The root file system's disk cannot be opened.
    #[error("cannot attach the root file system")]
    Disk(#[source] servin_devices::virtio::blk::OpenError),
    /// The connection to the guest cannot be made.
    #[error("cannot make the connection to the guest")]
    Vsock(#[source] io::Error),
    /// The monitor could not be forked.
    #[error("cannot start the monitor process")]
    Fork(#[source] io::Error),

    /// A reference does not follow the grammar.
    #[error("invalid image reference \"{text}\": {why}")]
    Reference {
        /// What was given.
        text: String,
        /// Which rule is broken.
        why: &'static str,
    },
    /// A digest is malformed or of another algorithm than SHA-256.
    #[error("invalid digest \"{text}\": {why}")]
    Digest {
        /// What was given.
        text: String,
        /// Which rule is broken.
        why: &'static str,
    },
    /// A platform is not of the form os/architecture.
    #[error("invalid platform \"{text}\": it looks like linux/amd64 or linux/arm64/v8")]
    Platform {
        /// What was given.
        text: String,
    },
    /// No image has this name or id.
    #[error(
        "no such image: {reference}: get it with \"servin pull\", or load it with \"servin load -i FILE\""
    )]
    NoSuchImage {
        /// What was asked for.
        reference: String,
    },
    /// The image that comes with the program is nowhere.
    #[error(
        "the image servin/base is not in the store, and no guest directory has its base.tar: build it with \"make guest\""
    )]
    NoBaseImage,
    /// A prefix fits several images.
    #[error("\"{prefix}\" is the beginning of {count} image ids: give more of it")]
    AmbiguousImage {
        /// What was asked for.
        prefix: String,
        /// How many fit.
        count: usize,
    },
    /// An image cannot be removed.
    #[error("cannot remove image {image}: {why}")]
    ImageInUse {
        /// Reference or short id.
        image: String,
        /// Who uses it.
        why: String,
    },
    /// The bytes are not the promised ones.
    #[error("{what} is corrupt: expected {expected}, its bytes have {found}")]
    WrongDigest {
        /// Which object.
        what: String,
        /// The promise.
        expected: Digest,
        /// What the bytes hash to.
        found: Digest,
    },
    /// The number of bytes is not the promised one.
    #[error("{what} is corrupt: expected {expected} bytes, found {found}")]
    WrongSize {
        /// Which object.
        what: String,
        /// The promise in bytes.
        expected: u64,
        /// The length in bytes.
        found: u64,
    },
    /// An image refers to an object that is not there.
    #[error("{what} is missing from {place}")]
    Missing {
        /// Which object.
        what: String,
        /// The archive or layout.
        place: String,
    },
    /// An archive is neither a `docker save` tar nor an OCI layout, or is damaged.
    #[error("{place} cannot be loaded: {why}")]
    Archive {
        /// The archive or layout.
        place: String,
        /// What is wrong.
        why: String,
    },
    /// A JSON object is malformed.
    #[error("{what} is not valid JSON of its kind")]
    Json {
        /// Which object.
        what: String,
        /// The reason.
        #[source]
        source: serde_json::Error,
    },
    /// Something that specifications allow and this version does not do.
    #[error("{what} is not supported")]
    Unsupported {
        /// Which thing.
        what: String,
    },
    /// A limit against hostile input was met.
    #[error("{what} exceeds the limit of {limit}")]
    Limit {
        /// What is too big, with what it was.
        what: String,
        /// The limit with its unit.
        limit: String,
    },
    /// No manifest of an index fits the platform.
    #[error("{place} has no image for {wanted}; it has {present}")]
    NoPlatform {
        /// The index.
        place: String,
        /// os/architecture.
        wanted: String,
        /// What is there.
        present: String,
    },
    /// A registry, or what we know about it, does not do.
    #[error(transparent)]
    Registry(#[from] crate::registry::Error),
    /// Something is wrong with a network that containers share.
    #[error(transparent)]
    Network(#[from] crate::network::NetworkError),
    /// A layer's compressed stream or tar is damaged.
    #[error("layer {layer} cannot be read")]
    Layer {
        /// Its digest.
        layer: Digest,
        /// The reason.
        #[source]
        source: io::Error,
    },
    /// An entry of a layer cannot be part of a root file system.
    #[error("layer {layer}, entry \"{entry}\": {why}")]
    Entry {
        /// The layer's digest.
        layer: Digest,
        /// The path as written in the tar (lossy).
        entry: String,
        /// What is wrong.
        why: String,
    },
}

/// The crate's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// Wraps a host file error; a full disk and a used-up quota become [`Error::DiskFull`].
    pub fn io(what: &'static str, path: impl AsRef<Path>, source: io::Error) -> Self {
        let path = path.as_ref().to_path_buf();
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Error::DiskFull { path },
            _ => Error::Io { what, path, source },
        }
    }

    /// Wraps a database error; a full disk becomes [`Error::DiskFull`].
    pub fn database(what: &'static str, source: rusqlite::Error) -> Self {
        // Growing the index of the write-ahead log fails with a code of its own.
        const SHMSIZE: i32 = rusqlite::ffi::SQLITE_IOERR_SHMSIZE;
        match source.sqlite_error().map(|error| (error.code, error.extended_code)) {
            Some((rusqlite::ErrorCode::DiskFull, _) | (_, SHMSIZE)) => {
                Error::DiskFull { path: PathBuf::from("the store's database") }
            }
            _ => Error::Database { what, source },
        }
    }
}

/// What failed and why, in one line: the error and its sources.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(reason) = source {
        text.push_str(": ");
        text.push_str(&reason.to_string());
        source = reason.source();
    }
    text.replace('\n', " ")
}
