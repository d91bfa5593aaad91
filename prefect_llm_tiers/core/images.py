"""An image in a prompt."""

import msgspec

from prefect_llm_tiers.errors import InputError

__all__ = ["Image"]

_MAGIC = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF87a", "image/gif"),
    (b"GIF89a", "image/gif"),
)
_RIFF, _WEBP = b"RIFF", b"WEBP"


class Image(msgspec.Struct, frozen=True, kw_only=True):
    """An image as a part of a message's content, by URL or by its bytes, in whatever dialect it is asked.

    Attributes:
        url: Where the provider fetches it.
        data: The image itself.
        media_type: Of the data, as `image/png`; by default what its first bytes tell.
        detail: How closely OpenAI looks, as `low`; other services have no such thing.

    Raises:
        InputError: It has neither a URL nor data, or both, or its data is of no kind that is known.

    Example:
        ```python
        [{"role": "user", "content": ["What is wrong with this valve?", Image(data=photo)]}]
        ```
    """

    url: str | None = None
    data: bytes | None = None
    media_type: str | None = None
    detail: str | None = None

    def __post_init__(self) -> None:
        if (self.url is None) == (self.data is None):
            msg = "An Image has a url or data, and not both. Give one of them."
            raise InputError(msg)
        if self.data is not None:
            self.kind()

    def kind(self) -> str:
        """Return the media type of the data."""
        data = self.data or b""
        told = self.media_type or next((kind for start, kind in _MAGIC if data.startswith(start)), None)
        if told is None and data[:4] == _RIFF and data[8:12] == _WEBP:
            told = "image/webp"
        if told is None:
            msg = (
                f"An Image of {len(data):,} bytes is no PNG, JPEG, GIF or WebP. Give its media_type= if the provider "
                "takes it all the same."
            )
            raise InputError(msg)
        return told

    def __repr__(self) -> str:
        return "Image(url=...)" if self.data is None else f"Image({len(self.data):,} bytes)"
