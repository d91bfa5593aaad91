"""The requests of one entry, on disk: a step never holds all prompts in memory, nor all keys.

Prompt functions run once per entry; what they gave is kept here until the step is done, in files that have no
name and so vanish with the process.
"""

import hashlib
import itertools
import mmap
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from typing import IO, Any, Self

import numpy as np
import numpy.typing as npt

from prefect_llm_tiers.core.requests import KEY_LENGTH, Request

__all__ = ["Spool"]

_ENTRY = np.dtype([("key", f"S{KEY_LENGTH}"), ("offset", "<u8"), ("length", "<u4")])
_KEY = _ENTRY["key"]
_MARK = np.dtype("<u8")

_AT_ONCE = 8192
"""Values that are looked at together."""

_SORTED_AT_ONCE, _MOST_PIECES = 1 << 18, 16
"""Marks that are sorted together, which takes eight bytes of memory each; above so many pieces they grow."""

_READ_BYTES = 1 << 16
"""Most bytes of bodies that are read together; a longer one is read alone."""

_SPREAD = np.uint64(0x9E3779B97F4A7C15)
"""An odd number near 2^64 over the golden ratio: the high bits of a product with it depend on all bits."""

Positions = npt.NDArray[np.int64]
_Marks = npt.NDArray[np.uint64]


class _Column:
    """Values of one type in a file: written one after the other, then read where they stand."""

    def __init__(self, dtype: np.dtype[Any]) -> None:
        self._dtype = dtype
        self._file: IO[bytes] = tempfile.TemporaryFile(prefix="llm-tiers-")  # noqa: SIM115 (closed by close)
        self._map: mmap.mmap | None = None
        self._values: npt.NDArray[Any] = np.empty(0, dtype=dtype)

    def __len__(self) -> int:
        return len(self._values)

    def extend(self, values: npt.NDArray[Any]) -> None:
        self._file.write(values.tobytes())

    def seal(self) -> None:
        self._file.flush()
        if self._file.tell():
            self._map = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)
            self._values = np.frombuffer(self._map, dtype=self._dtype)

    def at(self, positions: "Positions | slice", field: str | None = None) -> npt.NDArray[Any]:
        """Return a copy of the values at some positions."""
        found = np.array(self._of(field)[positions])
        self._let_go()
        return found

    def first_not_below(self, wanted: npt.NDArray[Any]) -> Positions:
        """Return for each wanted value the position of the first that is no less; the values are in order."""
        found = np.searchsorted(self._values, wanted)
        self._let_go()
        return found

    def _of(self, field: str | None) -> npt.NDArray[Any]:
        values: npt.NDArray[Any] = self._values if field is None else self._values[field]
        return values

    def _let_go(self) -> None:
        # Pages of a file that were touched count as this process's memory until they are let go.
        if self._map is not None and hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)

    def close(self) -> None:
        self._values = np.empty(0, dtype=self._dtype)
        self._map = None
        self._file.close()


