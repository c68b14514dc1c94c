"""The Pods that are open: each opened when it is first asked for, kept while it is used, closed when others need room.

Hides who uses which Pod now. What opens a Pod, and which key does, is told by an `Opener`; what a signed-in request
may then do is `holdfast.server.signing_in`'s matter.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Final, Protocol, Self

from holdfast.errors import UnavailableError
from holdfast.store import Store

MAX_OPEN: Final = 64
"""How many Pods are open at once, unless `OpenPods` is told otherwise; each has a few files and threads."""


class Upload(Protocol):
    """A file that is being kept."""

    def write(self, data: bytes) -> None:
        """Take the next bytes."""
        ...

    def commit(self) -> int:
        """Keep the file, durably, and return its size in bytes.

        Raises:
            ConflictError: Another upload has kept it meanwhile.
            InvalidError: The bytes do not have the hash that they were announced with.
        """
        ...


class Bytes(Protocol):
    """What keeps the bytes of one owner's files (see `holdfast.pod.files.Files`), and takes them as they come."""

    def put(self, sha256: str, chunks: Iterator[bytes]) -> int: ...  # noqa: D102 -- as `Files`
    def open(self, sha256: str) -> tuple[int, Iterator[bytes]]: ...  # noqa: D102
    def exists(self, sha256: str) -> bool: ...  # noqa: D102
    def delete(self, sha256: str, *, is_needed: Callable[[], bool]) -> None: ...  # noqa: D102

    def writing(self, sha256: str) -> AbstractContextManager[Upload]:
        """Yield what takes the bytes of a file; without its ``commit()`` nothing is kept.

        Raises:
            ConflictError: It is there already; at once, or with ``commit()``.
            InvalidError: ``sha256`` is no such hash.
        """
        ...


class OpenPod(Protocol):
    """One owner's Pod.

    Attributes:
        owner: The owner's name.
        store: All of it; what several threads write is committed together.
        renewals: The same Pod, for renewals of leases alone: they do not wait behind what others write.
        files: The bytes of its files.
    """

    @property
    def owner(self) -> str: ...  # noqa: D102 -- said above
    @property
    def store(self) -> Store: ...  # noqa: D102
    @property
    def renewals(self) -> Store: ...  # noqa: D102
    @property
    def files(self) -> Bytes: ...  # noqa: D102

    def is_opened_by(self, database_key: str) -> bool:
        """Say whether the owner may present this key today, in a time that does not depend on where keys differ.

        Quick; False as well where that cannot be said quickly: then `admit` decides.
        """
        ...

    def admit(self, database_key: str) -> None:
        """Look again which key opens this Pod: it may have been replaced.

        Raises:
            DeniedError: Not this one.
        """
        ...

    def close(self) -> None:
        """Close it; it is not used any more."""
        ...


class Opener(Protocol):
    """What makes and opens Pods."""

    @property
    def pod_key(self) -> bytes:
        """What tokens are sealed with."""
        ...

    def now_ms(self) -> int:
        """Return the clock that tokens are measured on."""
        ...

    def open(self, owner: str, database_key: str | None) -> OpenPod:
        """Open the Pod of an owner, with the owner's key, or, if that is None, for who presented a token.

        Raises:
            DeniedError: There is no such Pod, or the key does not open it: which of both is not said.
            UnavailableError: It cannot be opened now; or not without its owner, who has to call first.
        """
        ...

    def create(self, owner: str, database_key: str) -> None:
        """Make the Pod of an owner; nothing happens if it is there and this key opens it.

        Raises:
            DeniedError: Another key opens it.
            InvalidError: One of the two is no key.
        """
        ...


class Use:
    """One request's use of a Pod, which stays open until `end`; twice is harmless."""

    def __init__(self, pod: OpenPod, end: Callable[[], None]) -> None:
        self.pod = pod
        self._end: Callable[[], None] | None = end

    def end(self) -> None:
        """Use it no more."""
        end, self._end = self._end, None
        if end is not None:
            end()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.end()


