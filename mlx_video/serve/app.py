"""HTTP: OpenAI's Videos API, server-sent events, and the page. Knows requests and responses; models are in the worker.

https://platform.openai.com/docs/api-reference/videos
"""

import asyncio
import json
import secrets
import shutil
import time
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, AsyncIterator, Container, Literal, NamedTuple

from fastapi import APIRouter, Body, Depends, FastAPI, Query, Request
from fastapi.responses import FileResponse, JSONResponse, Response, StreamingResponse
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException

from mlx_video import __version__
from mlx_video.disk import amount
from mlx_video.errors import UserError
from mlx_video.serve import Limits, guard, refusals, schema
from mlx_video.serve.incoming import read_request
from mlx_video.serve.store import ENDED, OPEN, Store, Video
from mlx_video.serve.supervisor import Supervisor

PAGE = Path(__file__).parent / "page"
WRONG_KEY_SECONDS = 1.0  # before a wrong key is answered
STILL_SECONDS = 5  # without events before a line says that the stream goes on
POLL_AFTER_MS = "1000"  # between two polls of the official client
CONTENT = {
    "video": (".mp4", "video/mp4"),
    "thumbnail": (".webp", "image/webp"),
    "spritesheet": (".sheet.webp", "image/webp"),
}
UNKEPT = {"Cache-Control": "no-store"}
SOON = {"Retry-After": "2"}
PREVIEW = ".preview.jpg"
UNSUPPORTED = "This version cannot extend or edit a video yet. Make a new one, or remix one with another prompt."


class Serving(NamedTuple):
    """What the routes need; ``door`` decides whose requests are answered."""

    store: Store
    supervisor: Supervisor
    limits: Limits
    door: guard.Door


async def serving(request: Request) -> Serving:
    """The store, worker and limits of the application that received a request."""
    return request.app.state.serving


At = Annotated[Serving, Depends(serving)]
router = APIRouter()


def make_app(at: Serving) -> FastAPI:
    """The application for a store and its supervisor."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        at.supervisor.start()
        yield
        await asyncio.to_thread(at.supervisor.stop)
        at.store.close()

    about = {"title": "MLX-Video", "version": __version__}
    pages = {"docs_url": None, "redoc_url": None}
    handlers = dict.fromkeys(refusals.RAISED, refusals.answer)
    app = FastAPI(**about, **pages, lifespan=lifespan, exception_handlers=handlers)
    app.add_middleware(guard.Guard, door=at.door, body=at.limits.body)
    app.state.serving = at
    app.include_router(router)
    app.mount("/", StaticFiles(directory=PAGE, html=True))
    return app


# Videos


# Most requests are polls. For speed this route comes first, since routes are tried in order, and has no dependencies.
@router.get("/v1/videos/{id}", response_model=schema.VideoObject)
async def retrieve(id: str, request: Request) -> Response:
    """One video in its current state; 404 if there is none."""
    at = request.app.state.serving
    return _shown(at, _found(at, id))


@router.post("/v1/videos", response_model=schema.VideoObject)
async def create(request: Request, at: At) -> Response:
    """Queue a clip: JSON, or a form whose ``input_reference`` is a picture for the first frame."""
    kept: list[str] = []
    try:
        wanted = await read_request(request, at.store.uploads, kept)
        return await asyncio.to_thread(_queued, at, wanted)
    except BaseException:
        for name in kept:
            (at.store.uploads / name).unlink(missing_ok=True)
        raise


@router.get("/v1/videos")
async def list_videos(
    at: At,
    limit: int = Query(20, ge=1, le=100),
    after: str | None = Query(None, max_length=100),
    order: Literal["asc", "desc"] = "desc",
) -> schema.VideoPage:
    """A page of at most ``limit`` videos, newest first; ``after`` is the id of the last one seen."""
    edge = None if after is None else _found(at, after)
    videos = at.store.page(limit + 1, edge, order == "desc")
    data = [schema.VideoObject.of(v, at.store.place(v)) for v in videos[:limit]]
    return schema.VideoPage(
        data=data,
        first_id=data[0].id if data else None,
        last_id=data[-1].id if data else None,
        has_more=len(videos) > limit,
    )


@router.get("/v1/videos/{id}/content")
def content(
    id: str, at: At, variant: Literal["video", "thumbnail", "spritesheet"] = "video"
) -> Response:
    """The clip, its picture or its contact sheet; 409 before it is completed."""
    _found(at, id, ("completed",), "its content comes when it is completed")
    suffix, kind = CONTENT[variant]
    shown = {"filename": f"{id}{suffix}", "content_disposition_type": "inline"}
    gone = f"The {variant} of {id} is gone."
    return _file(at, id, suffix, gone, media_type=kind, **shown)


@router.get("/v1/videos/{id}/preview")
def preview(id: str, at: At) -> Response:
    """The latest preview of a clip that is being made."""
    _found(at, id)
    none = f"There is no preview of {id} now."
    how = {"media_type": "image/jpeg", "headers": UNKEPT}
    return _file(at, id, PREVIEW, none, **how)


@router.delete("/v1/videos/{id}")
def delete(id: str, at: At) -> schema.Deleted:
    """Delete a video; one that is queued or being made is cancelled first."""
    _found(at, id)
    if at.supervisor.cancel(id) and not at.supervisor.ended(id):
        raise HTTPException(503, "The video is still being stopped; try again.")
    at.store.delete(id)
    return schema.Deleted(id=id)


@router.post("/v1/videos/{id}/cancel", response_model=schema.VideoObject)
def cancel(id: str, at: At) -> Response:
    """Stop a video that is queued or being made; it stays in the list as failed."""
    _found(at, id, OPEN, "there is nothing to stop")
    if not at.supervisor.cancel(id):
        at.store.fail(id, "cancelled", "Cancelled.")
    return _shown(at, _found(at, id))


@router.post("/v1/videos/{id}/remix", response_model=schema.VideoObject)
def remix(id: str, wanted: schema.RemixRequest, at: At) -> Response:
    """Make a finished video again with another prompt; 409 while it is being made."""
    video = _found(at, id, ENDED, "a remix is made of a finished one")
    again = {**video.request, **wanted.model_dump(exclude_none=True)}
    return _queued(at, schema.VideoRequest.model_validate(again), id)


@router.get("/v1/videos/{id}/events")
async def events(id: str, at: At) -> Response:
    """Server-sent events until the video is completed or failed: each is the video, or a preview."""
    _found(at, id)
    how = {"media_type": "text/event-stream", "headers": UNKEPT}
    return StreamingResponse(_stream(at, id), **how)


@router.post("/v1/videos/extensions", status_code=501)
@router.post("/v1/videos/edits", status_code=501)
def unsupported() -> Response:
    """Endpoints of OpenAI's API that this server lacks: 501."""
    raise HTTPException(501, UNSUPPORTED)


