"""The API's requests and responses: OpenAI's Videos API, with additions for LTX. Imports no MLX.

Field names and states are those of the official ``openai`` client, version 3.57.
https://platform.openai.com/docs/api-reference/videos
"""

from typing import TYPE_CHECKING, Annotated, Literal, Mapping

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints

from mlx_video import clip_limits
from mlx_video.serve.store import Video

if TYPE_CHECKING:
    from mlx_video.inputs import Input

LONGEST_PROMPT = 8000  # characters; the text encoder reads 1,024 tokens
MOST_IMAGES = 8
RECIPES = {  # the variant of each, and whether it has two stages
    "distilled": ("distilled", False),
    "dev": ("dev", False),
    "dev-two-stage": ("dev", True),
}

Prompt = Annotated[
    str,
    StringConstraints(strip_whitespace=True, min_length=1, max_length=LONGEST_PROMPT),
]
Name = Annotated[str, StringConstraints(max_length=100)]
Strength = Annotated[float, Field(ge=-clip_limits.STRONGEST, le=clip_limits.STRONGEST)]
Seed = Annotated[int, Field(ge=0, lt=2**64)]
Side = Annotated[int, Field(ge=1, le=clip_limits.LARGEST_SIDE)]
Time = Annotated[int, BeforeValidator(int)]  # whole Unix seconds


class Placed(BaseModel):
    """A picture in a clip: ``path`` is a name in the server's uploads, set by the server, never by a client."""

    model_config = ConfigDict(extra="forbid")

    path: Name = ""
    frame: int = Field(0, ge=0, lt=clip_limits.MOST_FRAMES)
    strength: float = Field(1.0, ge=0, le=1)


class VideoRequest(BaseModel):
    """A clip to make. ``None`` is the model's own default."""

    model_config = ConfigDict(
        extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True
    )

    prompt: Prompt
    """What to show and to be heard."""
    model: str | None = Field(None, max_length=200)
    """One of GET /v1/models; by default the first."""
    seconds: float | None = Field(None, gt=0, le=clip_limits.LONGEST_CLIP)
    """Length; snapped to the frame grid."""
    size: str | None = Field(None, pattern=r"^\d{2,5}x\d{2,5}$")
    """Width x height in pixels, such as 768x512; snapped to the model's grid."""
    # Beyond OpenAI's API
    width: Side | None = None
    """In pixels; with height, in place of size; snapped to the model's grid."""
    height: Side | None = None
    """In pixels."""
    num_frames: int | None = Field(None, ge=1, le=clip_limits.MOST_FRAMES)
    """In place of seconds; snapped to the frame grid."""
    fps: float | None = Field(None, ge=clip_limits.SLOWEST, le=clip_limits.FASTEST)
    """Frames a second."""
    seed: Seed | None = None
    """By default a new one each time."""
    generate_sound: bool | None = None
    """Whether the clip has sound."""
    negative_prompt: str | None = Field(None, max_length=LONGEST_PROMPT)
    """What to avoid; for recipes with guidance (dev)."""
    steps: int | None = Field(None, ge=1, le=clip_limits.MOST_STEPS)
    """Sampling steps; for dev recipes."""
    recipe: Literal[*RECIPES] | None = None
    """How to sample: one of the model's recipes; by default the first."""
    loras: dict[Name, Strength] = Field({}, max_length=8)
    """Strength by name; the names are those that the server was started with."""
    images: list[Placed] = Field([], max_length=MOST_IMAGES)
    """The position of each picture that a form uploads as input_reference, in the same order."""

    @property
    def inputs(self) -> tuple["Input", ...]:
        """What the clip is made from besides the prompt; only for the worker, since it imports MLX."""
        from mlx_video.inputs import Image

        return tuple(Image(**image.model_dump()) for image in self.images)


class RemixRequest(BaseModel):
    """A finished video to make again with another prompt and otherwise the same settings."""

    model_config = ConfigDict(extra="forbid")

    prompt: Prompt
    seed: Seed | None = Field(None, description="By default the same as before.")


class VideoError(BaseModel):
    """Why a video failed: ``code`` is one word for programs, ``message`` a sentence."""

    code: str
    message: str


