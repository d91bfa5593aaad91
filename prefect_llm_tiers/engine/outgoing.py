"""The requests of a batch on their way out of the spool."""

from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from itertools import chain

from prefect_llm_tiers.core.ports import BatchLine
from prefect_llm_tiers.core.requests import KEY_LENGTH, custom_id
from prefect_llm_tiers.engine.spool import Spool

__all__ = ["OutgoingLines"]


class OutgoingLines:
    """The lines of a batch in order, one by one or encoded many at a time. See `core.ports.EncodedLines`."""

    def __init__(self, spool: Spool, groups: Callable[[], Iterable[Sequence[str]]], *, token: str) -> None:
        """Take what the lines are made of; nothing is read before they are asked for.

        Args:
            spool: Holds the requests, all of them.
            groups: Reads the batch's keys, some at a time.
            token: The batch's.
        """
        self._spool = spool
        self._groups = groups
        self._token = token

    async def __aiter__(self) -> AsyncIterator[BatchLine]:
        for keys, bodies in self._requests():
            for key, body in zip(keys, bodies, strict=True):
                yield BatchLine(custom_id=custom_id(key, self._token), body=bytes(body))

    async def encoded(self, before: bytes, middle: bytes, after: bytes) -> AsyncIterator[bytes]:
        opening, closing = after + before, f"-{self._token}".encode() + middle
        between = (closing + opening).decode()
        size = len(opening) + KEY_LENGTH + len(closing)
        for keys, bodies in self._requests():
            # All that stands between two bodies is made for all of them at a time, and cut.
            heads = opening + between.join(keys).encode() + closing
            parts = [heads[start : start + size] for start in range(0, len(heads), size)]
            parts[0] = parts[0].removeprefix(after)
            yield b"".join(chain(chain.from_iterable(zip(parts, bodies, strict=True)), (after,)))

    def _requests(self) -> Iterator[tuple[Sequence[str], Sequence[memoryview]]]:
        """Yield keys and bodies, as many as are read together."""
        for keys in self._groups():
            positions = [position for position in self._spool.positions(keys) if position is not None]
            # One that is missing would shift all that come after it under others' keys.
            assert len(positions) == len(keys)
            start = 0
            for bodies in self._spool.bodies(positions):
                yield keys[start : start + len(bodies)], bodies
                start += len(bodies)
