"""The agenda in `pod.db`: when which owner's Pod is to be looked at next, and how many launched runs work for each.

It names owners and instants, and nothing of what is in their Pods. It is a hint and no record: whoever loses it looks
at each Pod once, when its owner calls.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import cast

from holdfast.disk import Disk
from holdfast.sql.podfile import PodFile


class Agenda:
    """When to look at the Pods of one home; any process may ask and write, and each call stands alone.

    Instants are whole milliseconds since 1970 (UTC). An owner whose key comes into the keyring and who is not on the
    agenda is due at once; one who is stays as it is. Who leaves the keyring stays on the agenda.

    A damaged file is set aside by the next `put` or `wake`, as by the `Keyring`: all owners come again with their next
    call.

    Args:
        path: ``pod.db``; made on the first `put` or `wake`.
        disk: Where the file lies.

    Raises:
        DamagedError: Each method that writes nothing: the file is not what was written.
        InvalidError: Each method: it has a newer format; or an instant is beyond 64 bits.
        UnavailableError: Each method: somebody else has been writing to the file for half a minute, or the disk fails.
    """

    def __init__(self, path: Path, *, disk: Disk | None = None) -> None:
        self._file = PodFile(path, disk=disk)

    def put(self, owner: str, look_ms: int | None, live: int, *, wakes: int | None = None) -> None:
        """Note when an owner's Pod is to be looked at next; whatever was noted before is replaced.

        Args:
            owner: Whose Pod.
            look_ms: Not before this instant; None: not by itself, only after a `wake`.
            live: How many launched runs work for this owner.
            wakes: What `list_due` or `wakes_of` said of this owner before the look. If it was woken since, by another
                process perhaps, the look may have been too early to see why: it stays due as it is, or at ``look_ms``
                if that is sooner. None: whether it was woken since does not matter.
        """
        self._file.change(
            "INSERT INTO agenda VALUES (?1, ?2, ?3, 0) ON CONFLICT (owner) DO UPDATE SET live = excluded.live, "
            "look_ms = iif(wakes = ifnull(?4, wakes), excluded.look_ms, "
            "min(ifnull(look_ms, excluded.look_ms), ifnull(excluded.look_ms, look_ms)))",
            (owner, look_ms, live, wakes),
        )

    def wake(self, owner: str, at_ms: int) -> None:
        """Let an owner's Pod be looked at no later than this instant; sooner, if that was noted, also by another wake.

        One that is being looked at meanwhile is looked at again, if who looks says so (see `put`). An owner who is not
        on the agenda comes onto it, with no run that works.
        """
        self._file.change(
            "INSERT INTO agenda VALUES (?, ?, 0, 1) ON CONFLICT (owner) DO UPDATE SET wakes = wakes + 1, "
            "look_ms = min(ifnull(look_ms, excluded.look_ms), excluded.look_ms)",
            (owner, at_ms),
        )

    def list_due(self, now_ms: int) -> Mapping[str, int]:
        """Return who is to be looked at by now, the one that has been due for longest first; to each how often it woke.

        That number is for `put`. One query that finds them by an index, so it may be asked each second. Nobody is taken
        off the agenda: whoever dies in a look leaves its owner due.
        """
        rows = self._file.find("SELECT owner, wakes FROM agenda WHERE look_ms <= ? ORDER BY look_ms, owner", (now_ms,))
        return cast("dict[str, int]", dict(rows))  # pyright: ignore[reportCallIssue, reportArgumentType]

    def wakes_of(self, owner: str) -> int:
        """Return how often an owner was woken, for `put`; 0 for one who is not on the agenda."""
        rows = self._file.find("SELECT wakes FROM agenda WHERE owner = ?", (owner,))
        return cast("int", rows[0][0]) if rows else 0

    def next_ms(self) -> int | None:
        """Return the next instant at which somebody is due, perhaps long ago; None: nobody is, without a `wake`."""
        rows = self._file.find("SELECT min(look_ms) FROM agenda")
        return cast("int | None", rows[0][0]) if rows else None

    def live_of_others(self, owner: str) -> int:
        """Return how many launched runs work for all other owners together, as they were last put."""
        rows = self._file.find("SELECT ifnull(sum(live), 0) FROM agenda WHERE owner <> ?", (owner,))
        return cast("int", rows[0][0]) if rows else 0
