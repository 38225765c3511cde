"""What it takes to make a clip again: a job, its JSON record, and the files that hold one. Knows no mathematics."""

import json
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Iterator, Mapping

import mlx.core as mx

import mlx_video
from mlx_video import plan as plans
from mlx_video import weights
from mlx_video.backend import blas_threads
from mlx_video.dfr_pipeline import pipeline_for
from mlx_video.disk import file_size, read_small, short
from mlx_video.errors import UserError, at, field_error
from mlx_video.hub import Notify
from mlx_video.inputs import Model
from mlx_video.models.ltx.checkpoint import find
from mlx_video.models.ltx.checkpoint.files import Files
from mlx_video.models.ltx.loading.components import Components, notify_log
from mlx_video.models.ltx.loading.geometry import read_geometry
from mlx_video.models.ltx.loading.parts import PARTS
from mlx_video.pipeline import Pipeline
from mlx_video.recipes import DECODERS, Recipe
from mlx_video.request import Request

RECORD_KEY = "mlx_video"  # of the record, in a file's metadata


@dataclass(frozen=True)
class Job:
    """A request, how to sample it and with which files.

    batch_guidance  whether guided passes run as one batch: faster if memory allows, with slightly different rounding
    """

    request: Request
    recipe: Recipe
    files: Files = Files()
    batch_guidance: bool = False

    def check(self, model: Model | None = None, opens: bool = True) -> None:
        """Raise ``UserError`` for anything wrong that can be known before loading.

        ``model`` is by default looked up; it and ``opens`` as in ``Request.check``.
        """
        if model is None:
            parts = find.known_parts(find.model_of(self.files), self.recipe.variant)
            transformer = parts.get("transformer")
            config = transformer and PARTS["transformer"].config(transformer)
            model = Model(read_geometry(parts), config)
        with at("files"):
            self.files.check()
        with at("recipe"):
            self.recipe.check(model.transformer)
        with at("request"):
            self.request.check(self.recipe, model, opens)

    def pipeline(self, plan: plans.Plan, *, health: bool = True) -> Pipeline:
        """The pipeline, with the parts and within the memory of ``plan``. Loads no weights."""
        return pipeline_for(
            plan.components,
            self.recipe,
            health=health,
            batched=self.batch_guidance,
            memory=plan.room,
            previews=plan.previews,
        )

    def components(
        self, notify: Notify = notify_log, sampled: bool = False
    ) -> Components:
        """The parts that the job needs; only the decoders if it is ``sampled``."""
        needs = self.request.needs(self.recipe)
        needs = [name for name in needs if name in DECODERS or not sampled]
        files = replace(self.files, model=find.model_of(self.files))
        variant = self.recipe.variant
        return Components.open(files, variant=variant, needs=needs, notify=notify)

    def plan(
        self, limit: float | None = None, notify: Notify = notify_log
    ) -> plans.Plan:
        """The memory plan within ``limit`` bytes, by default the machine's. Loads no weights."""
        work = plans.Work(self.request, self.recipe, self.batch_guidance)
        return plans.plan(self.components(notify), work, limit)

    def planned(self, plan: plans.Plan) -> "Job":
        """The same job with the residency that ``plan`` chose and the model that was found."""
        kept, model = plan.components.residency, find.model_of(self.files)
        how = {"quantize": kept.quantize, "low_memory": kept.low_memory}
        return replace(self, files=replace(self.files, model=model, **how))

    def with_prompt(self, prompt: str) -> "Job":
        """The same job with ``prompt``, not to be enhanced again."""
        request = replace(self.request, prompt=prompt, enhance=False)
        return replace(self, request=request)

    def record(self) -> str:
        """The job as JSON, with the versions, the device and, on a CPU, the threads that ran it."""
        versions = {"mlx_video": mlx_video.__version__, "mlx": mx.__version__}
        ran = {"versions": versions, "device": str(mx.default_device())}
        if mx.default_device() == mx.cpu:
            ran["blas_threads"] = blas_threads()
        return json.dumps(ran | {"job": asdict(self)}, indent=2)

    @classmethod
    def from_record(cls, path: str | Path) -> "Job":
        """The job of a record: a JSON file, or an mp4, latents or state file that holds one.

        Opens none of the files that it names. Raises ``UserError``, naming the field, for what can be known without them.
        """
        from pydantic import TypeAdapter, ValidationError

        text, name = read_record(Path(path)), short(str(path))
        try:
            job = TypeAdapter(Record).validate_json(text).job
        except ValidationError as error:
            raise UserError(
                f"{name} is not a record that this version of mlx-video can read. {field_error(error.errors()[0])}"
            ) from None
        with read_from(path):
            job.check(Model(find.published_geometry(job.files.model)), opens=False)
        return job


# Reading


@contextmanager
def read_from(record: str | Path | None) -> Iterator[None]:
    """Name ``record`` and the field in a ``UserError`` on a field of the job that was read from it, if any was."""
    try:
        yield
    except UserError as error:
        if record is not None and error.place:
            place = ".".join(("job", *error.place))
            error.args = (f"{short(str(record))}: {place}: {error}",)
            error.place = ()
        raise


@dataclass(frozen=True)
class Record:
    """A record file: the ``job``, and what ran it. Read strictly, by pydantic, which the server's FastAPI needs anyway."""

    __pydantic_config__ = {"extra": "forbid", "strict": True, "allow_inf_nan": False}

    job: Job
    versions: Mapping[str, str] = field(default_factory=dict)
    device: str = ""
    blas_threads: str = ""


def read_record(path: Path) -> str:
    """The JSON text of a record file, or of the one inside an mp4, latents or state file."""
    if path.suffix == ".json":
        return read_small(path)
    file_size(path)  # raises if it is not a file
    from mlx_video import media  # imports codecs, which only a clip's file needs

    tensors = path.suffix == ".safetensors"
    metadata = weights.read(path)[1] if tensors else media.metadata(path)
    if RECORD_KEY not in metadata:
        raise UserError(
            f"{short(path)} holds no record; give the .json or .mp4 that mlx-video wrote."
        )
    return metadata[RECORD_KEY]