class Spool:
    """Requests by position: appended once, then sealed and read in any order.

    A position is a row's number among the rows that can be asked. Rows with the same key share one
    request: `first` names the position that stands for all of them.
    """

    def __init__(self) -> None:
        self._bodies: IO[bytes] = tempfile.TemporaryFile(prefix="llm-tiers-")  # noqa: SIM115 (closed by close)
        self._samples = 1
        # Of the requests that are not in the index yet.
        self._keys: list[bytes] = []
        self._lengths: list[int] = []
        self._offset = 0
        self._entries = _Column(_ENTRY)
        self._spread = _Column(_MARK)
        # In ascending order, each the mark of a key in its high bits and the key's position in its low ones.
        self._marked = _Column(_MARK)
        self._position_bits = np.uint64(0)
        self._repeats: Positions = np.empty(0, dtype=np.int64)
        self._repeated: Positions = np.empty(0, dtype=np.int64)
        self._digest = hashlib.sha256()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self._entries)

    def append(self, requests: Iterable[Request]) -> None:
        """Add requests in row order."""
        taken = list(requests)
        self.extend("".join([request.key for request in taken]).encode(), [request.body for request in taken])

    def extend(self, keys: bytes, bodies: Sequence[bytes], *, samples: int = 1) -> None:
        """Add requests in row order, by columns.

        Args:
            keys: Their keys, end to end.
            bodies: Their bodies; one that is asked several times stands once.
            samples: Keys that a body has.
        """
        if samples != self._samples:
            self._index()
            self._samples = samples
        self._bodies.write(b"".join(bodies))
        self._keys.append(keys)
        self._lengths.extend(map(len, bodies))
        if len(self._lengths) >= _AT_ONCE:
            self._index()

    def _index(self) -> None:
        """Write down where the requests stand that were added since the last time."""
        if not self._lengths:
            return
        samples = self._samples
        keys = b"".join(self._keys)
        self._digest.update(keys)
        lengths = np.array(self._lengths, dtype=np.uint64)
        ends = lengths.cumsum() + np.uint64(self._offset)
        entries = np.empty(len(lengths) * samples, dtype=_ENTRY)
        entries["key"] = np.frombuffer(keys, dtype=_KEY)
        entries["offset"] = np.repeat(ends - lengths, samples)
        entries["length"] = np.repeat(lengths, samples)
        self._entries.extend(entries)
        self._spread.extend(_spread(entries["key"]))
        self._offset = int(ends[-1])
        self._keys.clear()
        self._lengths.clear()

    def seal(self) -> None:
        """End the writing and find the rows that ask the same thing."""
        self._index()
        self._bodies.flush()
        self._entries.seal()
        self._spread.seal()
        self._position_bits = np.uint64(len(self).bit_length())
        # Piece by piece of the marks' range, so that only one piece is held while it is sorted.
        piece_bits = min((len(self) // _SORTED_AT_ONCE).bit_length(), _MOST_PIECES.bit_length() - 1)
        for piece in range(1 << piece_bits):
            found = [np.empty(0, dtype=_MARK)]
            for start in range(0, len(self), _AT_ONCE):
                marks = self._spread.at(slice(start, start + _AT_ONCE))
                marked = self._mark(marks) | np.arange(start, start + len(marks), dtype=np.uint64)
                found.append(marked[marks >> np.uint64(64 - piece_bits) == piece] if piece_bits else marked)
            together = np.concatenate(found)
            del found
            together.sort()
            self._marked.extend(together)
        self._marked.seal()
        self._spread.close()
        self._find_repeats()

    def _mark(self, spread: _Marks) -> _Marks:
        """Return a number for each key, equal for equal keys, whose low bits are free for a position."""
        return spread >> self._position_bits << self._position_bits

    def _positions_in(self, marked: _Marks) -> Positions:
        return (marked & ((np.uint64(1) << self._position_bits) - np.uint64(1))).astype(np.int64)

    def _keys_at(self, positions: Positions) -> npt.NDArray[Any]:
        return self._entries.at(positions, "key")

    def _find_repeats(self) -> None:
        """Note which positions have the key of an earlier one.

        Equal marks are neighbours now, the lowest position first. That their keys are equal is almost certain, and
        looked up all the same.
        """
        found = [np.empty(0, dtype=np.int64)]
        for start in range(1, len(self), _AT_ONCE):
            marks = self._mark(self._marked.at(slice(start - 1, start + _AT_ONCE)))
            found.append(np.flatnonzero(marks[1:] == marks[:-1]) + start)
        alike = np.concatenate(found)
        if not len(alike):
            return
        begins = np.concatenate(([True], alike[1:] != alike[:-1] + 1))
        heads = np.maximum.accumulate(np.where(begins, alike - 1, 0))
        repeats, repeated = (self._positions_in(self._marked.at(at)) for at in (alike, heads))
        pieces = [slice(start, start + _AT_ONCE) for start in range(0, len(alike), _AT_ONCE)]
        same = np.concatenate([self._keys_at(repeats[piece]) == self._keys_at(repeated[piece]) for piece in pieces])
        for head in np.unique(repeated[~same]).tolist():
            # Two keys under one mark: their positions are told apart one by one.
            firsts = {self._keys_at(np.array([head]))[0]: head}
            for at in np.flatnonzero(repeated == head).tolist():
                repeated[at] = firsts.setdefault(self._keys_at(repeats[at : at + 1])[0], int(repeats[at]))
        order = np.argsort(repeats)
        order = order[repeats[order] != repeated[order]]
        self._repeats, self._repeated = repeats[order], repeated[order]

    @property
    def digest(self) -> str:
        """SHA-256 over the keys in row order."""
        return self._digest.hexdigest()

    @property
    def first(self) -> Positions:
        """For each position the first one with the same key; shape (requests,)."""
        first = np.arange(len(self))
        first[self._repeats] = self._repeated
        return first

    @property
    def distinct(self) -> Positions:
        """Positions of the requests to ask: the first of each key, in row order."""
        positions = np.arange(len(self))
        return np.delete(positions, self._repeats) if len(self._repeats) else positions

    def body_bytes(self, positions: Positions) -> int:
        """Return the bytes of the bodies at some positions."""
        pieces = (positions[start : start + _AT_ONCE] for start in range(0, len(positions), _AT_ONCE))
        return sum(int(self._entries.at(piece, "length").sum()) for piece in pieces)

    def keys(self, positions: Sequence[int] | Positions) -> list[str]:
        """Return the keys at some positions."""
        stored = self._keys_at(np.asarray(positions, dtype=np.int64)).tobytes().decode()
        return [stored[start : start + KEY_LENGTH] for start in range(0, len(stored), KEY_LENGTH)]

    def positions(self, keys: Sequence[str]) -> list[int | None]:
        """Return where each key first stands; None for a key that is not here."""
        if not len(self) or not keys:
            return [None] * len(keys)
        wanted = np.frombuffer("".join(keys).encode(), dtype=_KEY)
        [begin] = self._look_up(wanted[:1])
        # A batch was packed in row order: most often its keys stand one after the other.
        if begin is not None and begin + len(keys) <= len(self):
            end = begin + len(keys)
            between = np.searchsorted(self._repeats, [begin, end])
            if between[0] == between[1] and (self._entries.at(slice(begin, end), "key") == wanted).all():
                return list(range(begin, end))
        return self._look_up(wanted)

    def _look_up(self, wanted: npt.NDArray[Any]) -> list[int | None]:
        marks = self._mark(_spread(wanted))
        at = np.minimum(self._marked.first_not_below(marks), len(self) - 1)
        found = self._positions_in(self._marked.at(at))
        hits = self._keys_at(found) == wanted
        positions: list[int | None] = found.tolist()
        for missed in np.flatnonzero(~hits).tolist():
            positions[missed] = self._look_on(wanted[missed], marks[missed], int(at[missed]))
        return positions

    def _look_on(self, key: bytes, mark: np.uint64, start: int) -> int | None:
        """Return the first position of a key among those of one mark."""
        for at in range(start, len(self)):
            marked = self._marked.at(slice(at, at + 1))
            if self._mark(marked)[0] != mark:
                return None
            position = self._positions_in(marked)
            if self._keys_at(position)[0] == key:
                return int(position[0])
        return None

    def length(self, position: int) -> int:
        """Return the bytes of one body."""
        return int(self._entries.at(slice(position, position + 1), "length")[0])

    def read(self, position: int) -> Request:
        """Return the request at a position."""
        [entry] = self._entries.at(slice(position, position + 1))
        body = os.pread(self._bodies.fileno(), int(entry["length"]), int(entry["offset"]))
        return Request(key=entry["key"].decode(), body=body)

    def bodies(self, positions: Sequence[int] | Positions) -> Iterator[list[memoryview]]:
        """Stream the bodies at some positions, in lists of those that stand together and are read together."""
        wanted = np.asarray(positions, dtype=np.int64)
        for start in range(0, len(wanted), _AT_ONCE):
            entries = self._entries.at(wanted[start : start + _AT_ONCE])
            offsets = entries["offset"].astype(np.int64)
            ends = offsets + entries["length"]
            same = (offsets[1:] == offsets[:-1]) & (ends[1:] == ends[:-1])
            follow = same | (offsets[1:] == ends[:-1])
            for first, last in _runs(ends - offsets, follow):
                begin = int(offsets[first])
                read = memoryview(os.pread(self._bodies.fileno(), int(ends[last - 1]) - begin, begin))
                within = zip((offsets[first:last] - begin).tolist(), (ends[first:last] - begin).tolist(), strict=True)
                yield [read[here:there] for here, there in within]

    def close(self) -> None:
        """Let the files go."""
        for file in (self._bodies, self._entries, self._spread, self._marked):
            file.close()


def _spread(keys: npt.NDArray[Any]) -> _Marks:
    """Return a number for each key, equal for equal keys, spread evenly over all numbers."""
    heads = np.ascontiguousarray(keys).view(np.uint8).reshape(-1, KEY_LENGTH)[:, : _MARK.itemsize]
    return np.ascontiguousarray(heads).view(_MARK).ravel() * _SPREAD


def _runs(lengths: Positions, follow: npt.NDArray[np.bool_]) -> Iterator[tuple[int, int]]:
    """Yield beginning and end of each run of bodies that are read together."""
    # Where a run is cut because it grows too long is told by the bytes before it, so that no loop is needed.
    blocks = (lengths.cumsum() - lengths) // _READ_BYTES
    cuts = np.flatnonzero(~follow | (blocks[1:] != blocks[:-1])) + 1
    yield from itertools.pairwise([0, *cuts.tolist(), len(lengths)])
