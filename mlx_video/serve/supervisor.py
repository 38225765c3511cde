"""Runs the worker process: one job at a time in, events out. Knows processes, no HTTP and no models.

Messages are JSON objects, one per line; ``worker`` lists them. If a worker dies, its job fails and a new one is started.
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
from typing import Callable, Iterator, Literal, Mapping, Sequence

from mlx_video.serve.schema import Estimate, Model, VideoRequest
from mlx_video.serve.store import Store, Video

log = logging.getLogger(__name__)

Event = Mapping[str, object]
Listener = Callable[[Event | None], object]

ESTIMATE_SECONDS = 20
DEAF_SECONDS = 1  # a worker still busy this long after an interrupt has missed it
STOP_SECONDS = 20  # until a worker that does not stop is killed
RESTARTS = 3  # workers in a row that never become ready before the server gives up
DIED = (
    "The process that makes clips ended in the middle of this one ({reason}). Most often memory ran out: try a smaller "
    "size or fewer frames."
)
NO_WORKER = (
    "The process that makes clips does not start; the server's terminal says why."
)


class Supervisor:
    """Feeds the queue of ``store`` to a worker started by ``command``, and forwards its events.

    models   of the worker; empty until it is ready
    running  the video that is being made
    trouble  a sentence on why no worker takes jobs; empty if one does
    """

    def __init__(self, store: Store, command: Sequence[str]):
        self.store, self.command = store, command
        self.models: list[Model] = []
        self.trouble = ""
        self.stopping = self._ready = False
        self._worker: subprocess.Popen | None = None
        self.running: Video | None = None
        self._cancelled = 0.0  # when the worker was last interrupted
        self._lines: queue.Queue = queue.Queue()  # of JSON, None at the end
        self._listeners: dict[str, set[Listener]] = defaultdict(set)
        self._answers: dict[int, Future] = {}
        self._lock = threading.Condition()  # notified when a job has ended
        self._thread = threading.Thread(target=self._work, name="supervisor")

    def start(self) -> None:
        """Serve the queue in a thread."""
        self._thread.start()

    def stop(self) -> None:
        """Return the running job to the queue, for the next server, and end the worker."""
        self.stopping = True
        if (worker := self._worker) is not None:
            worker.stdin.close()  # which stops its clip
            try:
                worker.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                worker.kill()
        self._thread.join()

    @property
    def status(self) -> Literal["ok", "starting", "failed"]:
        """``ok`` if a worker takes jobs, ``starting`` until one does, ``failed`` if none could be started."""
        if self._ready:
            return "ok"
        return "starting" if self._thread.is_alive() else "failed"

    def wake(self) -> None:
        """Look at the queue, which has a new job."""
        self._lines.put('{"event": "woken"}')

    def cancel(self, id: str) -> bool:
        """Stop the job if it is running; returns whether it was."""
        with self._lock:
            if makes := self._makes(id):
                self._interrupt()
            return makes

    def ended(self, id: str, seconds: float = 15) -> bool:
        """Wait until the job is not running; returns whether it stopped in time."""
        with self._lock:
            return self._lock.wait_for(lambda: not self._makes(id), seconds)

    def _makes(self, id: str) -> bool:
        return self.running is not None and self.running.id == id

    def _interrupt(self) -> None:
        self._cancelled = time.monotonic()
        self._worker.send_signal(signal.SIGINT)

    def estimate(self, request: VideoRequest) -> Estimate:
        """The memory and time of a run; raises ``TimeoutError`` if the worker does not answer."""
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
    def listening(self, id: str, hear: Listener) -> Iterator[None]:
        """Meanwhile ``hear`` is called, in another thread, with each event of one video; ``None`` ends them."""
        self._listeners[id].add(hear)
        try:
            yield
        finally:
            self._listeners[id].discard(hear)

    # The thread

    def _work(self) -> None:
        failures = 0
        while not self.stopping and failures < RESTARTS:
            made = self._serve_one_worker()
            failures = 0 if made else failures + 1
        if not self.stopping:
            self.models, self.trouble = [], self.trouble or NO_WORKER
            log.error("No clips can be made. %s", self.trouble)
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
        """The worker's events, and those of ``wake``, until the worker ends."""
        self._lines = lines = queue.Queue()

        def read() -> None:
            for line in self._worker.stdout:
                lines.put(line)
            lines.put(None)

        threading.Thread(target=read, daemon=True).start()
        yield from map(json.loads, iter(lines.get, None))

    def _feed(self) -> None:
        """Give the worker the first job in the queue that has no clip yet."""
        while not self.stopping and (video := self.store.next()):
            if self._whole(video):
                self.store.complete(video.id)
                continue
            self.store.start(video.id)
            with self._lock:
                self.running, self._cancelled = self.store.get(video.id), 0.0
            with suppress(OSError, ValueError):  # it has just died, see ``_gone``
                self._send(self._order(video))
            return

    def _order(self, video: Video) -> Mapping[str, object]:
        """The message that makes the worker start a video, with paths for pictures."""
        images = [
            {**image, "path": str(self.store.uploads / image["path"])}
            for image in video.request.get("images", ())
        ]
        request = {**video.request, "images": images}
        output = str(self.store.file(video.id, ".mp4"))
        return {"do": "make", "id": video.id, "request": request, "output": output}

    def _whole(self, video: Video) -> bool:
        """Whether all files exist: a server may have been killed before it could update the row."""
        files = (".mp4", ".json", ".webp", ".sheet.webp")
        return all(self.store.file(video.id, suffix).exists() for suffix in files)

    def _hear(self, event: Event) -> None:
        """Act on an event of the worker; on one of a clip only while that clip is being made."""
        if answer := self._answers.get(event.get("ticket")):
            answer.set_result(event["estimate"])
        running = self.running
        if running is None or event.get("id") != running.id:
            return
        match event["event"]:
            case "progress":
                phase, progress = str(event["phase"]), int(event["progress"])
                self.store.advance(running.id, phase, progress)
                told = self._cancelled
                if told and time.monotonic() - told > DEAF_SECONDS:
                    self._interrupt()  # the first came before the worker had started
            case "notice":
                self.store.notice(running.id, str(event["message"]))
            case "done":
                self.store.complete(running.id)
                self._finish()
            case "failed":
                self._failed(str(event["code"]), str(event["message"]))
        self._tell(running.id, event)

    def _gone(self) -> None:
        """Handle the end of the worker: a clip that it was making has failed."""
        if self.running is not None:
            status = self._worker.returncode
            name = f"signal {-status}" if status < 0 else f"exit code {status}"
            if not (self.stopping or self._cancelled):
                log.warning("A worker died (%s); see --memory-limit.", name)
            self._failed("worker_died", DIED.format(reason=name))

    def _failed(self, code: str, message: str) -> None:
        """End the running job without a clip: cancelled, returned to the queue, or failed."""
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
            listener(event)

    def _send(self, message: Mapping[str, object]) -> None:
        worker = self._worker
        if worker is None:
            raise OSError("there is no worker")
        with self._lock:
            worker.stdin.write(json.dumps(message) + "\n")
            worker.stdin.flush()
