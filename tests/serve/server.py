"""A server on loopback for the tests, with a worker that makes no clips."""

import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import uvicorn

from mlx_video.serve import Limits
from mlx_video.serve.app import Serving, make_app
from mlx_video.serve.guard import Door
from mlx_video.serve.store import Store
from mlx_video.serve.supervisor import Supervisor

FAKE = (sys.executable, str(Path(__file__).with_name("fake_worker.py")))
LIMITS = Limits()
SECONDS = 60  # that anything may take here, on a busy machine


@dataclass
class Running:
    """A server that answers at ``url``; ``http`` talks to it as its own page would."""

    url: str
    http: httpx.Client
    store: Store

    def wait(self, id: str, *statuses: str) -> dict:
        """The video once it has one of these statuses."""
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            video = self.http.get(f"/v1/videos/{id}").json()
            if video["status"] in statuses:
                return video
            time.sleep(0.02)
        raise AssertionError(f"{id} is {video['status']} after {SECONDS} s")

    def make(self, prompt: str, **fields) -> dict:
        """The video of a new request, completed."""
        answer = self.http.post("/v1/videos", json={"prompt": prompt, **fields})
        assert answer.status_code == 200, answer.text
        return self.wait(answer.json()["id"], "completed")


@contextmanager
def serving(
    folder: Path,
    *,
    key: str = "",
    limits: Limits = LIMITS,
    worker: Sequence[str] = FAKE,
    ready: str = "ok",
) -> Iterator[Running]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        host = f"127.0.0.1:{listening.getsockname()[1]}"
        store = Store(folder)
        door = Door(frozenset({host}), key)
        app = make_app(Serving(store, Supervisor(store, worker), limits, door))
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        try:
            with httpx.Client(
                base_url=f"http://{host}", headers=headers, timeout=SECONDS
            ) as http:
                end = time.monotonic() + SECONDS
                while time.monotonic() < end:
                    try:
                        if http.get("/health").json()["status"] == ready:
                            break
                    except httpx.TransportError:
                        pass
                    time.sleep(0.02)
                yield Running(f"http://{host}", http, store)
        finally:
            server.should_exit = True
            thread.join()


def message(answer: httpx.Response) -> str:
    """The sentence of a refusal."""
    return answer.json()["error"]["message"]
