"""The process that owns the device, the only part of the server with models. Reads jobs and writes events, one per line.

In   {"do": "make", "id", "request", "output"}   {"do": "estimate", "ticket", "request"}
Out  {"event": "ready", "models"}   {"event": "trouble", "message"}   {"event": "progress", "id", "phase", "progress"}
     {"event": "preview", "id", "number"}   {"event": "notice", "id", "message"}
     {"event": "done", "id"}   {"event": "failed", "id", "code", "message"}
     {"event": "estimate", "ticket", "estimate"}

An interrupt (SIGINT) stops the current clip. The end of the input does so too, and ends the worker: so a worker whose
server was killed ends, and the next server's worker waits for that.
"""

import fcntl
import json
import logging
import os
import queue
import re
import signal
import sys
import threading
import traceback
from contextlib import closing, suppress
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from select import select
from typing import Iterator, Mapping

from mlx_video.background import Background
from mlx_video.clip_settings import ClipSettings, Notice
from mlx_video.errors import DiskFullError, UserError
from mlx_video.events import Event, Planned, Warned
from mlx_video.health import HealthError
from mlx_video.hub import Download, DownloadPlan, Notify
from mlx_video.media import save_still, save_stills
from mlx_video.models.ltx.checkpoint.files import Files
from mlx_video.models.ltx.checkpoint.standins import stood_in
from mlx_video.models.ltx.loading.components import notify_log
from mlx_video.models.ltx.loading.residency import Shelf
from mlx_video.output import Output
from mlx_video.previews import Preview
from mlx_video.recipes import Defaults
from mlx_video.record import Job
from mlx_video.run import Options, finish, run
from mlx_video.serve import Limits
from mlx_video.serve.schema import RECIPES, Estimate, Model, VideoRequest
from mlx_video.types import Step

log = logging.getLogger(__name__)

# Fields with the same name in a request and in ``ClipSettings``.
ALIKE = {field.name for field in fields(ClipSettings)} & {*VideoRequest.model_fields}
# Percent of a run that count as done before sampling begins, and when it does.
PREPARING, SAMPLING = 5, 10
FAULT = "This is a fault of mlx-video, not of what you asked for: {error}. The server's terminal has the details; please report them."
MORE = "The server's terminal says what may help."
UPLOAD = r"\S*picture_[0-9a-f]{32}"  # as ``incoming`` names them
TYPED = re.compile(r"(?<!\w)--[a-z]|`")  # an option or a command


@dataclass(frozen=True)
class Settings:
    """What the worker may use: models and LoRAs by name, bytes of memory (``None`` = the machine's).

    keep  whether models stay loaded between clips, if memory allows; they are freed after ``idle`` seconds
    lock  a file that a folder's only worker locks; empty = none
    """

    models: Mapping[str, str]
    loras: Mapping[str, str]
    memory_limit: float | None = None
    previews: bool = True
    keep: bool = True
    idle: float = Limits.idle
    lock: str = ""

    def job(self, request: VideoRequest, warn: Notice = lambda text: None) -> Job:
        """The job for a fully decided request. Raises ``UserError``."""
        variant, two_stage = RECIPES[request.recipe]
        settings = ClipSettings(
            **request.model_dump(include=ALIKE),
            variant=variant,
            two_stage=two_stage,
            frames=request.num_frames,
            audio=request.generate_sound,
            inputs=request.inputs,
        )
        loras = tuple((self.loras[name], s) for name, s in request.loras.items())
        return settings.job(Files(self.models[request.model], loras=loras), warn=warn)

    def described(self, name: str, notify: Notify = notify_log) -> Model:
        """A model's defaults and grid. Raises ``UserError`` if it cannot be opened."""
        job = ClipSettings("a clip").job(Files(self.models[name]))
        shape, geometry = job.request.shape, job.components(notify).geometry
        grids = {
            name: geometry.grid(Defaults().recipe(*how).shrink)
            for name, how in RECIPES.items()
        }
        steps = {name: (grid.width, grid.height) for name, grid in grids.items()}
        width_step, height_step = max(steps.values())
        whole = geometry.grid()
        return Model(
            id=name,
            width=shape.width,
            height=shape.height,
            num_frames=shape.frames,
            fps=shape.fps,
            generate_sound=job.request.audio,
            width_step=width_step,
            height_step=height_step,
            frame_step=whole.time,
            recipes=list(RECIPES),
            steps=steps,
            least=(whole.least_width, whole.least_height),
            loras=list(self.loras),
        )


