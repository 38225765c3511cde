"""Decides which requests to answer: by host name, origin, key and size.

A page of another site can make a browser post to this machine, or make its own name resolve to this machine (DNS
rebinding). So a request must use a host name that the server knows, and one from a page must come from the server's own.
"""

import hashlib
import hmac
from dataclasses import dataclass

from starlette.datastructures import MutableHeaders
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mlx_video.serve.refusals import error_answer

COOKIE = "mlx_video_key"


@dataclass(frozen=True)
class Door:
    """``hosts`` are the host names, with port, that the server answers to; all must send ``key``, unless it is empty."""

    hosts: frozenset[str]
    key: str = ""

    def refusal(self, asked: HTTPConnection) -> tuple[int, str] | None:
        """Status and sentence if a request is refused, else ``None``."""
        headers, host = asked.headers, asked.headers.get("host", "").lower()
        if host not in (*self.hosts, _reached(asked)):
            called = "This server does not go by that name; open it by its address."
            return 421, called
        origin = headers.get("origin", f"//{host}").rpartition("//")[2].lower()
        site = headers.get("sec-fetch-site", "none")
        if origin != host or site not in ("none", "same-origin"):
            return 403, "Pages of other sites may not use this server."
        private = asked.scope["path"].startswith(("/v1/", "/openapi"))
        if private and not self._known(asked):
            return 401, "An API key is needed: send it as Authorization: Bearer KEY."
        return None

    def _known(self, asked: HTTPConnection) -> bool:
        given = asked.headers.get("authorization", "").removeprefix("Bearer ")
        cookie = asked.cookies.get(COOKIE, "").encode()
        return self.opens(given) or hmac.compare_digest(cookie, self.token.encode())

    def opens(self, key: str) -> bool:
        """Whether this is the key, compared in constant time; any is if the server has none."""
        given = key.encode(errors="replace")
        return not self.key or hmac.compare_digest(given, self.key.encode())

    @property
    def token(self) -> str:
        """The content of the page's cookie, instead of the key."""
        return hashlib.sha256(self.key.encode()).hexdigest()


def _reached(asked: HTTPConnection) -> str:
    """The address of this machine that a request came to, one of many if the server listens on 0.0.0.0."""
    host, port = asked.scope["server"]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class Guard:
    """ASGI middleware: refuses requests, stops bodies that are too large, and forbids browsers to load other sites' content."""

    HEADERS = {
        "content-security-policy": "default-src 'self'; img-src 'self' blob:; frame-ancestors 'none'; base-uri 'none'",
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "cross-origin-resource-policy": "same-origin",
    }

    def __init__(self, app: ASGIApp, door: Door, body: int):
        self.app, self.door, self.body = app, door, body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        asked = HTTPConnection(scope)
        length = asked.headers.get("content-length", "0")
        if refusal := self.door.refusal(asked) or self._too_large(length):
            return await error_answer(*refusal)(scope, receive, send)

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(self.HEADERS)
            await send(message)

        taken = 0

        async def receive_bounded() -> Message:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > self.body:
                raise _TooLarge
            return message

        try:
            await self.app(scope, receive_bounded, send_guarded)
        except _TooLarge:
            await error_answer(*self._too_large(str(taken)))(scope, receive, send)

    def _too_large(self, length: str) -> tuple[int, str] | None:
        if length.isdecimal() and int(length) <= self.body:
            return None
        return 413, f"That is too large: at most {self.body // 2**20} MiB a request."


class _TooLarge(Exception):
    pass
