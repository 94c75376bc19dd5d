CREATE TABLE volumes (
    name        TEXT PRIMARY KEY,
    anonymous   INTEGER NOT NULL,               -- made for one container, and removed with it when that is asked for
    labels      TEXT NOT NULL,                  -- JSON object
    created_ns  INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- Who uses a volume, and where: a volume in use cannot be removed. Goes with the container's row.
CREATE TABLE container_volumes (
    container   TEXT NOT NULL REFERENCES containers(id) ON DELETE CASCADE,
    target      BLOB NOT NULL,                  -- path in the container
    volume      TEXT NOT NULL REFERENCES volumes(name),
    read_only   INTEGER NOT NULL,
    PRIMARY KEY (container, target)
) STRICT, WITHOUT ROWID;
CREATE INDEX container_volumes_by_volume ON container_volumes(volume);
