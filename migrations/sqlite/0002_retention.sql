-- Retention, positions over the whole log, sessions and statistics.

-- `first`: the oldest offset that is still there; top + 1 where nothing is. `early`: what is delivered may not be committed, so
-- an unclean stop costs the epoch. `gone`: the id of the newest event that retention took.
ALTER TABLE channels ADD COLUMN first INTEGER NOT NULL DEFAULT 1;
ALTER TABLE channels ADD COLUMN early INTEGER NOT NULL DEFAULT 0;
ALTER TABLE channels ADD COLUMN gone  INTEGER NOT NULL DEFAULT 0;
UPDATE channels SET first = COALESCE((SELECT min("offset") FROM events WHERE channel = channels.id), top + 1);

-- One index for each filter, but for `client`: nearly every event has one, and each has few, so that index alone would cost a third of
-- what storing an event costs. What is usually empty costs nothing where it is.
CREATE INDEX events_by_time ON events (time_ms);
CREATE INDEX events_by_source ON events (source);
CREATE INDEX events_by_user ON events (user) WHERE user IS NOT NULL;
CREATE INDEX events_by_session ON events (session) WHERE session IS NOT NULL;

-- `seen_ms`: when something last came from it.
ALTER TABLE connections ADD COLUMN seen_ms INTEGER;
UPDATE connections SET seen_ms = COALESCE(closed_ms, opened_ms);
CREATE INDEX connections_by_user ON connections (user) WHERE user IS NOT NULL;
CREATE INDEX connections_by_session ON connections (session) WHERE session IS NOT NULL;
CREATE INDEX connections_by_protocol ON connections (protocol);

-- Identities that outlive a connection. `meta` is JSON.
CREATE TABLE sessions (
    id         TEXT    NOT NULL PRIMARY KEY,
    user       TEXT,
    name       TEXT,
    meta       TEXT,
    created_ms INTEGER NOT NULL,
    expires_ms INTEGER NOT NULL,
    seen_ms    INTEGER
) STRICT, WITHOUT ROWID;
CREATE INDEX sessions_by_user ON sessions (user) WHERE user IS NOT NULL;
CREATE INDEX sessions_by_end ON sessions (expires_ms);

-- What is counted: one row for each counter with its total since ever, and what was added in each minute, hour and day.
-- `at` is the beginning of the step, `step` its length, both in seconds.
CREATE TABLE series (
    id     INTEGER PRIMARY KEY,
    kind   TEXT    NOT NULL,
    name   TEXT    NOT NULL,
    metric TEXT    NOT NULL,
    total  INTEGER NOT NULL,
    UNIQUE (kind, name, metric)
) STRICT;
CREATE TABLE points (
    step   INTEGER NOT NULL,
    at     INTEGER NOT NULL,
    series INTEGER NOT NULL,
    value  INTEGER NOT NULL,
    PRIMARY KEY (step, at, series)
) STRICT, WITHOUT ROWID;
