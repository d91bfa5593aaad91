"""OpenAI's files: uploads for batches, and the result files that batches write."""

from datetime import timedelta
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from prefect_llm_tiers.simulator.batches import Batch
from prefect_llm_tiers.simulator.broken import bad_gateway
from prefect_llm_tiers.simulator.downloads import download
from prefect_llm_tiers.simulator.multipart import MalformedForm, read_form
from prefect_llm_tiers.simulator.openai_batches import batch_object, result_lines
from prefect_llm_tiers.simulator.openai_errors import DIALECT, openai_error, server_error
from prefect_llm_tiers.simulator.wire import json_response
from prefect_llm_tiers.simulator.world import World

__all__ = ["OpenAIFiles", "StoredFile"]

_LONGEST_FILE = 512 * 1024 * 1024
_BATCH_FILE_LIFE = timedelta(days=30)
_MEDIA_TYPE = "application/octet-stream"


class StoredFile(msgspec.Struct, frozen=True, kw_only=True):
    """A file as it was uploaded; times in Unix seconds."""

    id: str
    name: str
    content: bytes
    created: int
    expires: int


class OpenAIFiles:
    """The files of the account. Result files are written when they are read, from the batch itself."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._files: dict[str, StoredFile] = {}

    def uploaded(self, file_id: object) -> StoredFile | None:
        """Return an upload that has not expired."""
        with self._world.lock:
            file = self._files.get(file_id) if isinstance(file_id, str) else None
            if file is None or self._world.clock.now().timestamp() >= file.expires:
                return None
            return file

    async def upload(self, request: Request) -> Response:
        """Take a batch's input file."""
        try:
            form = await read_form(request.headers.get("content-type", ""), request.stream(), most_bytes=_LONGEST_FILE)
        except MalformedForm as error:
            raise openai_error(400, f"Could not parse multipart form: {error}.") from error
        except OverflowError:
            raise openai_error(413, "The file exceeds the limit of 512 MB.") from None
        purpose, part = form.get("purpose"), form.get("file")
        if purpose is None or part is None or part.filename is None:
            missing = "purpose" if purpose is None else "file"
            raise openai_error(400, f"'{missing}' is a required property", param=missing)
        if bytes(purpose.content) != b"batch":
            raise openai_error(400, "The simulator takes files for batches only: use purpose 'batch'.", param="purpose")
        if not part.filename.endswith(".jsonl"):
            raise openai_error(400, "Invalid file format for Batch API. Must be .jsonl", param="file")
        lifetime = _BATCH_FILE_LIFE
        if "expires_after[seconds]" in form:
            lifetime = _lifetime(bytes(form["expires_after[seconds]"].content))
        world = self._world
        with world.lock:
            now = world.clock.now()
            fault = self._fault(bytes(part.content))
            if fault == "upload_502_untaken":
                return bad_gateway()
            file = StoredFile(
                id=world.new_id("file-"),
                name=part.filename,
                content=bytes(part.content),
                created=int(now.timestamp()),
                expires=int((now + lifetime).timestamp()),
            )
            self._files[file.id] = file
            world.books.files_uploaded += 1
        return bad_gateway() if fault else json_response(_upload_object(file))

    def _fault(self, content: bytes) -> str | None:
        """Return the fault that strikes an upload of this content; the world's lock is held."""
        names = ("upload_502_untaken", "upload_502_taken")
        if not self._world.draws.any_of(*names):
            return None
        # By the length, because custom_ids in the content may differ from run to run, though not in length.
        return self._world.draws.first_of(names, len(content), self._world.look_at_page(f"upload:{len(content)}"))

    async def retrieve(self, request: Request) -> Response:
        """Describe an upload or a result file."""
        name = request.path_params["id"]
        if (file := self.uploaded(name)) is not None:
            return json_response(_upload_object(file))
        batch, errors = self._result(name)
        ended_at = batch.created_at if batch.life is None else batch.life.end[0]
        lifetime_s = batch.sheet["output_expires_s"]
        created = int(ended_at.timestamp())
        kind = "error" if errors else "output"
        size = sum(map(len, result_lines(self._world, batch, errors=errors)))
        return json_response(
            {
                **_file_object(name, f"{batch.id}_{kind}.jsonl", "batch_output", size, created),
                "expires_at": None if lifetime_s is None else created + lifetime_s,
            }
        )

    async def content(self, request: Request) -> Response:
        """Return an upload, or write a result file."""
        name = request.path_params["id"]
        if (file := self.uploaded(name)) is not None:
            return Response(file.content, media_type=_MEDIA_TYPE)
        batch, errors = self._result(name)
        return download(
            self._world,
            request,
            batch,
            result_lines(self._world, batch, errors=errors),
            file="errors" if errors else "output",
            media_type=_MEDIA_TYPE,
            otherwise=server_error(),
        )

    async def delete(self, request: Request) -> Response:
        """Delete an upload or a result file; a batch that was taken keeps what it read."""
        name = request.path_params["id"]
        with self._world.lock:
            if self._files.pop(name, None) is None:
                batch, errors = self._result(name)
                batch.sheet.setdefault("deleted", set()).add(errors)
        return json_response({"id": name, "object": "file", "deleted": True})

    def _result(self, name: str) -> tuple[Batch, bool]:
        """Return the batch whose result file this is, and whether it is the error file."""
        world = self._world
        with world.lock:
            for listed in world.batches(DIALECT):
                for field, errors in (("output_file_id", False), ("error_file_id", True)):
                    if listed.sheet.get(field) != name:
                        continue
                    batch = world.batch(DIALECT, listed.id)
                    if batch is not None and not self._is_gone(batch, field, errors=errors):
                        return batch, errors
        raise openai_error(404, f"No such File object: {name}", param="id")

    def _is_gone(self, batch: Batch, field: str, *, errors: bool) -> bool:
        """Tell whether a result file is not there: not yet, deleted, or expired."""
        if batch_object(self._world, batch)[field] is None or errors in batch.sheet.get("deleted", ()):
            return True
        lifetime_s = batch.sheet["output_expires_s"]
        if lifetime_s is None or batch.life is None:
            return False
        return self._world.clock.now() >= batch.life.end[0] + timedelta(seconds=lifetime_s)


def _upload_object(file: StoredFile) -> dict[str, Any]:
    return {
        **_file_object(file.id, file.name, "batch", len(file.content), file.created),
        "expires_at": file.expires,
    }


def _file_object(file_id: str, name: str, purpose: str, size: int, created: int) -> dict[str, Any]:
    return {
        "id": file_id,
        "object": "file",
        "bytes": size,
        "created_at": created,
        "filename": name,
        "purpose": purpose,
        "status": "processed",
        "status_details": None,
    }


def _lifetime(digits: bytes) -> timedelta:
    if not digits.isdigit() or not 3600 <= int(digits) <= 2_592_000:
        raise openai_error(
            400,
            "Invalid 'expires_after.seconds': expected an integer between 3600 and 2592000.",
            param="expires_after.seconds",
            code="invalid_value",
        )
    return timedelta(seconds=int(digits))
