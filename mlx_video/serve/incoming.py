"""Reads a request from JSON or a form, and stores its pictures. Knows no model and no queue."""

import asyncio
import base64
import io
import json
import secrets
import shutil
from pathlib import Path
from typing import BinaryIO

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError

from mlx_video.disk import file_errors
from mlx_video.errors import UserError
from mlx_video.serve.schema import MOST_IMAGES, VideoRequest

Fields = dict[str, object]
FORMS = ("multipart/form-data", "application/x-www-form-urlencoded")
REFERENCE = "input_reference"
DATA = ";base64,"  # between the type and the bytes of a data: URL


async def read_request(request: Request, folder: Path, kept: list[str]) -> VideoRequest:
    """The request in a JSON body or a form; stores its pictures in ``folder`` and adds their names to ``kept``."""
    form = request.headers.get("content-type", "").startswith(FORMS)
    fields, files = await (_form(request) if form else _json(request))
    places = fields.pop("images", [{}] * min(1, len(files)))
    if not isinstance(places, list) or len(places) != len(files):
        raise UserError(
            'images must place each picture: [{"frame": 0}, {"frame": 48, "strength": 0.8}].'
        )
    try:
        wanted = VideoRequest.model_validate({**fields, "images": places})
    except ValidationError as error:
        raise RequestValidationError(error.errors()) from None
    for file in files:
        kept.append(f"picture_{secrets.token_hex(16)}")
        await asyncio.to_thread(_keep, file, folder / kept[-1])
    placed = [
        place.model_copy(update={"path": name})
        for place, name in zip(wanted.images, kept)
    ]
    return wanted.model_copy(update={"images": placed})


async def _form(request: Request) -> tuple[Fields, list[BinaryIO]]:
    form = await request.form(max_files=MOST_IMAGES, max_fields=64)
    fields: Fields = {}
    files = []
    for name, value in form.multi_items():
        if not hasattr(value, "read"):
            fields[name] = value
        elif name.startswith(REFERENCE):
            files.append(value.file)
        else:
            raise UserError(
                f"A file came as {name[:60]!r}; send a picture as {REFERENCE}."
            )
    for name in ("loras", "images"):
        if isinstance(fields.get(name), str):
            fields[name] = _parsed(str(fields[name]), name)
    return fields, files


async def _json(request: Request) -> tuple[Fields, list[BinaryIO]]:
    body = _parsed((await request.body()).decode("utf-8", "replace"), "body")
    if not isinstance(body, dict):
        raise UserError(
            'The body must be a JSON object, such as {"prompt": "a red ball"}.'
        )
    given = body.pop(REFERENCE, None)
    return body, [] if given is None else [_picture(given)]


def _picture(given: object) -> BinaryIO:
    """The bytes of a picture in a JSON body: an object whose ``image_url`` holds them, as in OpenAI's API."""
    address = given.get("image_url") if isinstance(given, dict) else None
    kind, found, data = str(address).partition(DATA)
    try:
        if kind.startswith("data:image/") and found:
            return io.BytesIO(base64.b64decode(data, validate=True))
    except ValueError:
        pass
    raise UserError(
        f'{REFERENCE} must be a file of a form, or {{"image_url": "data:image/png;base64,..."}}; this server downloads '
        "nothing from addresses."
    )


def _parsed(text: str, name: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise UserError(f"The {name} is not valid JSON.") from None


def _keep(file: BinaryIO, path: Path) -> None:
    """Store a picture as ``path``. Raises ``UserError`` if it is not a usable picture."""
    from mlx_video.pictures import read_picture  # imports codecs, rarely needed

    try:
        with file_errors("The picture", "kept"), open(path, "xb") as kept:
            shutil.copyfileobj(file, kept)
        read_picture(path)
    except UserError as error:
        raise type(error)(str(error).replace(str(path), "The picture")) from None
