CREATE TABLE networks (
    name        TEXT PRIMARY KEY,
    id          TEXT NOT NULL UNIQUE,           -- 64 hexadecimal digits
    subnet      TEXT NOT NULL,                  -- 10.89.0.0/24
    gateway     TEXT NOT NULL,                  -- 10.89.0.1
    internal    INTEGER NOT NULL,               -- nothing but its members is reached from it
    labels      TEXT NOT NULL,                  -- JSON object
    created_ns  INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- Who is on a network, and at which addresses, which no two of its members share. Goes with the container's row; a network
-- that has members cannot be removed.
CREATE TABLE container_networks (
    container   TEXT NOT NULL REFERENCES containers(id) ON DELETE CASCADE,
    network     TEXT NOT NULL REFERENCES networks(name),
    address     INTEGER NOT NULL,               -- IPv4, as a number
    mac         BLOB NOT NULL,                  -- 6 bytes
    aliases     TEXT NOT NULL,                  -- JSON list of further names
    PRIMARY KEY (container, network),
    UNIQUE (network, address),
    UNIQUE (network, mac)
) STRICT, WITHOUT ROWID;
