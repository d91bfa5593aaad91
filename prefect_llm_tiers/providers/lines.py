"""JSON lines in pieces: the requests of a batch on their way out."""

import os
import tempfile
from collections.abc import AsyncIterable, AsyncIterator
from typing import IO

import msgspec

from prefect_llm_tiers.core.ports import BatchLine, EncodedLines

__all__ = ["LineForm", "chunks", "spooled"]

_CHUNK_BYTES = 256 * 1024

_BUFFER_BYTES = 32 * 1024
"""Less than a block of encoded lines, which then goes to the file without a copy."""


class LineForm(msgspec.Struct, frozen=True):
    """What stands around custom_id and body in an encoded line.

    A custom_id has no character that JSON would escape. The body goes in as it is: encoding it again would cost
    most of the upload's CPU, and could change what was keyed.
    """

    before: bytes
    middle: bytes
    after: bytes

    def encode(self, line: BatchLine) -> bytes:
        """Return one line."""
        return b"".join((self.before, line.custom_id.encode(), self.middle, line.body, self.after))


async def spooled(
    lines: AsyncIterable[BatchLine], form: LineForm, *, head: bytes = b"", between: bytes = b"", tail: bytes = b""
) -> IO[bytes]:
    """Return an open, unnamed temporary file that holds the encoded lines, at its start.

    On disk, because a batch may have 256 MB and its size must be known before the first byte is sent; without
    a name, so that a process that dies leaves no prompts behind.
    """
    file = tempfile.TemporaryFile(buffering=_BUFFER_BYTES)  # noqa: SIM115 - handed to the caller, who closes it
    try:
        file.write(head)
        written = 0
        if isinstance(lines, EncodedLines):
            async for block in lines.encoded(form.before, form.middle, form.after + between):
                written += file.write(block)
        else:
            async for line in lines:
                written += file.write(form.encode(line) + between)
        if written:
            file.seek(-len(between), os.SEEK_CUR)
            file.truncate()
        file.write(tail)
        # Flushes too: the form encoder takes the length from the descriptor, which does not see the buffer.
        file.seek(0)
    except BaseException:
        file.close()
        raise
    return file


async def chunks(file: IO[bytes]) -> AsyncIterator[bytes]:
    """Yield a file's bytes from its position on, in pieces."""
    while piece := file.read(_CHUNK_BYTES):
        yield piece
