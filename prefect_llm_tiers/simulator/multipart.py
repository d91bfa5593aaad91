"""A reader of multipart forms that takes the body as it streams in."""

from collections.abc import AsyncIterator
from email.message import Message

import msgspec

__all__ = ["FormPart", "MalformedForm", "read_form"]

_LONGEST_HEAD = 16_384


class MalformedForm(Exception):
    """The body is no multipart form."""


class FormPart(msgspec.Struct):
    """One field of a form.

    Attributes:
        name: The field's name.
        filename: Its file name; None for a plain field.
        content: Its bytes.
    """

    name: str
    filename: str | None
    content: bytearray


async def read_form(content_type: str, chunks: AsyncIterator[bytes], *, most_bytes: int) -> dict[str, FormPart]:
    """Read a form into its fields, the last of one name winning.

    Only the part at hand is kept beside what came last from the wire; content is copied once.

    Raises:
        MalformedForm: No boundary, a head without a name, or an end that never came.
        OverflowError: A part is longer than `most_bytes`.
    """
    boundary = _parameters(content_type, "content-type").get_param("boundary", header="content-type")
    if not isinstance(boundary, str) or not boundary:
        raise MalformedForm("the content type names no boundary")
    mark = b"\r\n--" + boundary.encode("latin-1")
    parts: dict[str, FormPart] = {}
    part: FormPart | None = None
    waiting = bytearray(b"\r\n")  # the first boundary has no line end before it
    in_head = False
    ended = False
    async for chunk in chunks:
        waiting += chunk
        while not ended:
            if in_head:
                end = waiting.find(b"\r\n\r\n")
                if end < 0:
                    if len(waiting) > _LONGEST_HEAD:
                        raise MalformedForm("a part's head does not end")
                    break
                part = _head(bytes(waiting[:end]))
                parts[part.name] = part
                del waiting[: end + 4]
                in_head = False
                continue
            end = waiting.find(mark)
            # What may be the beginning of a boundary stays; two bytes after one tell whether it is the last.
            whole = end >= 0 and len(waiting) >= end + len(mark) + 2
            ready = end if whole else max(0, end if end >= 0 else len(waiting) - len(mark))
            if part is not None:
                part.content += memoryview(waiting)[:ready].tobytes()
                if len(part.content) > most_bytes:
                    raise OverflowError
            del waiting[:ready]
            if not whole:
                break
            ended = waiting[len(mark) : len(mark) + 2] == b"--"
            del waiting[: len(mark)]
            part = None
            in_head = True
    if not ended:
        raise MalformedForm("the closing boundary is missing")
    return parts


def _head(head: bytes) -> FormPart:
    for line in head.decode("utf-8", errors="replace").split("\r\n"):
        field, _, value = line.partition(":")
        if field.strip().lower() == "content-disposition":
            message = _parameters(value.strip(), "content-disposition")
            name = message.get_param("name", header="content-disposition")
            filename = message.get_param("filename", header="content-disposition")
            if isinstance(name, str):
                return FormPart(name, filename if isinstance(filename, str) else None, bytearray())
    raise MalformedForm("a part has no name")


def _parameters(value: str, header: str) -> Message:
    message = Message()
    message[header] = value
    return message
