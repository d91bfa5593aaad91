"""The requests of one entry, on disk: a step never holds all prompts in memory.

Prompt functions run once per entry; what they gave is kept here until the step is done, in files that have no
name and so vanish with the process.
"""

import hashlib
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from typing import IO, Any, Self

import numpy as np
import numpy.typing as npt

from prefect_llm_tiers.core.requests import KEY_LENGTH, Request

__all__ = ["Spool"]

_INDEX = np.dtype([("key", f"S{KEY_LENGTH}"), ("offset", "<u8"), ("length", "<u4")])


class Spool:
    """Requests by position: appended once, then sealed and read in any order.

    A position is a row's number among the rows that can be asked. Rows with the same key share one
    request: `first` names the position that stands for all of them.
    """

    def __init__(self) -> None:
        self._bodies: IO[bytes] = tempfile.TemporaryFile(prefix="llm-tiers-")  # noqa: SIM115 (closed by close)
        self._entries: IO[bytes] = tempfile.TemporaryFile(prefix="llm-tiers-")  # noqa: SIM115 (closed by close)
        self._offset = 0
        self._digest = hashlib.sha256()
        self._index: npt.NDArray[Any] = np.empty(0, dtype=_INDEX)
        self._order: npt.NDArray[np.int64] = np.empty(0, dtype=np.int64)
        self.first: npt.NDArray[np.int64] = np.empty(0, dtype=np.int64)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self._index)

    def append(self, requests: Iterable[Request]) -> None:
        """Add requests in row order."""
        entries: list[tuple[bytes, int, int]] = []
        for request in requests:
            key = request.key.encode()
            self._digest.update(key)
            entries.append((key, self._offset, len(request.body)))
            self._bodies.write(request.body)
            self._offset += len(request.body)
        self._entries.write(np.array(entries, dtype=_INDEX).tobytes())

    def seal(self) -> None:
        """End the writing and find the rows that ask the same thing."""
        self._bodies.flush()
        self._entries.flush()
        size = self._entries.tell() // _INDEX.itemsize
        if not size:
            return
        self._index = np.memmap(self._entries, dtype=_INDEX, mode="r", shape=(size,))
        keys = self._index["key"]
        # A stable sort puts the first of equal keys first in each run of them.
        self._order = np.argsort(keys, kind="stable")
        ordered = keys[self._order]
        starts = np.concatenate(([True], ordered[1:] != ordered[:-1]))
        heads = self._order[np.maximum.accumulate(np.where(starts, np.arange(size), 0))]
        self.first = np.empty(size, dtype=np.int64)
        self.first[self._order] = heads

    @property
    def digest(self) -> str:
        """SHA-256 over the keys in row order."""
        return self._digest.hexdigest()

    @property
    def distinct(self) -> npt.NDArray[np.int64]:
        """Positions of the requests to ask: the first of each key, in row order."""
        return np.flatnonzero(self.first == np.arange(len(self)))

    def body_bytes(self, positions: npt.NDArray[np.int64]) -> int:
        """Return the bytes of the bodies at some positions."""
        return int(self._index["length"][positions].sum()) if len(positions) else 0

    def keys(self, positions: Sequence[int] | npt.NDArray[np.int64]) -> list[str]:
        """Return the keys at some positions."""
        return [key.decode() for key in self._index["key"][np.asarray(positions, dtype=np.int64)].tolist()]

    def positions(self, keys: Sequence[str]) -> list[int | None]:
        """Return where each key first stands; None for a key that is not here."""
        if not len(self):
            return [None] * len(keys)
        wanted = np.array([key.encode() for key in keys], dtype=_INDEX["key"])
        stored = self._index["key"]
        at = np.searchsorted(stored, wanted, sorter=self._order)
        at = np.minimum(at, len(self) - 1)
        found = self._order[at]
        hits = stored[found] == wanted
        return [int(position) if hit else None for position, hit in zip(found.tolist(), hits.tolist(), strict=True)]

    def length(self, position: int) -> int:
        """Return the bytes of one body."""
        return int(self._index["length"][position])

    def read(self, position: int) -> Request:
        """Return the request at a position."""
        entry = self._index[position]
        self._bodies.seek(int(entry["offset"]))
        return Request(key=entry["key"].decode(), body=self._bodies.read(int(entry["length"])))

    def read_many(self, positions: Iterable[int]) -> Iterator[Request]:
        """Stream the requests at some positions."""
        return map(self.read, positions)

    def close(self) -> None:
        """Let the files go."""
        self._index = np.empty(0, dtype=_INDEX)
        self._bodies.close()
        self._entries.close()