class VideoObject(BaseModel):
    """A video as the API shows it."""

    id: str
    object: Literal["video"] = "video"
    status: Literal["queued", "in_progress", "completed", "failed"]
    progress: int
    created_at: Time
    completed_at: Time | None = None
    expires_at: int | None = None
    model: str
    prompt: str
    seconds: str
    size: str
    error: VideoError | None = None
    remixed_from_video_id: str | None = None
    # Beyond OpenAI's API
    phase: str = Field("", description="What is being done, in words.")
    place: int | None = Field(None, description="In the queue; 0 is being made.")
    seconds_left: float | None = None
    request: VideoRequest = Field(description="Every setting, as it was snapped.")
    notices: list[str] = []

    @classmethod
    def of(cls, video: Video, place: int | None = None) -> "VideoObject":
        """``video`` in the API's names."""
        request = VideoRequest.model_validate(video.request)
        error = {"code": video.error_code, "message": video.error_message}
        return cls(
            **{**vars(video), "request": request},
            model=request.model,
            prompt=request.prompt,
            seconds=f"{request.num_frames / request.fps:.3g}",
            size=f"{request.width}x{request.height}",
            error=error if video.status == "failed" else None,
            remixed_from_video_id=video.remixed_from,
            place=place,
            seconds_left=video.seconds_left,
        )


class VideoPage(BaseModel):
    """Videos in the requested order; ``last_id`` is ``after`` for the next page."""

    object: Literal["list"] = "list"
    data: list[VideoObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


class Deleted(BaseModel):
    """A video that was deleted with its files."""

    id: str
    object: Literal["video.deleted"] = "video.deleted"
    deleted: Literal[True] = True


class Model(BaseModel):
    """A model that the server was started with, and what it can make.

    width_step, height_step  width and height are multiples of them in all recipes
    steps                    the same for each recipe; some allow finer sizes
    frame_step               frames must be 1 + a multiple of it
    least                    the smallest width and height
    """

    id: str
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: str = "mlx-video"
    width: int
    height: int
    num_frames: int
    fps: float
    generate_sound: bool
    width_step: int
    height_step: int
    frame_step: int
    recipes: list[str]
    steps: dict[str, tuple[int, int]]
    least: tuple[int, int] = (1, 1)
    loras: list[str] = []

    def grid(self, recipe: str) -> clip_limits.Grid:
        """The clips that it can make with ``recipe``."""
        (width_step, height_step), (width, height) = self.steps[recipe], self.least
        steps = self.frame_step, height_step, width_step
        return clip_limits.Grid(*steps, height, width)

    def snapped(self, request: VideoRequest) -> tuple[VideoRequest, list[str]]:
        """``request`` with every setting decided and on this model's grid, and sentences on what was changed."""
        width, height = request.width or self.width, request.height or self.height
        if request.size:
            width, height = map(int, request.size.split("x"))
        fps = request.fps or self.fps
        recipe = request.recipe or self.recipes[0]
        grid = self.grid(recipe)
        frames = request.num_frames or self.num_frames
        if request.seconds and not request.num_frames:
            frames = grid.frames_of(request.seconds, fps)
        asked = clip_limits.VideoPixelShape(frames, height, width, fps)
        asked.check()
        notices: list[str] = []
        clip = grid.snapped(asked, notices.append)
        sound = request.generate_sound
        decided: Mapping[str, object] = {
            "model": self.id,
            "width": clip.width,
            "height": clip.height,
            "size": clip.size,
            "num_frames": clip.frames,
            "fps": fps,
            "seconds": round(clip.seconds, 3),
            "generate_sound": self.generate_sound if sound is None else sound,
            "recipe": recipe,
        }
        return request.model_copy(update=decided), notices


class ModelList(BaseModel):
    """The models of a server, its default first."""

    object: Literal["list"] = "list"
    data: list[Model]


class Estimate(BaseModel):
    """What a run needs. ``refusal`` says why it does not fit and what would; empty if it fits."""

    peak_bytes: int
    limit_bytes: int
    seconds: float | None = None
    refusal: str = ""
