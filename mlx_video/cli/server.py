"""The process that answers HTTP until Ctrl-C. Nothing here imports MLX."""

import json
import os
import socket
import sys
from pathlib import Path
from typing import Mapping

from mlx_video.cli import guarded
from mlx_video.cli.terminal import say
from mlx_video.errors import UserError

PORT = 8420
SETTINGS = "MLX_VIDEO_SERVE"  # environment variable set by ``cli.serve``
LOOPBACK = ("127.0.0.1", "localhost", "::1")
STOP_SECONDS = 3  # for open requests to end
IDLE_SECONDS = 75  # before a connection without requests is closed


def listen(settings: Mapping) -> None:
    """Answer until Ctrl-C, which returns the running clip to the queue."""
    import uvicorn

    from mlx_video.serve import Limits
    from mlx_video.serve.app import Serving, make_app
    from mlx_video.serve.guard import Door
    from mlx_video.serve.store import Store
    from mlx_video.serve.supervisor import Supervisor

    host, port = settings["host"], settings["port"]
    listening = _bound(host, port)
    port = listening.getsockname()[1]  # the system's choice for port 0
    store = Store(Path(settings["data"]))
    supervisor = Supervisor(store, settings["worker"])
    limits = Limits(queue=settings["queue"], disk=settings["disk"])
    door = Door(names(host, port), settings["key"])
    app = make_app(Serving(store, supervisor, limits, door))
    say(
        f"MLX-Video is at http://{host}:{port} (Ctrl-C stops it; clips are kept in {store.folder})"
    )
    config = uvicorn.Config(
        app,
        log_level="warning",
        timeout_keep_alive=IDLE_SECONDS,
        timeout_graceful_shutdown=STOP_SECONDS,
    )
    uvicorn.Server(config).run(sockets=[listening])


def _bound(host: str, port: int) -> socket.socket:
    """A listening socket. Raises ``UserError`` if that is impossible."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listening = socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        why = (getattr(error, "strerror", None) or str(error)).lower()
        why = why.partition(" (while")[0].rstrip(".")
        raise UserError(
            f"The server cannot listen on {host}:{port}: {why}. Choose another --port, such as {PORT + 1}."
        ) from None
    # Inherited by connections: a response's body does not wait for its head to be acknowledged.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listening


def names(host: str, port: int) -> frozenset[str]:
    """The host names, with port, that the server answers to."""
    hosts = {host, *(LOOPBACK if host in LOOPBACK else ())}
    bare = {f"[{name}]" if ":" in name else name for name in hosts}
    usual = bare if port == 80 else set()
    return frozenset({f"{name}:{port}" for name in bare} | usual)


def main() -> int:
    """Exit code: 0, or 2 if it cannot listen. Settings are JSON in the environment."""
    settings = json.loads(os.environ.pop(SETTINGS))
    return guarded(lambda: listen(settings))


if __name__ == "__main__":
    sys.exit(main())
