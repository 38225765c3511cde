"""A job: everything needed to make a clip, and to make it again, as data. Knows files and records, no mathematics."""

import json
import logging
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Callable, Iterable, Mapping

import mlx.core as mx

import mlx_video
from mlx_video import hub
from mlx_video import plan as plans
from mlx_video import weights
from mlx_video.disk import file_errors
from mlx_video.errors import MissingFileError, UserError
from mlx_video.models.ltx.components import Announce, Components, announce_to_log
from mlx_video.models.ltx.find import default_model, find_defaults, find_geometry
from mlx_video.models.ltx.layouts import MAX_TOKENS
from mlx_video.pipeline import Image, Pipeline, Request
from mlx_video.recipes import Defaults, Recipe, Stage
from mlx_video.sampling.guidance import Guidance
from mlx_video.types import AV, Sample, VideoPixelShape

log = logging.getLogger(__name__)

RECORD_KEY = "mlx_video"  # of the record in a file's metadata
LETTERS_PER_TOKEN = 3  # of a prompt, at least, in most languages


@dataclass(frozen=True)
class Files:
    """Which checkpoint files to use; a ``None`` is found beside the model, or in its hub repository.

    model           official file, folder that ``convert`` wrote, hub repository, or "ltx-2-tiny", the demo model in the
                    package; ``None`` is the official repository if one of its models is in the hub's cache or any of
                    the next four is given, else the demo model
    loras           (file, strength) pairs to fuse into the transformer
    distilled_lora  for the refinement of the two-stage dev recipe
    dtype           of the weights: "bfloat16", "float16" or "float32"; ``None`` is bfloat16 on a GPU, float32 on a CPU
    quantize        bits of the transformer's and the text encoder's blocks in memory, 8 or 4; ``None`` keeps them as
                    they are stored
    low_memory      whether the transformer's blocks are read in each step instead of kept
    """

    model: str | None = None
    text_encoder: str | None = None
    upsampler: str | None = None
    loras: tuple[tuple[str, float], ...] = ()
    distilled_lora: str | None = None
    dtype: str | None = None
    quantize: int | None = None
    low_memory: bool = False


@dataclass(frozen=True)
class Job:
    """A request, how to sample it and with which files."""

    request: Request
    recipe: Recipe
    files: Files = Files()

    def check(self) -> None:
        """Raise ``ValueError`` or ``FileNotFoundError`` for what can be known to be wrong before anything is loaded."""
        geometry = find_geometry(model_of(self.files), self.recipe.variant)
        self.request.check(self.recipe, geometry)

    def pipeline(
        self,
        *,
        health: bool = True,
        batched: bool = False,
        announce: Announce = announce_to_log,
        plan: plans.Plan | None = None,
    ) -> Pipeline:
        """Find the files and build the pipeline; downloads what the hub must give, and loads no weights.

        announce  hears what is about to be downloaded
        plan      has found the parts, and says what decoding may take
        """
        return Pipeline(
            plan.components if plan else self.components(announce),
            self.recipe,
            health=health,
            batched=batched,
            memory=plan.limit if plan else None,
        )

    def components(self, announce: Announce = announce_to_log) -> Components:
        """The parts that the job takes, found and identified."""
        needs = self.request.needs(self.recipe)
        return open_components(self.files, self.recipe, needs, announce)

    def plan(
        self,
        *,
        batched: bool = False,
        limit: float | None = None,
        announce: Announce = announce_to_log,
    ) -> plans.Plan:
        """What the job will take, made to fit into ``limit`` bytes or else the machine; loads no weights."""
        return plans.plan(self.components(announce), self.work(batched), limit)

    def work(self, batched: bool = False) -> plans.Work:
        """What memory must know of the job."""
        request = self.request
        letters = max(map(len, (request.prompt, request.negative_prompt)))
        tokens = MAX_TOKENS if request.enhance else letters // LETTERS_PER_TOKEN + 2
        return plans.Work(
            request.shape,
            self.recipe,
            request.audio,
            images=len(request.images),
            keyframes=sum(image.frame > 0 for image in request.images),
            prompt_tokens=tokens,
            tiling=request.tiling,
            batched=batched,
        )

    def planned(self, plan: plans.Plan) -> "Job":
        """The same job, in whose record stand the residency that ``plan`` chose and the model that was found."""
        lent, files = plan.components, self.files
        files = replace(
            files,
            model=model_of(files),
            quantize=lent.quantize,
            low_memory=lent.low_memory,
        )
        return replace(self, files=files)

    def with_prompt(self, prompt: str) -> "Job":
        """The same job with ``prompt``, which is not to be enhanced again."""
        return replace(
            self, request=replace(self.request, prompt=prompt, enhance=False)
        )

    def record(self) -> str:
        """The job as JSON, with the versions that ran it."""
        versions = {"mlx_video": mlx_video.__version__, "mlx": mx.__version__}
        device = str(mx.default_device())
        return json.dumps(
            {"versions": versions, "device": device, "job": asdict(self)}, indent=2
        )

    @classmethod
    def from_record(cls, path: str | Path) -> "Job":
        """The job of a record: the JSON file, or the mp4 or latents file it travels in."""
        text = read_record(Path(path))
        try:
            job = json.loads(text)["job"]
            return cls(
                _request(job["request"]), _recipe(job["recipe"]), _files(job["files"])
            )
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise UserError(
                f"{path} holds no record of this version of mlx-video ({error}); give the .json or .mp4 that it wrote."
            ) from None


