"""DFR (diffusion fidelity rendering): samples a clip together with pictures, then smooths it tile by tile between them.

The path is every recipe's; only the sampling differs.
"""

from dataclasses import replace
from itertools import groupby
from typing import Generator, Iterator, Mapping, NamedTuple

import mlx.core as mx

from mlx_video import health, lora
from mlx_video.conditioning.latent import Condition, LatentState
from mlx_video.errors import UserError
from mlx_video.inputs import Parts
from mlx_video.models.ltx import dfr
from mlx_video.models.ltx.components import Components
from mlx_video.models.ltx.conditions import Place, generated_keyframes, reference
from mlx_video.models.ltx.parts import part_config
from mlx_video.models.ltx.states import initial_states, noised, unpatchify
from mlx_video.pipeline import Pipeline, Reached, with_sound
from mlx_video.previews import Preview, Previews
from mlx_video.recipes import SAMPLER_SEED, Recipe, Stage
from mlx_video.request import Request
from mlx_video.sampling.guidance import Guidance, Predict, guided
from mlx_video.sampling.samplers import Denoise, Steps
from mlx_video.types import AV, PromptEmbeddings, Step, VideoPixelShape

Conditions = list[AV[list[Condition]]]
SMALLER = 2  # times fewer pixels a side has the clip that the second stage looks at


class Rendered(NamedTuple):
    """What one stage or round hands to the next.

    video     latents (B, C, F, H, W)
    pictures  latents (B, C, 1, H, W) by the frame that they stand at
    shape     in pixels
    audio     latents of the stage; ``sound`` are those of the stage whose sound the clip has
    """

    video: mx.array | None
    pictures: Mapping[int, mx.array]
    shape: VideoPixelShape
    audio: mx.array | None = None
    sound: mx.array | None = None

    @classmethod
    def nothing(cls, start: Reached | None) -> "Rendered":
        """What there is before the first stage, or before the one that a run goes on in."""
        empty = VideoPixelShape(0, 0, 0, 0.0)
        return cls(None, {}, empty, sound=start.sound if start else None)


class Watched(NamedTuple):
    """What a stage is sampled with."""

    embeddings: PromptEmbeddings
    predict: Predict
    previews: Previews


def pipeline_for(components: Components, recipe: Recipe, **options) -> Pipeline:
    """The pipeline that samples by ``recipe``; ``options`` are those of ``Pipeline``."""
    kind = Pipeline if recipe.rounds is None else FidelityPipeline
    return kind(components, recipe, **options)


