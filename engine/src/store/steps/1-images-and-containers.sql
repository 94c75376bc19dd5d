CREATE TABLE images (
    id          TEXT PRIMARY KEY,               -- digest of the config
    manifest    TEXT NOT NULL,                  -- digest of the manifest
    config      TEXT NOT NULL,                  -- the config itself: the path of `run` opens no file for it
    size        INTEGER NOT NULL,               -- bytes of the uncompressed layers
    loaded_ns   INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE tags (
    name        TEXT PRIMARY KEY,               -- docker.io/library/busybox:latest
    image       TEXT NOT NULL REFERENCES images(id) ON DELETE CASCADE,
    tagged_ns   INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX tags_by_image ON tags(image);

CREATE TABLE repo_digests (
    name        TEXT NOT NULL,                  -- docker.io/library/busybox
    digest      TEXT NOT NULL,                  -- of the manifest or index it was pulled by
    image       TEXT NOT NULL REFERENCES images(id) ON DELETE CASCADE,
    PRIMARY KEY (name, digest)
) STRICT, WITHOUT ROWID;
CREATE INDEX repo_digests_by_image ON repo_digests(image);

CREATE TABLE blobs (
    digest      TEXT PRIMARY KEY,
    size        INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- A blob's reference count is the number of its rows here, so the two cannot disagree.
CREATE TABLE image_blobs (
    image       TEXT NOT NULL REFERENCES images(id) ON DELETE CASCADE,
    position    INTEGER NOT NULL,               -- 0 manifest, 1 config, 2.. layers from the lowest
    blob        TEXT NOT NULL REFERENCES blobs(digest),
    unpacked    INTEGER NOT NULL,               -- bytes of the files of a layer
    PRIMARY KEY (image, position)
) STRICT, WITHOUT ROWID;
CREATE INDEX image_blobs_by_blob ON image_blobs(blob);

CREATE TABLE containers (
    id          TEXT PRIMARY KEY,               -- 64 hexadecimal digits
    name        TEXT NOT NULL UNIQUE,
    image       TEXT REFERENCES images(id),     -- NULL for --rootfs; refuses the removal of its image
    config      TEXT NOT NULL,                  -- JSON, owned by crate::container
    state       TEXT NOT NULL CHECK (state IN ('created', 'running', 'paused', 'exited', 'removing')),
    pid         INTEGER,                        -- of the monitor, while there is one
    exit_code   INTEGER,
    oom         INTEGER NOT NULL DEFAULT 0,
    error       TEXT NOT NULL DEFAULT '',
    created_ns  INTEGER NOT NULL,
    started_ns  INTEGER,
    finished_ns INTEGER
) STRICT, WITHOUT ROWID;
CREATE INDEX containers_by_image ON containers(image);