class Worker:
    """Carries out messages: one clip at a time, and estimates meanwhile."""

    def __init__(self, settings: Settings, out: int):
        self.settings = settings
        self._out, self._writing = out, threading.Lock()
        self._jobs: queue.Queue = queue.Queue()
        self.shelf = Shelf()
        self._making = False

    def work(self) -> None:
        """Work until the input ends."""
        names, opening = self.settings.models, self._opening
        try:
            models = [self.settings.described(name, opening) for name in names]
        except UserError as error:
            return self._say("trouble", message=_told(str(error)))
        except KeyboardInterrupt:
            return
        self._say("ready", models=[model.model_dump() for model in models])
        threading.Thread(target=self._listen, daemon=True).start()
        while (message := self._next()) is not None:
            self._making = True
            self._make(message)
            self._making = False

    def _opening(self, what: DownloadPlan | Download) -> None:
        """Report downloads before models are ready. Raises ``KeyboardInterrupt`` if the server is gone."""
        notify_log(what)
        ended = isinstance(what, Download) and what.ended
        self._say("trouble", message="" if ended else f"Downloading {what}.")
        if select([sys.stdin], [], [], 0)[0]:  # so early, only its end can come
            raise KeyboardInterrupt

    def _fetching(self, id: str, what: DownloadPlan | Download) -> None:
        notify_log(what)
        if isinstance(what, DownloadPlan):
            self._notice(id, f"Downloading {what}.")

    def _next(self) -> Mapping | None:
        idle = min(self.settings.idle, threading.TIMEOUT_MAX)
        while True:
            try:
                return self._jobs.get(timeout=idle if self.shelf.names else None)
            except KeyboardInterrupt:  # the clip to stop is done already
                continue
            except queue.Empty:
                self.shelf.clear()

    def _listen(self) -> None:
        for line in sys.stdin:
            message = json.loads(line)
            if message["do"] == "make":
                self._jobs.put(message)
            else:
                found = self._estimate(message["request"]).model_dump()
                self._say("estimate", ticket=message["ticket"], estimate=found)
        self._jobs.put(None)
        if self._making:
            os.kill(os.getpid(), signal.SIGINT)

    def _estimate(self, request: Mapping) -> Estimate:
        try:
            asked = VideoRequest.model_validate({**request, "seed": 0})
            job = self.settings.job(asked)
            job.check()
            with stood_in(job.files, job.recipe.variant) as files:
                job = replace(job, files=files)
                plan = job.plan(limit=self.settings.memory_limit)
        except UserError as error:
            refusal = for_client(str(error))
            return Estimate(peak_bytes=0, limit_bytes=0, refusal=refusal)
        return Estimate(
            peak_bytes=round(plan.largest.peak),
            limit_bytes=round(plan.limit),
            seconds=sum(phase.seconds or 0 for phase in plan.phases) or None,
            refusal=for_client(plan.refusal),
        )

    def _make(self, message: Mapping) -> None:
        id, path = message["id"], Path(message["output"])
        try:
            request = VideoRequest.model_validate(message["request"])
            events = self._events(id, request, path)
            with closing(events), Background() as background:
                for event in self._heard(id, events):
                    if isinstance(event, Preview):
                        background(self._show, id, event, path)
            save_stills(path)
            path.with_suffix(".preview.jpg").unlink(missing_ok=True)
        except (KeyboardInterrupt, Exception) as error:
            code, text = _ending(error)
            self._say("failed", id=id, code=code, message=_told(text))
        else:
            self._say("done", id=id)

    def _events(self, id: str, request: VideoRequest, path: Path) -> Iterator[Event]:
        """The events of a request's run, which continues an interrupted one."""
        output = Output(path, overwrite=True)
        options = Options(
            memory_limit=self.settings.memory_limit,
            previews=self.settings.previews,
            shelf=self.shelf if self.settings.keep else None,
            notify=partial(self._fetching, id),
        )
        if (latents := output.latents).exists():
            return finish(Job.from_record(latents), latents, output, options)
        if (state := output.state).exists():
            going_on = replace(options, resume=state)
            return run(Job.from_record(state), output, going_on)
        warn = partial(self._notice, id)
        return run(self.settings.job(request, warn), output, options)

    def _heard(self, id: str, events: Iterator[Event]) -> Iterator[Event]:
        """``events``, reported to the server as they pass."""
        planned, percent = None, PREPARING
        for event in events:
            match event:
                case Planned():
                    planned = event
                case Warned(text=text):
                    self._notice(id, text)
                case Step(phase=phase):
                    if planned and (done := planned.done(event)) is not None:
                        percent = SAMPLING + int((99 - SAMPLING) * done)
                    self._say("progress", id=id, phase=phase, progress=percent)
            yield event

    def _notice(self, id: str, text: str) -> None:
        self._say("notice", id=id, message=for_client(text))

    def _show(self, id: str, preview: Preview, clip: Path) -> None:
        """Replace the preview of the clip; on a full disk there is none."""
        with suppress(UserError):
            save_still(preview.picture, clip.with_suffix(".preview.jpg"))
            self._say("preview", id=id, number=100 * preview.stage + preview.step)

    def _say(self, event: str, **fields) -> None:
        line = json.dumps({"event": event, **fields}) + "\n"
        with self._writing, suppress(BrokenPipeError):  # the server may be gone
            os.write(self._out, line.encode())