class FidelityPipeline(Pipeline):
    """DFR. A request's shape is that of the finished clip; the frames of its inputs are counted before the rounds.

    The rounds report no ``Reached``, nor does a stage that looks at the smaller clip: such a run resumes from the stage
    before.
    """

    def check(self, request: Request) -> None:
        super().check(request)
        config = part_config("transformer", self.components.sources["transformer"])
        if not config.use_keyframes_abs_pos_embedding:
            raise UserError(
                "This model cannot generate keyframes, which DFR needs; LTX-2.5 can."
            )
        if request.timed:
            raise UserError("DFR cannot choose the clip's length; set --num-frames.")

    def _encode_inputs(
        self, request: Request
    ) -> Generator[Step, None, list[Conditions]]:
        """The conditions of each stage, and then of each tile of each round."""
        canvas = self.recipe.staged(request.shape)
        stages = yield from super()._encode_inputs(replace(request, shape=canvas))
        rounds = enumerate(self._layouts(request), start=1)
        tiles = [
            self._tile_inputs(request, number, tile)
            for number, layout in rounds
            for tile in layout
        ]
        return stages + tiles

    def _tile_inputs(self, request: Request, number: int, tile: dfr.Tile) -> Conditions:
        """The conditions on a tile of round ``number``, from the inputs that lie in it."""
        moved = [g.moved(2**number, tile.start, tile.end) for g in request.inputs]
        moved = [given for given in moved if given is not None]
        if not moved:
            return []
        fps = self.recipe.staged(request.shape).fps * 2**number
        shape = request.shape._replace(frames=tile.frames, fps=min(fps, dfr.MAX_FPS))
        with self.components.lend("video_encoder") as encoder:
            networks = {"video_encoder": encoder}
            parts = Parts(networks, self.components.geometry, self.defaults.image_crf)
            return [given.encode(parts, shape) for given in moved]

    def _layouts(self, request: Request) -> list[list[dfr.Tile]]:
        """The tiles of each round."""
        canvas = dfr.Canvas.of(self.recipe.staged(request.shape).frames)
        time = self.components.geometry.video.time
        return dfr.layouts(canvas, len(self.recipe.rounds), time)

    def _sample(
        self,
        request: Request,
        embeddings: PromptEmbeddings,
        conditions: list[Conditions],
        start: Reached | None,
    ) -> Generator[Step | Preview | Reached, None, AV[mx.array]]:
        """Walk the stages and then the rounds; neighbours that use the same weights share one load of the transformer."""
        geometry, count = self.components.geometry, len(self.recipe.stages)
        walk = [(s.detailing, n) for n, s in enumerate(self.recipe.stages)]
        walk = walk[start.stage if start else 0 :]
        walk += [(0.0, count)] if self.recipe.rounds else []
        made, tiles = Rendered.nothing(start), iter(conditions[count:])
        for detailing, group in groupby(walk, key=lambda item: item[0]):
            yield Step("load transformer", 0, 1)
            with (
                self.components.transformer(
                    request.model_type, detailing=detailing
                ) as predict,
                self._watching(predict) as previews,
            ):
                yield Step("load transformer", 1, 1)
                for _, number in group:
                    if number < count:
                        begun = start if start and start.stage == number else None
                        watched = Watched(embeddings, predict, previews)
                        made = yield from self._stage(
                            request, number, conditions[number], made, watched, begun
                        )
                        continue
                    denoise = guided(predict, embeddings, AV(Guidance()))
                    for round_, layout in enumerate(self._layouts(request), start=1):
                        seed = request.seed + 1000 * round_
                        made = yield from self._round(
                            round_, layout, made, denoise, tiles, seed
                        )
        frames, sound = geometry.latents(request.shape).frames, made.sound
        if sound is not None:
            sound = sound[:, :, : geometry.audio_frames(request.shape)]
        return AV(made.video[:, :, :frames], sound)

    def _stage(
        self,
        request: Request,
        number: int,
        conditions: Conditions,
        before: "Rendered",
        watched: "Watched",
        start: Reached | None,
    ) -> Generator[Step | Preview | Reached, None, "Rendered"]:
        """The clip on its canvas with its pictures, at the size of a stage, and its sound."""
        geometry, canvas = self.components.geometry, self.recipe.staged(request.shape)
        frames, stage = dfr.Canvas.of(canvas.frames).keyframes, self.recipe.stages[number]  # fmt: skip
        shape, latents, stack = canvas.scaled(stage.scale), AV(), None
        size, place = self._place(shape)
        seen: list[Condition] = []
        if before.video is not None:
            small = AV(before.video, before.audio)
            latents = yield from self._upsample(small, stage)
            stack = mx.concatenate(list(before.pictures.values()), axis=2)
            stack = (yield from self._upsample(AV(stack), stage)).video
            if stage.detailing:
                adapter = lora.Adapter.read(self.components.detailing_lora)
                factor = adapter.reference_downscale(SMALLER)
                seen = [reference(small.video, place, downscale=factor)]
        slots = generated_keyframes(frames, size, place, stack)
        given = [*conditions, AV([slots, *seen])]
        states = initial_states(shape, geometry, latents, given, request.audio)
        states = noised(states, stage.sigmas[0], _key(request.seed, number))
        done = 0
        if start:
            states, done = start.into(states), start.step
        key = _key(request.seed + SAMPLER_SEED, number)
        embeddings, predict, previews = watched
        previews.begin(number, geometry.latents(shape))
        denoised = self._denoise(states, embeddings, predict, done, key, previews)
        if seen:  # a run cannot go on from here without the smaller clip
            denoised = _unkept(denoised)
        states = yield from with_sound(denoised, before.sound)
        latents = unpatchify(states, shape, geometry)
        if self.health:
            health.check_latents(latents, f"stage {number + 1}")
        pictures = dfr.generated_pictures(states.video, frames, size)
        own = latents.audio if number == self.recipe.sound_stage else before.sound
        return Rendered(latents.video, pictures, shape, latents.audio, own)

    def _round(
        self,
        number: int,
        layout: list[dfr.Tile],
        rendered: Rendered,
        denoise: Denoise,
        conditions: Iterator[Conditions],
        seed: int,
    ) -> Generator[Step, None, Rendered]:
        """Double the frame rate: upsample in time, then refine each tile between its pictures."""
        geometry, stage = self.components.geometry, self.recipe.rounds[number - 1]
        video = (yield from self._upsample(AV(rendered.video), stage)).video
        seams = dfr.doubled(rendered.pictures)
        pictures = dict(zip(seams, rendered.pictures.values()))
        fps = 2 * rendered.shape.fps
        told = rendered.shape._replace(fps=min(fps, dfr.MAX_FPS))
        videos, made = [], []
        for index, tile in enumerate(layout):
            shape = told._replace(frames=tile.frames)
            size, place = self._place(shape)
            part = video[:, :, tile.latents(geometry.video.time)]
            between = dfr.tile_conditions(tile, pictures, part, place)
            given = [*next(conditions), AV(between)]
            states = initial_states(shape, geometry, AV(part), given, audio=False)
            states = noised(states, stage.sigmas[0], _key(seed + index, 0))
            steps = stage.sampler(
                denoise, states, stage.sigmas, key=_key(seed + index, 1)
            )
            states = yield from _walked(f"round {number}, tile {index + 1}", stage, steps)  # fmt: skip
            videos.append(unpatchify(states, shape, geometry).video)
            new = dfr.generated_pictures(states.video, tile.slots, size)
            made.append({f: pictures[f] for f in tile.anchors} | new)
        frames = 2 * (rendered.shape.frames - 1) + 1
        shape = rendered.shape._replace(frames=frames, fps=fps)
        video, pictures = dfr.join(videos, layout), dfr.carried(made)
        return Rendered(video, pictures, shape, sound=rendered.sound)

    def _place(self, shape: VideoPixelShape) -> tuple[tuple[int, int], Place]:
        """Rows and columns of the latents of ``shape``, and their place in pixels and seconds."""
        geometry = self.components.geometry
        grid = geometry.latents(shape)
        return (grid.height, grid.width), Place(geometry.video, shape.fps)


def _unkept(events: Generator) -> Generator:
    """``events`` without what was ``Reached``; returns what they return."""
    while True:
        try:
            event = next(events)
        except StopIteration as done:
            return done.value
        if not isinstance(event, Reached):
            yield event


def _walked(
    name: str, stage: Stage, steps: Steps
) -> Generator[Step, None, AV[LatentState]]:
    """The states after the last of ``steps``."""
    total = len(stage.sigmas) - 1
    yield Step(name, 0, total, stage.sigmas[0])
    for index, (states, sigma) in enumerate(steps, start=1):
        mx.eval(states.video.latent)
        yield Step(name, index, total, sigma)
    return states


def _key(seed: int, number: int) -> mx.array:
    """One of two random keys of a seed."""
    return mx.random.split(mx.random.key(seed % 2**32))[number]
