-- Format 3. What launches wrote, in parts: it is there when they are gone.

CREATE TABLE log_part (
    number INTEGER PRIMARY KEY AUTOINCREMENT, -- none is given twice: who reads on after one misses nothing
    run TEXT NOT NULL,
    source TEXT NOT NULL,
    until TEXT NOT NULL, -- where in the source it ends
    at INTEGER NOT NULL,
    size INTEGER NOT NULL,
    total INTEGER NOT NULL, -- of the sizes up to this one in the run's log: which are too old is known without a sum
    text TEXT NOT NULL -- last: what is asked before it is found without reading it
) STRICT;

CREATE INDEX log_part_by_run ON log_part (run);

CREATE INDEX log_part_by_at ON log_part (at);

-- The last part of each source, also when it is in log_part no more: else the source would be read from its beginning.
CREATE TABLE log_end (
    run TEXT NOT NULL,
    source TEXT NOT NULL,
    start TEXT NOT NULL,
    until TEXT NOT NULL,
    at INTEGER NOT NULL,
    PRIMARY KEY (run, source)
) STRICT, WITHOUT ROWID;

CREATE INDEX log_end_by_at ON log_end (at);
