"""The worker process as the server sees it: one job at a time in, events out. Knows processes, no HTTP and no models.

Both ways a line is one JSON object; ``worker`` says which there are. A worker that dies fails its job and is started again.
"""

import json
import logging
import queue
import signal
import subprocess
import threading
import time
from collections import defaultdict
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from typing import Iterator, Literal, Mapping, Sequence

from mlx_video.serve.schema import Estimate, Model, VideoRequest
from mlx_video.serve.store import Store, Video

log = logging.getLogger(__name__)

Event = Mapping[str, object]

ESTIMATE_SECONDS = 20
DEAF_SECONDS = 1  # a worker that still works this long after an interrupt has missed it
STOP_SECONDS = 20  # from the request to stop until a worker is killed
RESTARTS = 3  # workers in a row that were never ready; then the server gives up
DIED = (
    "The process that makes clips ended in the middle of this one ({reason}). Most often memory ran out: try a smaller "
    "size or fewer frames."
)
NO_WORKER = (
    "The process that makes clips does not start; the server's terminal says why."
)


class Supervisor:
    """Feeds the queue of ``store`` to a worker started by ``command``, and passes on its events.

    models   what the worker said it can make; empty until it is ready
    running  the video that is being made
    trouble  why no worker takes jobs, in a sentence; empty where one does
    """

    def __init__(self, store: Store, command: Sequence[str]):
        self.store, self.command = store, command
        self.models: list[Model] = []
        self.trouble = ""
        self.stopping = self._ready = False
        self._worker: subprocess.Popen | None = None
        self.running: Video | None = None
        self._cancelled = 0.0  # when the worker was last told to stop, if it was
        self._lines: queue.Queue = queue.Queue()  # of JSON, None at the end
        self._listeners: dict[str, set[queue.Queue]] = defaultdict(set)
        self._answers: dict[int, Future] = {}
        self._lock = threading.Condition()  # notified when a job has ended
        self._thread = threading.Thread(target=self._work, name="supervisor")

    def start(self) -> None:
        """Begin to serve the queue, in a thread."""
        self._thread.start()

    def stop(self) -> None:
        """Hand back the running job, to be made again by the next server, and end the worker."""
        self.stopping = True
        if (worker := self._worker) is not None:
            worker.stdin.close()  # which stops the clip that it makes
            try:
                worker.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                worker.kill()
        self._thread.join()

    @property
    def status(self) -> Literal["ok", "starting", "failed"]:
        """``ok`` where a worker takes jobs, ``starting`` until one does, ``failed`` where none could be started."""
        if self._ready:
            return "ok"
        return "starting" if self._thread.is_alive() else "failed"

    def wake(self) -> None:
        """There is something in the queue."""
        self._lines.put('{"event": "woken"}')

    def cancel(self, id: str) -> bool:
        """Stop the job if it is running; returns whether it was."""
        with self._lock:
            if self.running is None or self.running.id != id:
                return False
            self._interrupt()
            return True

    def ended(self, id: str, seconds: float = 15) -> bool:
        """Wait until the job is not running; returns whether it stopped in time."""

        def idle() -> bool:
            return self.running is None or self.running.id != id

        with self._lock:
            return self._lock.wait_for(idle, seconds)

    def _interrupt(self) -> None:
        self._cancelled = time.monotonic()
        self._worker.send_signal(signal.SIGINT)

    def estimate(self, request: VideoRequest) -> Estimate:
        """The memory and time of a run; raises ``TimeoutError`` where the worker does not answer."""
        answer: Future = Future()
        self._answers[id(answer)] = answer
        asked = {"ticket": id(answer), "request": request.model_dump()}
        try:
            self._send({"do": "estimate", **asked})
            found = answer.result(ESTIMATE_SECONDS)
        except (OSError, ValueError):  # closed; TimeoutError is an OSError
            raise TimeoutError from None
        finally:
            del self._answers[id(answer)]
        return Estimate.model_validate(found)

    @contextmanager
    def listening(self, id: str) -> Iterator[queue.Queue]:
        """The events of one video from now on; ``None`` in the queue is the end of them."""
        events: queue.Queue = queue.Queue()
        self._listeners[id].add(events)
        try:
            yield events
        finally:
            self._listeners[id].discard(events)

    # The thread

    def _work(self) -> None:
        failures = 0
        while not self.stopping and failures < RESTARTS:
            made = self._serve_one_worker()
            failures = 0 if made else failures + 1
        if not self.stopping:
            self.models, self.trouble = [], self.trouble or NO_WORKER
            for video in self.store.open():
                self.store.fail(video.id, "no_worker", self.trouble)
                self._tell(video.id, None)

    def _serve_one_worker(self) -> bool:
        """Start a worker and feed it until it ends; returns whether it was ever ready."""
        self._worker = subprocess.Popen(
            self.command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        ready = False
        try:
            for event in self._events():
                if event["event"] == "ready":
                    self.models = [Model.model_validate(m) for m in event["models"]]
                    ready = self._ready = True
                    self.trouble = ""
                elif event["event"] == "trouble":
                    self.trouble = str(event["message"])
                self._hear(event)
                if ready and self.running is None:
                    self._feed()
        finally:
            self._ready = False
            self._worker.wait()
            self._gone()
        return ready

    def _events(self) -> Iterator[Event]:
        """What the worker says, and in between that the queue was woken, until the worker ends."""
        self._lines = lines = queue.Queue()

        def read() -> None:
            for line in self._worker.stdout:
                lines.put(line)
            lines.put(None)

        threading.Thread(target=read, daemon=True).start()
        yield from map(json.loads, iter(lines.get, None))

    def _feed(self) -> None:
        """Give the worker the first job of the queue, unless its clip is there already."""
        while not self.stopping and (video := self.store.next()):
            if self._whole(video):
                self.store.complete(video.id)
                continue
            self.store.start(video.id)
            with self._lock:
                self.running, self._cancelled = self.store.get(video.id), 0.0
            with suppress(OSError, ValueError):  # it has just died, as its end tells
                self._send(self._order(video))
            return

    def _order(self, video: Video) -> Mapping[str, object]:
        """What the worker is told to make, with paths in place of the names of pictures."""
        images = [
            {**image, "path": str(self.store.uploads / image["path"])}
            for image in video.request.get("images", ())
        ]
        request = {**video.request, "images": images}
        output = str(self.store.file(video.id, ".mp4"))
        return {"do": "make", "id": video.id, "request": request, "output": output}

    def _whole(self, video: Video) -> bool:
        """Whether all files are there: then the server was killed before it could write the row."""
        files = (".mp4", ".json", ".webp", ".sheet.webp")
        return all(self.store.file(video.id, suffix).exists() for suffix in files)

    def _hear(self, event: Event) -> None:
        kind, running = event["event"], self.running
        if kind == "estimate":
            if answer := self._answers.get(event["ticket"]):
                answer.set_result(event["estimate"])
        elif running is None or event.get("id") != running.id:
            return
        elif kind == "progress":
            self.store.advance(running.id, str(event["phase"]), int(event["progress"]))
            told = self._cancelled
            if told and time.monotonic() - told > DEAF_SECONDS:
                self._interrupt()  # the first came before the worker had begun
        elif kind == "notice":
            self.store.notice(running.id, str(event["message"]))
        elif kind == "done":
            self.store.complete(running.id)
            self._finish()
        elif kind == "failed":
            self._failed(str(event["code"]), str(event["message"]))
        if running:
            self._tell(running.id, event)

    def _gone(self) -> None:
        """The worker ended; if it was making a clip, that failed."""
        if self.running is not None:
            status = self._worker.returncode
            name = f"signal {-status}" if status < 0 else f"exit code {status}"
            if not (self.stopping or self._cancelled):
                log.warning("A worker died (%s); see --memory-limit.", name)
            self._failed("worker_died", DIED.format(reason=name))

    def _failed(self, code: str, message: str) -> None:
        """The running job ended without a clip, because that was wanted or with a reason."""
        if self._cancelled:
            self.store.fail(self.running.id, "cancelled", "Cancelled.")
        elif self.stopping:
            self.store.requeue(self.running.id)
        else:
            self.store.fail(self.running.id, code, message)
        self._finish()

    def _finish(self) -> None:
        with self._lock:
            id, self.running = self.running.id, None
            self._lock.notify_all()
        self._tell(id, None)

    def _tell(self, id: str, event: Event | None) -> None:
        for listener in list(self._listeners.get(id, ())):
            listener.put(event)

    def _send(self, message: Mapping[str, object]) -> None:
        worker = self._worker
        if worker is None:
            raise OSError("there is no worker")
        with self._lock:
            worker.stdin.write(json.dumps(message) + "\n")
            worker.stdin.flush()
