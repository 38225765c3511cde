"""Who may talk to the server: by the name they call it, the page they come from, their key and the size of what they send.

A page of another site can make a browser post to this machine, or rename this machine's address to its own (DNS rebinding).
So a request must call the server by a name it knows, and one that a page sends must come from the server's own page.
"""

import hashlib
import hmac
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mlx_video.serve.refusals import error_answer

COOKIE = "mlx_video_key"


@dataclass(frozen=True)
class Door:
    """``hosts`` are the names with port that the server answers to; everybody must send ``key``, unless it is empty."""

    hosts: frozenset[str]
    key: str = ""

    def refusal(self, headers: dict[str, str], path: str) -> tuple[int, str] | None:
        """Status and sentence where a request is refused, else ``None``."""
        host = headers.get("host", "").lower()
        if host not in self.hosts:
            return (
                421,
                "This server does not go by that name; open it by the address it printed.",
            )
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc.lower() != host:
            return 403, "Pages of other sites may not use this server."
        if headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
            return 403, "Pages of other sites may not use this server."
        if path.startswith(("/v1/", "/openapi")) and not self._known(headers):
            return 401, "An API key is needed: send it as Authorization: Bearer KEY."
        return None

    def _known(self, headers: dict[str, str]) -> bool:
        given = headers.get("authorization", "").removeprefix("Bearer ")
        cookies = dict(
            c.strip().partition("=")[::2] for c in headers.get("cookie", "").split(";")
        )
        cookie = cookies.get(COOKIE, "").encode()
        return self.opens(given) or hmac.compare_digest(cookie, self.token.encode())

    def opens(self, key: str) -> bool:
        """Whether this is the key, compared in constant time; any key is right where the server has none."""
        given = key.encode(errors="replace")
        return not self.key or hmac.compare_digest(given, self.key.encode())

    @property
    def token(self) -> str:
        """What the page's cookie holds instead of the key."""
        return hashlib.sha256(self.key.encode()).hexdigest()


class Guard:
    """ASGI middleware: refuse at the door, stop bodies that grow too large, and tell browsers to load nothing from elsewhere."""

    HEADERS = [
        (
            b"content-security-policy",
            b"default-src 'self'; img-src 'self' blob:; frame-ancestors 'none'; base-uri 'none'",
        ),
        (b"x-content-type-options", b"nosniff"),
        (b"referrer-policy", b"no-referrer"),
        (b"cross-origin-resource-policy", b"same-origin"),
    ]

    def __init__(self, app: ASGIApp, door: Door, body: int):
        self.app, self.door, self.body = app, door, body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        headers = {
            k.decode("latin-1").lower(): v.decode("latin-1")
            for k, v in scope["headers"]
        }
        refusal = self.door.refusal(headers, scope["path"]) or self._too_large(headers)
        if refusal:
            return await error_answer(*refusal)(scope, receive, send)

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *self.HEADERS]
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
            too_large = self._too_large({"content-length": str(taken)})
            await error_answer(*too_large)(scope, receive, send)

    def _too_large(self, headers: dict[str, str]) -> tuple[int, str] | None:
        length = headers.get("content-length", "0")
        if not length.isdigit() or int(length) > self.body:
            return (
                413,
                f"That is too large: at most {self.body // 2**20} MiB a request.",
            )
        return None


class _TooLarge(Exception):
    pass
