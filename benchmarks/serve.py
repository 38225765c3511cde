"""A server under load, and one that is killed again and again: how quickly it answers, and whether anything is lost.

    python benchmarks/serve.py load [--seconds 60]      # 200 clients poll and 50 create while clips are made
    python benchmarks/serve.py kills [--times 30]       # kill -9 of the server or its worker at random moments

Both start ``mlx-video serve`` with the demo model in a scratch folder. In the first, each client asks once a second, as
the official one does while it waits for a clip. Counted are answers by their status, and clips that began out of turn.
In the second the server is started again after each kill of its own; a clip is lost if it is neither completed nor
failed with the reason that its worker died, or if it was completed and its files are not whole.
"""

import argparse
import asyncio
import json
import os
import random
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from typing import Iterator

import httpx

WORDS = ["-m", "mlx_video", "serve", "--model", "ltx-2-tiny", "--queue", "10000"]
CLIP = {"prompt": "a red ball", "width": 128, "height": 128, "num_frames": 17}
POLL, CREATE = 1.0, 1.0  # seconds between two requests of a client
WISHED = 50  # milliseconds within which 99 of 100 polls are answered
FILES = (".mp4", ".json", ".webp", ".sheet.webp")


class Server:
    """``mlx-video serve`` on a port of its own, over ``folder``."""

    def __init__(self, folder: Path):
        self.folder = folder
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        words = [*WORDS, "--port", str(self.port), "--data", str(self.folder)]
        self.process = subprocess.Popen([sys.executable, *words], stderr=sys.stderr)
        end = time.monotonic() + 120
        while time.monotonic() < end:
            try:
                if httpx.get(f"{self.url}/health").json()["status"] == "ok":
                    return
            except httpx.TransportError:
                time.sleep(0.1)
        raise SystemExit("The server did not come up.")

    @property
    def worker(self) -> int | None:
        """The process that makes the clips."""
        pid = self.process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        for thread in Path(f"/proc/{pid}/task").iterdir():
            children += (thread / "children").read_text().split()
        return int(children[0]) if children else None

    @property
    def cpu(self) -> float:
        """Seconds of CPU that the process which answers has taken."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2]
        user, system = fields.split()[11:13]
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")

    def stop(self) -> None:
        self.process.send_signal(signal.SIGINT)
        self.process.wait()

    def rows(self, columns: str) -> list[tuple]:
        file = f"file:{self.folder}/videos.sqlite?mode=ro"
        with sqlite3.connect(file, uri=True) as rows:
            return rows.execute(
                f"SELECT {columns} FROM videos ORDER BY number"
            ).fetchall()


@contextmanager
def serving() -> Iterator[Server]:
    folder = Path(tempfile.mkdtemp())
    server = Server(folder)
    try:
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder)


# Load


class Client:
    """One connection that stays open and sends the same request again and again.

    It reads only status and length of an answer: the machine is shared with the server that is measured.
    """

    def __init__(self, server: Server, method: str, path: str, body: str = ""):
        self.address = "127.0.0.1", server.port
        self.request = (
            f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n{body}"
        ).encode()

    async def repeat(self, every: float, end: float, taken: list, told: Counter):
        await asyncio.sleep(random.uniform(0, every))  # they do not all come at once
        self.reader, self.writer = await asyncio.open_connection(*self.address)
        while time.monotonic() < end:
            start = time.perf_counter()
            try:
                told[await self._ask()] += 1
            except (OSError, asyncio.IncompleteReadError) as error:
                told[type(error).__name__] += 1
                return
            taken.append(time.perf_counter() - start)
            await asyncio.sleep(every * random.uniform(0.5, 1.5))
        self.writer.close()

    async def _ask(self) -> int:
        self.writer.write(self.request)
        head = (await self.reader.readuntil(b"\r\n\r\n")).lower()
        length = head.partition(b"content-length: ")[2].partition(b"\r\n")[0]
        await self.reader.readexactly(int(length))
        return int(head[9:12])


async def crowd(server: Server, seconds: float) -> None:
    polls, creations, polled, created = [], [], Counter(), Counter()
    body = json.dumps(CLIP)
    ids = [
        httpx.post(f"{server.url}/v1/videos", json=CLIP).json()["id"] for _ in range(4)
    ]
    pollers = [
        Client(server, "GET", f"/v1/videos/{random.choice(ids)}") for _ in range(200)
    ]
    creators = [Client(server, "POST", "/v1/videos", body) for _ in range(50)]
    end, before = time.monotonic() + seconds, server.cpu
    await asyncio.gather(
        *(c.repeat(POLL, end, polls, polled) for c in pollers),
        *(c.repeat(CREATE, end, creations, created) for c in creators),
    )
    spent, count = server.cpu - before, len(polls) + len(creations)
    print(
        "| request | count | p50 ms | p99 ms | slowest ms | answers |\n|---|---|---|---|---|---|"
    )
    for name, taken, told in (("poll", polls, polled), ("create", creations, created)):
        p50, p99 = (1000 * quantile(taken, share) for share in (0.5, 0.99))
        print(
            f"| {name} | {len(taken)} | {p50:.1f} | {p99:.1f} | {1000 * max(taken):.1f} | {dict(told)} |"
        )
    begun = [at for (at,) in server.rows("started_at") if at is not None]
    late = sum(a > b for a, b in zip(begun, begun[1:]))
    print(f"\nThe server took {1000 * spent / count:.2f} ms of CPU a request.")
    print(f"{len(begun)} clips begun, {late} out of turn.")
    held = 1000 * quantile(polls, 0.99) < WISHED
    print(f"99 of 100 polls within {WISHED} ms: {'yes' if held else 'NO'}.")


def quantile(taken: list[float], share: float) -> float:
    return sorted(taken)[int(len(taken) * share)]


# Kills


def kills(server: Server, times: int) -> None:
    killed, asked, interrupted = Counter(), [], set()
    for number in range(times):
        while (
            sum(
                status in ("queued", "in_progress")
                for (status,) in server.rows("status")
            )
            < 3
        ):
            asked.append(httpx.post(f"{server.url}/v1/videos", json=CLIP).json()["id"])
        time.sleep(random.uniform(0.05, 8))
        worker = server.worker
        if number % 3 == 2 and worker:
            os.kill(worker, signal.SIGKILL)
            killed["worker"] += 1
            continue
        running = server.rows("id, status")
        interrupted |= {id for id, status in running if status == "in_progress"}
        server.process.kill()
        server.process.wait()
        killed["server"] += 1
        server.start()
    end = time.monotonic() + 600
    while time.monotonic() < end:
        states = dict(server.rows("id, status"))
        if not {"queued", "in_progress"} & set(states.values()):
            break
        time.sleep(0.2)
    told = Counter(server.rows("status, error_code"))
    halves = [
        id
        for id in asked
        if states.get(id) == "completed"
        and not all(
            (server.folder / "clips" / f"{id}{suffix}").exists() for suffix in FILES
        )
    ]
    lost = [id for id in asked if states.get(id) not in ("completed", "failed")]
    print(f"{dict(killed)} killed; {len(asked)} clips asked for.")
    for (status, code), count in sorted(told.items(), key=str):
        print(f"  {count} {status}{f' ({code})' if code else ''}")
    again = [id for id in interrupted if states[id] == "completed"]
    print(
        f"{len(interrupted)} were being made when the server was killed; {len(again)} of them were completed by the next."
    )
    print(f"Lost: {len(lost)}. Completed without all files: {len(halves)}.")
    left = [
        f.name
        for f in (server.folder / "clips").iterdir()
        if not f.name.endswith(FILES)
    ]
    print(f"Left over: {left or 'nothing'}.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("load", "kills"))
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--times", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    args = parser.parse_args()
    random.seed(args.seed)
    with serving() as server:
        if args.what == "load":
            asyncio.run(crowd(server, args.seconds))
        else:
            kills(server, args.times)


if __name__ == "__main__":
    main()