def _ending(error: BaseException) -> tuple[str, str]:
    """Why a clip failed: a word for programs, and a sentence."""
    match error:
        case KeyboardInterrupt():
            return "stopped", "It was stopped."
        case DiskFullError():
            return "disk_full", str(error)
        case UserError():
            return "bad_input", str(error)
        case HealthError():
            return "bad_output", str(error)
        case MemoryError():
            return "out_of_memory", f"Memory ran out: {error}"
    traceback.print_exception(error)
    return "fault", FAULT.format(error=error)


def _told(text: str) -> str:
    """``text`` for a client; if it names options or commands, all of it goes to the terminal."""
    if not TYPED.search(text):
        return for_client(text)
    log.warning(text)
    return f"{for_client(text)} {MORE}"


def for_client(text: str) -> str:
    """``text`` without sentences on options and commands, which a page cannot use, and without names of uploads."""
    text = re.sub(r"(^|(?<=\. ))" + UPLOAD, "The picture", text)
    text = re.sub(UPLOAD, "the picture", text)
    sentences = re.split(r"(?<=\.) (?=[A-Z])", text)
    return " ".join(s for s in sentences if not TYPED.search(s)) or text


def main() -> None:
    """Started by ``Supervisor`` with the settings as one argument of JSON."""
    # A server in the background (nohup, a script's &) ignores interrupts, and so would its children.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    out = os.dup(1)
    os.dup2(2, 1)  # output of libraries must not mix with messages
    settings = Settings(**json.loads(sys.argv[1]))
    if settings.lock:
        held = open(settings.lock, "w")  # until the process ends
        fcntl.flock(held, fcntl.LOCK_EX)
    Worker(settings, out).work()


if __name__ == "__main__":
    main()