def load(
    model: str | None = None,
    recipe: Recipe | None = None,
    *,
    variant: str = "distilled",
    files: Files | None = None,
    health: bool = True,
) -> Pipeline:
    """A pipeline over ``model``, which is as in ``Files``.

    recipe   how to sample; by default as the checkpoint wants its ``variant``, "distilled" or "dev", to be sampled
    files    the model with what goes with it, where it does not lie beside it; replaces ``model``
    Finds the files, downloading what is missing from the hub; weights are read when their turn comes.
    """
    files = files or Files(model)
    files, defaults = settled(files, recipe.variant if recipe else variant)
    recipe = recipe or defaults.recipe(variant)
    components = open_components(files, recipe, recipe.needs)
    return Pipeline(components, recipe, health=health)


def settled(
    files: Files, variant: str, say: Callable[[object], None] = log.warning
) -> tuple[Files, Defaults]:
    """``files`` with a model named, and the defaults that it brings.

    ``say`` hears that it is the demo model where none was named, and what is about to be downloaded.
    """
    model = model_of(files, say)
    stated = find_defaults(model, variant, say)
    try:
        defaults = Defaults.from_dict(stated)
    except ValueError as error:
        raise UserError(f"{model}: {error}") from None
    return replace(files, model=model), defaults


def model_of(files: Files, say: Callable[[object], None] = log.warning) -> str:
    """The model that ``files`` names; or else LTX-2, if they name what goes with it, or what there is."""
    others = files.text_encoder, files.upsampler, files.loras, files.distilled_lora
    usual = hub.MODEL_REPO if any(others) else None
    return files.model or usual or default_model(say)


def open_components(
    files: Files,
    recipe: Recipe,
    needs: Iterable[str],
    announce: Announce = announce_to_log,
) -> Components:
    """The parts that ``needs`` names, found and identified where ``files`` says."""
    return Components.open(
        model_of(files),
        variant=recipe.variant,
        text_encoder=files.text_encoder,
        upsampler=files.upsampler,
        loras=files.loras,
        distilled_lora=files.distilled_lora,
        dtype=None if files.dtype is None else getattr(mx, files.dtype),
        quantize=files.quantize,
        low_memory=files.low_memory,
        needs=needs,
        announce=announce,
    )


def decoder_of(job: Job, *, health: bool, announce: Announce) -> Pipeline:
    """A pipeline that can finish ``job``: it has found the decoders and nothing else."""
    needs = ["video_decoder"]
    needs += ["audio_decoder", "vocoder"] if job.request.audio else []
    components = open_components(job.files, job.recipe, needs, announce)
    return Pipeline(components, job.recipe, health=health)


def save_latents(path: Path, sample: Sample, job: Job) -> None:
    """Write a sample beside its record, so that ``decode`` can finish it: tensors "video" and "audio", float32.

    Raises ``UserError`` where that cannot be; nothing is left then.
    """
    latents = sample.latents
    tensors = {modality.value: latents[modality] for modality in latents.present}
    aside = path.with_name(f".{os.getpid()}.partial.safetensors")
    record = job.with_prompt(sample.prompt).record()
    try:
        mx.save_safetensors(str(aside), tensors, {RECORD_KEY: record})
        aside.replace(path)
    except RuntimeError as error:  # MLX's word for what the system refuses
        raise UserError(f"{path} could not be written: {error}") from None
    finally:
        aside.unlink(missing_ok=True)


def load_latents(path: Path) -> AV[mx.array]:
    """The latents that ``save_latents`` wrote."""
    tensors, _ = weights.read(path)
    if "video" not in tensors:
        raise UserError(
            f"{path} holds no video latents; give the .latents.safetensors that a run left."
        )
    return AV(tensors["video"], tensors.get("audio"))


def read_record(path: Path) -> str:
    """The JSON text of a record file, or of the one inside an mp4 or latents file."""
    if not path.exists():
        raise MissingFileError(f"There is no file {path}.")
    if path.suffix == ".json":
        with file_errors(path):
            return path.read_text()
    from mlx_video import media  # with codecs, which only a clip's file needs

    metadata = (
        weights.read(path)[1] if path.suffix == ".safetensors" else media.metadata(path)
    )
    return metadata.get(RECORD_KEY, "{}")


def _request(data: Mapping) -> Request:
    shape = VideoPixelShape(*data["shape"])
    images = tuple(Image(**image) for image in data["images"])
    return Request(**{**data, "shape": shape, "images": images})


def _recipe(data: Mapping) -> Recipe:
    return Recipe(data["variant"], tuple(_stage(stage) for stage in data["stages"]))


def _stage(data: Mapping) -> Stage:
    guidance = AV(**{name: _guidance(g) for name, g in data["guidance"].items()})
    return Stage(**{**data, "sigmas": tuple(data["sigmas"]), "guidance": guidance})


def _guidance(data: Mapping | None) -> Guidance | None:
    if data is None:
        return None
    return Guidance(**{**data, "stg_blocks": tuple(data["stg_blocks"])})


def _files(data: Mapping) -> Files:
    return Files(**{**data, "loras": tuple(map(tuple, data["loras"]))})
