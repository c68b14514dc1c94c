"""``python -m benchmarks``: one table of ratios, each to a limit that was measured beside it in the same run.

It takes some minutes, most of them to make a million items; ``--items 100000`` leaves them out.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from benchmarks import launching, loading, pods, processes, runs, serving, snapshots, variables
from benchmarks.measure import Row, table


def main() -> None:
    """Measure everything and print the table, or one JSON document."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--items", type=int, default=1_000_000, help="in the large Pod; 100000: no large Pod")
    parser.add_argument("--mib", type=int, default=256, help="of arrays in a snapshot; 1024 takes 6 GiB of memory")
    parser.add_argument("--rounds", type=int, default=5, help="how often each ratio is taken; the median counts")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--folder", type=Path, default=Path("build"), help="where to write: on the disk to be measured")
    options = parser.parse_args()
    options.folder.mkdir(exist_ok=True)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="bench-") as folder:
        here = Path(folder).absolute()
        for bench in (
            pods.Bench(folder=here, items=options.items, rounds=options.rounds),
            processes.Bench(folder=here, rounds=options.rounds),
            runs.Bench(folder=here, rounds=options.rounds),
            serving.Bench(folder=here, rounds=options.rounds),
            launching.Bench(folder=here, rounds=options.rounds),
            snapshots.Bench(folder=here, rounds=options.rounds, mib=options.mib),
            variables.Bench(folder=here, rounds=options.rounds),
            loading.Bench(folder=here, rounds=options.rounds),
        ):
            for row in bench.rows():
                rows.append(row)
                print(f"{row.work}: {row.wall.median:.2f}", file=sys.stderr, flush=True)
    print(json.dumps([row.to_dict() for row in rows], indent=2) if options.json else table(rows))


if __name__ == "__main__":
    main()
