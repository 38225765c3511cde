"""Error responses in the format of OpenAI's API, each with a sentence. Knows what went wrong, not the request."""

import sqlite3

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from mlx_video.errors import DiskFullError, UserError, field_error

KINDS = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}
UNNAMED = "missing", "extra_forbidden"
RAISED = RequestValidationError, HTTPException, UserError, sqlite3.OperationalError


def error_answer(
    status: int, message: str, headers: dict[str, str] | None = None
) -> JSONResponse:
    """An error in OpenAI's format, with a ``message`` for people and a type that follows from ``status``."""
    other = "invalid_request_error" if status < 500 else "server_error"
    kind = KINDS.get(status, other)
    error = {"message": message, "type": kind, "param": None, "code": str(status)}
    return JSONResponse({"error": error}, status, headers)


async def answer(request: Request, error: Exception) -> JSONResponse:
    """One of those that are ``RAISED``, in this format."""
    match error:
        case RequestValidationError():
            found = error.errors()[0]
            fields = " See /docs for the fields." * (found["type"] in UNNAMED)
            return error_answer(400, field_error(found) + fields)
        case UserError():
            full = isinstance(error, DiskFullError)
            return error_answer(507 if full else 400, str(error))
        case sqlite3.OperationalError():
            said = f"Nothing can be written: {error}. Free some space."
            return error_answer(507, said)
    said = str(error.detail)
    if not said.endswith("."):  # not one of ours
        said = {
            404: "There is nothing at this address; see /docs.",
            405: f"This address does not take {request.method[:20]}; see /docs.",
        }.get(error.status_code, f"The request cannot be read: {said}.")
    return error_answer(error.status_code, said, error.headers)
