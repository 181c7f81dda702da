-- The log and what is kept beside it. Times are milliseconds since the Unix epoch; JSON is kept as the text it came as.

-- One row per channel that ever had an event. `top` is the highest offset, written in the transaction of the rows it counts.
CREATE TABLE channels (
    id    INTEGER PRIMARY KEY,
    name  TEXT    NOT NULL UNIQUE,
    epoch INTEGER NOT NULL,
    top   INTEGER NOT NULL
) STRICT;

-- Ids grow with time and are never used twice, so they serve as the order over all channels and as cursors.
CREATE TABLE events (
    id       INTEGER PRIMARY KEY AUTOINCREMENT,
    channel  INTEGER NOT NULL,
    "offset" INTEGER NOT NULL,
    epoch    INTEGER NOT NULL,
    uuid     BLOB    NOT NULL,
    type     TEXT    NOT NULL,
    data     TEXT    NOT NULL,
    time_ms  INTEGER NOT NULL,
    source   TEXT    NOT NULL,
    client   TEXT,
    user     TEXT,
    session  TEXT,
    metadata TEXT
) STRICT;
CREATE UNIQUE INDEX events_by_channel ON events (channel, "offset");
CREATE INDEX events_by_type ON events (type);

-- One row per connection, written when it opens and again when it ends. `client` is unique among those that are open.
CREATE TABLE connections (
    id           INTEGER PRIMARY KEY AUTOINCREMENT,
    client       TEXT    NOT NULL,
    protocol     TEXT    NOT NULL,
    user         TEXT,
    session      TEXT,
    address      TEXT    NOT NULL,
    opened_ms    INTEGER NOT NULL,
    closed_ms    INTEGER,
    code         INTEGER,
    reason       TEXT,
    messages_in  INTEGER NOT NULL DEFAULT 0,
    messages_out INTEGER NOT NULL DEFAULT 0,
    bytes_in     INTEGER NOT NULL DEFAULT 0,
    bytes_out    INTEGER NOT NULL DEFAULT 0,
    dropped      INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE INDEX connections_by_client ON connections (client);
CREATE INDEX connections_open ON connections (id) WHERE closed_ms IS NULL;

-- Totals that go on over restarts.
CREATE TABLE counters (
    name  TEXT    NOT NULL PRIMARY KEY,
    value INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- `clean`: 1 between an orderly stop and the next start.
CREATE TABLE meta (
    key   TEXT NOT NULL PRIMARY KEY,
    value TEXT NOT NULL
) STRICT, WITHOUT ROWID;
