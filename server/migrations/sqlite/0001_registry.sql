-- Times are seconds since the Unix epoch, keys and hashes raw bytes, addresses text.

CREATE TABLE meta (
    name  TEXT NOT NULL PRIMARY KEY,
    value TEXT NOT NULL
) STRICT;

CREATE TABLE users (
    id      INTEGER NOT NULL PRIMARY KEY,
    name    TEXT    NOT NULL UNIQUE CHECK (name <> ''),
    created INTEGER NOT NULL
) STRICT;

CREATE TABLE invitations (
    id           BLOB    NOT NULL PRIMARY KEY,
    key          BLOB    NOT NULL,              -- what the proof is checked with; dies with the last use
    user         INTEGER NOT NULL REFERENCES users (id),
    uses_allowed INTEGER NOT NULL CHECK (uses_allowed > 0),
    uses         INTEGER NOT NULL DEFAULT 0 CHECK (uses BETWEEN 0 AND uses_allowed),
    created      INTEGER NOT NULL,
    expires      INTEGER NOT NULL,
    cancelled_at INTEGER
) STRICT;

CREATE TABLE devices (
    id          TEXT    NOT NULL PRIMARY KEY CHECK (id <> ''),
    user        INTEGER NOT NULL REFERENCES users (id),
    name        TEXT    NOT NULL CHECK (name <> ''),
    spki_sha256 BLOB    NOT NULL UNIQUE CHECK (length(spki_sha256) = 32),
    serial      TEXT    NOT NULL,
    not_after   INTEGER NOT NULL,
    ipv4        TEXT    NOT NULL UNIQUE,        -- kept when revoked, so that no other device inherits it
    ipv6        TEXT,                           -- as first given; sessions derive theirs from ipv4, so a larger network may repeat it
    created     INTEGER NOT NULL,
    last_seen   INTEGER,
    revoked_at  INTEGER,
    UNIQUE (user, name)
) STRICT;

CREATE TABLE invitation_uses (
    invitation BLOB    NOT NULL REFERENCES invitations (id),
    device     TEXT    NOT NULL REFERENCES devices (id),
    at         INTEGER NOT NULL,
    PRIMARY KEY (invitation, device)
) STRICT, WITHOUT ROWID;

-- What happened, for the audit: one row per change of the tables above.
CREATE TABLE events (
    id     INTEGER NOT NULL PRIMARY KEY,
    at     INTEGER NOT NULL,
    event  TEXT    NOT NULL,
    actor  TEXT    NOT NULL,
    target TEXT    NOT NULL
) STRICT;