class OpenPods:
    """Pods by owner, opened on first use; for any number of threads.

    Args:
        opener: What opens them.
        max_open: How many may be open; the one that was not used for longest is closed for another.
    """

    def __init__(self, opener: Opener, *, max_open: int = MAX_OPEN) -> None:
        self.opener = opener
        self._max_open = max_open
        self._lock = threading.Lock()
        self._pods: dict[str, OpenPod] = {}
        self._uses: dict[str, int] = {}
        """How many use each, in the order in which they were last asked for."""
        self._turns: dict[str, tuple[threading.Lock, int]] = {}
        self._is_closed = False

    def find(self, owner: str, database_key: str | None) -> Use | None:
        """Return a use of an open Pod; None if it is not open, or ``database_key`` is not known to open it.

        Quick: for the thread that everybody waits for. None as key is for who has checked a token.
        """
        with self._lock:
            pod = self._pods.get(owner)
        if pod is None or not (database_key is None or pod.is_opened_by(database_key)):
            return None
        return self._used(pod)

    def open(self, owner: str, database_key: str | None) -> Use:
        """Return a use of a Pod, which is opened if it is not.

        Raises:
            DeniedError, UnavailableError: As `Opener.open`; or as many are open as may be, and all are used.
        """
        with self._turn(owner):
            with self._lock:
                pod = self._pods.get(owner)
            if pod is not None and database_key is not None and not pod.is_opened_by(database_key):
                pod.admit(database_key)
            use = None if pod is None else self._used(pod)
            if use is None:
                self._make_room(owner)
                use = self._keep(self.opener.open(owner, database_key))
            return use

    def create(self, owner: str, database_key: str) -> None:
        """Make the Pod of an owner, as `Opener.create`."""
        with self._turn(owner):
            self.opener.create(owner, database_key)

    def close(self) -> None:
        """Close all that are not used, and each of the others with its last use."""
        with self._lock:
            self._is_closed = True
            idle = [owner for owner, uses in self._uses.items() if not uses]
            pods = [self._forget(owner) for owner in idle]
        for pod in pods:
            pod.close()

    @contextmanager
    def _turn(self, owner: str) -> Generator[None]:
        """Let one thread at a time open the Pod of an owner: a check of all its pages must not be done twice."""
        with self._lock:
            lock, waiting = self._turns.get(owner, (threading.Lock(), 0))
            self._turns[owner] = (lock, waiting + 1)
        try:
            with lock:
                yield
        finally:
            with self._lock:
                waiting = self._turns[owner][1]
                if waiting == 1:
                    del self._turns[owner]
                else:
                    self._turns[owner] = (lock, waiting - 1)

    def _make_room(self, owner: str) -> None:
        with self._lock:
            idle = next((each for each, uses in self._uses.items() if not uses), None)
            is_full = len(self._pods) >= self._max_open
            pod = self._forget(idle) if is_full and idle is not None else None
        if pod is not None:
            pod.close()
        elif is_full:
            message = f"the Pod of owner {owner!r} cannot be opened: {self._max_open} others are in use; try again"
            raise UnavailableError(message, max_open=self._max_open)

    def _keep(self, pod: OpenPod) -> Use:
        with self._lock:
            is_closed = self._is_closed
            if not is_closed:
                self._pods[pod.owner], self._uses[pod.owner] = pod, 0
        use = None if is_closed else self._used(pod)
        if use is None:
            pod.close()
            raise UnavailableError("the server is going down: try again")
        return use

    def _used(self, pod: OpenPod) -> Use | None:
        """Return a use of a Pod, unless it was closed meanwhile to make room."""
        owner = pod.owner
        with self._lock:
            if self._is_closed or self._pods.get(owner) is not pod:
                return None
            self._uses[owner] = self._uses.pop(owner) + 1  # the last in the order: used last
        return Use(pod, partial(self._end, pod))

    def _end(self, pod: OpenPod) -> None:
        with self._lock:
            self._uses[pod.owner] -= 1
            is_last = self._is_closed and not self._uses[pod.owner]
            if is_last:
                self._forget(pod.owner)
        if is_last:
            pod.close()

    def _forget(self, owner: str) -> OpenPod:
        del self._uses[owner]
        return self._pods.pop(owner)
