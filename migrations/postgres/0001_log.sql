-- The log and what is kept beside it. Times are milliseconds since the Unix epoch; JSON is kept as the text it came as.

-- One row per channel that ever had an event. `top`: the highest offset, written in the transaction of the rows it counts.
-- `first`: the oldest offset that is still there; top + 1 where nothing is. `early`: what is delivered may not be committed, so
-- an unclean stop costs the epoch. `gone`: the id of the newest event that retention took.
CREATE TABLE channels (
    id    BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name  TEXT    COLLATE "C" NOT NULL UNIQUE,
    epoch BIGINT  NOT NULL,
    top   BIGINT  NOT NULL,
    first BIGINT  NOT NULL DEFAULT 1,
    early BIGINT  NOT NULL DEFAULT 0,
    gone  BIGINT  NOT NULL DEFAULT 0
);

-- Ids are given by the server. They grow with time and are never used twice, so they serve as the order over all channels.
CREATE TABLE events (
    id       BIGINT PRIMARY KEY,
    channel  BIGINT NOT NULL,
    "offset" BIGINT NOT NULL,
    epoch    BIGINT NOT NULL,
    uuid     BYTEA  NOT NULL,
    type     TEXT   NOT NULL,
    data     TEXT   NOT NULL,
    time_ms  BIGINT NOT NULL,
    source   TEXT   NOT NULL,
    client   TEXT,
    "user"   TEXT,
    session  TEXT,
    metadata TEXT
);
CREATE UNIQUE INDEX events_by_channel ON events (channel, "offset");
CREATE INDEX events_by_type ON events (type, id);
CREATE INDEX events_by_time ON events (time_ms);
CREATE INDEX events_by_source ON events (source, id);
CREATE INDEX events_by_user ON events ("user", id) WHERE "user" IS NOT NULL;
CREATE INDEX events_by_session ON events (session, id) WHERE session IS NOT NULL;

-- One row per connection, written when it opens and again when it ends. `client` is unique among those that are open.
-- `seen_ms`: when something last came from it.
CREATE TABLE connections (
    id           BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    client       TEXT   NOT NULL,
    protocol     TEXT   NOT NULL,
    "user"       TEXT,
    session      TEXT,
    address      TEXT   NOT NULL,
    opened_ms    BIGINT NOT NULL,
    seen_ms      BIGINT,
    closed_ms    BIGINT,
    code         BIGINT,
    reason       TEXT,
    messages_in  BIGINT NOT NULL DEFAULT 0,
    messages_out BIGINT NOT NULL DEFAULT 0,
    bytes_in     BIGINT NOT NULL DEFAULT 0,
    bytes_out    BIGINT NOT NULL DEFAULT 0,
    dropped      BIGINT NOT NULL DEFAULT 0
);
CREATE INDEX connections_by_client ON connections (client);
CREATE INDEX connections_open ON connections (id) WHERE closed_ms IS NULL;
CREATE INDEX connections_by_end ON connections (closed_ms) WHERE closed_ms IS NOT NULL;
CREATE INDEX connections_by_user ON connections ("user", id) WHERE "user" IS NOT NULL;
CREATE INDEX connections_by_session ON connections (session, id) WHERE session IS NOT NULL;
CREATE INDEX connections_by_protocol ON connections (protocol, id);

-- Identities that outlive a connection. `meta` is JSON.
CREATE TABLE sessions (
    id         TEXT   NOT NULL PRIMARY KEY,
    "user"     TEXT,
    name       TEXT,
    meta       TEXT,
    created_ms BIGINT NOT NULL,
    expires_ms BIGINT NOT NULL,
    seen_ms    BIGINT
);
CREATE INDEX sessions_by_user ON sessions ("user") WHERE "user" IS NOT NULL;
CREATE INDEX sessions_by_end ON sessions (expires_ms);

-- What is counted: one row for each counter with its total since ever, and what was added in each minute, hour and day.
-- `at` is the beginning of the step, `step` its length, both in seconds.
CREATE TABLE series (
    id     BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    kind   TEXT   NOT NULL,
    name   TEXT   NOT NULL,
    metric TEXT   NOT NULL,
    total  BIGINT NOT NULL,
    UNIQUE (kind, name, metric)
);
CREATE TABLE points (
    step   BIGINT NOT NULL,
    at     BIGINT NOT NULL,
    series BIGINT NOT NULL,
    value  BIGINT NOT NULL,
    PRIMARY KEY (step, at, series)
);

-- `clean`: 1 between an orderly stop and the next start. `log`: this log's own name. `run`: the server that wrote last.
CREATE TABLE meta (
    key   TEXT NOT NULL PRIMARY KEY,
    value TEXT NOT NULL
);
