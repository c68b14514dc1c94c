-- Format 2. What batches with a key were answered, so that one that comes again is not done again.

CREATE TABLE applied (
    key TEXT PRIMARY KEY,
    digest BLOB NOT NULL, -- tells the batch from others
    results TEXT NOT NULL, -- JSON
    at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE INDEX applied_by_at ON applied (at);