@router.get("/v1/models")
async def models(at: At) -> schema.ModelList:
    """The models that the server was started with; empty until the worker has opened them."""
    return schema.ModelList(data=at.supervisor.models)


@router.post("/v1/estimates")
def estimate(wanted: schema.VideoRequest, at: At) -> schema.Estimate:
    """The memory that a clip needs, and if it does not fit, what would. Pictures are ignored."""
    # Only ``create`` names files, which it stored itself; names from clients are never opened.
    decided, _ = _decided(at, wanted.model_copy(update={"images": []}))
    try:
        return at.supervisor.estimate(decided)
    except TimeoutError:
        late = "The estimate took too long; try again."
        raise HTTPException(503, late, SOON) from None


@router.post("/session")
def session(key: Annotated[str, Body(embed=True, max_length=1000)], at: At) -> Response:
    """Exchange the API key for a cookie, so that the page's players and pictures need no header."""
    if not at.door.opens(key):
        time.sleep(WRONG_KEY_SECONDS)
        raise HTTPException(401, "That is not this server's key.")
    answer = JSONResponse({"ok": True})
    answer.set_cookie(guard.COOKIE, at.door.token, httponly=True, samesite="strict")
    return answer


@router.get("/health")
async def health(at: At, answer: Response) -> dict[str, object]:
    """The server's state; status 503 while no clips can be requested."""
    answer.status_code = 200 if at.supervisor.models else 503
    return {
        "status": at.supervisor.status,
        "version": __version__,
        "running": at.supervisor.running and at.supervisor.running.id,
        "queued": at.store.waiting(),
        "trouble": at.supervisor.trouble,
    }


@router.get("/docs", include_in_schema=False)
def docs() -> FileResponse:
    """The page that describes every route."""
    return FileResponse(PAGE / "docs.html")


def _shown(at: Serving, video: Video) -> Response:
    body = schema.VideoObject.of(video, at.store.place(video))
    return Response(
        body.model_dump_json(),
        media_type="application/json",
        headers={"openai-poll-after-ms": POLL_AFTER_MS},
    )


