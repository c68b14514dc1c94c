"""Door: processes and containers, in which runs are carried on. What a launcher must offer `holdfast.runs` says.

- `process`: a process of this machine, which outlives who launched it. `script`: one by the name of an image.
- `docker`: a container of any engine that has Docker's interface.

Nothing is imported here: the program that stands beside each launched process comes by, and is to be there at once.
"""

from typing import Final

# The files in the folder of a launch. `records` says what is in them.
LAUNCH: Final = "launch.json"
LAUNCHING: Final = "launching"
AUTH: Final = "auth.json"
STARTED: Final = "started.json"
RUNNING: Final = "running"
ENDED: Final = "ended.json"
OUTPUT: Final = "output.log"
WORK: Final = "work"
