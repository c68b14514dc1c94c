-- Format 1. Dates are milliseconds since 1970 (UTC). Why items lie like this: docs/adr/0002-items-in-sql.md.

CREATE TABLE meta (
    name TEXT PRIMARY KEY,
    value ANY NOT NULL
) STRICT, WITHOUT ROWID;

-- schema_version grows with every change of type_definition: one read tells a process whether its copy is stale.
-- edges is the seq of the newest edge.
INSERT INTO meta VALUES ('schema_version', 0), ('edges', 0);

CREATE TABLE type_definition (
    name TEXT PRIMARY KEY,
    definition TEXT NOT NULL -- JSON; the built-in types are not in here
) STRICT, WITHOUT ROWID;

CREATE TABLE item (
    seq INTEGER PRIMARY KEY, -- in the order of creation
    id TEXT NOT NULL UNIQUE,
    type TEXT NOT NULL,
    version INTEGER NOT NULL,
    created INTEGER NOT NULL,
    modified INTEGER NOT NULL,
    server_modified INTEGER NOT NULL,
    deleted INTEGER NOT NULL,
    properties TEXT NOT NULL -- a JSON object
) STRICT;

CREATE INDEX item_by_type ON item (type, server_modified);

-- Which properties of which types are found without a scan, and their values in items that are not deleted.
CREATE TABLE field (
    number INTEGER PRIMARY KEY,
    type TEXT NOT NULL,
    property TEXT NOT NULL,
    UNIQUE (type, property)
) STRICT;

CREATE TABLE indexed (
    field INTEGER NOT NULL,
    value ANY NOT NULL,
    server_modified INTEGER NOT NULL, -- of the item, so that what is found comes in order
    item INTEGER NOT NULL,
    PRIMARY KEY (field, value, server_modified, item)
) STRICT, WITHOUT ROWID;

CREATE TABLE edge (
    source INTEGER NOT NULL,
    name TEXT NOT NULL,
    target INTEGER NOT NULL,
    seq INTEGER NOT NULL, -- in the order of creation
    PRIMARY KEY (source, name, target)
) STRICT, WITHOUT ROWID;

CREATE INDEX edge_by_target ON edge (target, name, source);

CREATE TABLE variable (
    state TEXT NOT NULL,
    namespace TEXT NOT NULL,
    name TEXT NOT NULL,
    value TEXT NOT NULL, -- a JSON scalar, which keeps 1, 1.0 and true apart
    PRIMARY KEY (state, namespace, name)
) STRICT, WITHOUT ROWID;

CREATE TABLE lease (
    state TEXT PRIMARY KEY,
    epoch INTEGER NOT NULL,
    holder TEXT NOT NULL,
    run TEXT NOT NULL,
    expires INTEGER NOT NULL,
    cancelled INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE INDEX lease_by_run ON lease (run);

CREATE TABLE snapshot_pointer (
    state TEXT PRIMARY KEY,
    snapshot TEXT NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE question (
    seq INTEGER PRIMARY KEY, -- in the order of asking
    id TEXT NOT NULL UNIQUE,
    state TEXT NOT NULL,
    run TEXT NOT NULL,
    key TEXT NOT NULL,
    form TEXT NOT NULL,
    view TEXT,
    deadline INTEGER,
    fallback TEXT,
    asked INTEGER NOT NULL,
    answer TEXT,
    answered INTEGER,
    UNIQUE (state, key)
) STRICT;