def _found(
    at: Serving, id: str, statuses: Container[str] = (*OPEN, *ENDED), why: str = ""
) -> Video:
    """The video with this id; raises, with ``why``, unless its status is one of ``statuses``."""
    if (video := at.store.get(id)) is None:
        raise HTTPException(404, f"There is no video {id[:60]!r} here.")
    if video.status not in statuses:
        raise HTTPException(409, f"The video {id} is {video.status}; {why}.")
    return video


def _file(at: Serving, id: str, suffix: str, otherwise: str, **how) -> Response:
    """A response with a file of a video; 404 with a sentence if it does not exist."""
    file = at.store.file(id, suffix)
    try:
        return FileResponse(file, stat_result=file.stat(), **how)
    except FileNotFoundError:  # the worker replaces and removes files at any time
        raise HTTPException(404, otherwise) from None


def _queued(
    at: Serving, wanted: schema.VideoRequest, remixed_from: str | None = None
) -> Response:
    decided, notices = _decided(at, wanted)
    _check_room(at)
    video = at.store.add(decided.model_dump(), remixed_from, notices)
    at.supervisor.wake()
    return _shown(at, video)


async def _stream(at: Serving, id: str) -> AsyncIterator[str]:
    events: asyncio.Queue = asyncio.Queue()
    loop = asyncio.get_running_loop()
    hear = partial(loop.call_soon_threadsafe, events.put_nowait)
    with at.supervisor.listening(id, hear):
        if at.store.file(id, PREVIEW).exists():
            events.put_nowait({"event": "preview", "number": 0})
        while (video := at.store.get(id)) is not None:
            body = schema.VideoObject.of(video, at.store.place(video)).model_dump_json()
            yield f"event: video\ndata: {body}\n\n"
            if video.status not in OPEN:
                return
            try:
                event = await asyncio.wait_for(events.get(), STILL_SECONDS)
            except TimeoutError:
                yield ": still here\n\n"
                continue
            if event and event["event"] == "preview":
                yield f"event: preview\ndata: {json.dumps({'number': event['number']})}\n\n"


# Settings, and whether there is room


def _decided(
    at: Serving, wanted: schema.VideoRequest
) -> tuple[schema.VideoRequest, list[str]]:
    """The request with model, size, length and seed decided, and sentences on what was changed."""
    model = _model(at, wanted.model)
    if unknown := sorted(wanted.loras.keys() - set(model.loras)):
        known = ", ".join(model.loras) or "none"
        raise UserError(
            f"There is no LoRA {unknown[0]!r} here; the server was started with: {known}."
        )
    if wanted.recipe and wanted.recipe not in model.recipes:
        raise UserError(
            f"{model.id} has no recipe {wanted.recipe!r}; it has {', '.join(model.recipes)}."
        )
    decided, notices = model.snapped(wanted)
    if decided.seed is None:
        decided = decided.model_copy(update={"seed": secrets.randbelow(2**32)})
    return decided, notices


def _model(at: Serving, name: str | None) -> schema.Model:
    models = at.supervisor.models
    if not models:
        opening = "The model is still being opened; try again in a moment."
        raise HTTPException(503, at.supervisor.trouble or opening, SOON)
    for model in models:
        if name in (None, model.id):
            return model
    known = ", ".join(model.id for model in models)
    none = f"There is no model {name!r} here; the server was started with: {known}."
    raise HTTPException(404, none)


def _check_room(at: Serving) -> None:
    """Raise if the queue, the disk or the disk budget is full."""
    store, limits = at.store, at.limits
    if store.waiting() >= limits.queue:
        full = f"The queue is full: {limits.queue} videos wait. Try again later."
        raise HTTPException(429, full, {"Retry-After": "30"})
    taken, free = store.bytes(), shutil.disk_usage(store.folder).free
    if taken <= limits.disk and free >= limits.margin:
        return
    why = f"clips take {amount(taken)} of the {amount(limits.disk)} that they may"
    if free < limits.margin:
        why = f"the disk has {amount(free)} left, and {amount(limits.margin)} stay free"
    oldest = "; ".join(f"{v.id} ({v.request['prompt'][:40]})" for v in store.oldest())
    advice = f"Delete some; the oldest are {oldest}." if oldest else "Free some space."
    raise HTTPException(507, f"There is no room for another video: {why}. {advice}")
