"""DFR (diffusion fidelity rendering): samples a clip together with pictures, then refines it between them tile by tile.

Only the sampling differs from other recipes.
"""

from typing import Mapping

import mlx.core as mx

from mlx_video import lora
from mlx_video.conditioning.latent import Condition
from mlx_video.inputs import Parts
from mlx_video.models.ltx import dfr_layout
from mlx_video.models.ltx.condition_tokens import Place, generated_keyframes, reference
from mlx_video.models.ltx.loading.components import Components
from mlx_video.models.ltx.patchify import initial_states, noised, unpatchify
from mlx_video.pipeline import Made, Pipeline, Sampling, Working
from mlx_video.recipes import Recipe, Stage, finished
from mlx_video.request import Request
from mlx_video.sampling.guidance import Guidance, guided
from mlx_video.types import AV, Step, VideoPixelShape

SMALLER = 2  # downscale factor of the second stage's reference clip


def pipeline_for(components: Components, recipe: Recipe, **options) -> Pipeline:
    """The pipeline for ``recipe``; ``options`` are those of ``Pipeline``."""
    kind = Pipeline if recipe.rounds is None else DFRPipeline
    return kind(components, recipe, **options)


class DFRPipeline(Pipeline):
    """The pipeline of DFR. A request's shape is that of the finished clip; an input's frame is counted before the rounds.

    Rounds yield no ``Reached``, nor does a stage that sees the smaller clip: such a run resumes from the previous stage.
    """

    def _conditions(self, request: Request, parts: Parts, number: int) -> list:
        """The conditions of a stage; for a round, those of each tile, from the inputs within it."""
        round_ = self._round_of(number)
        if round_ < 1:
            return super()._conditions(request, parts, number)
        tiles = []
        for tile in self._layout(request, round_):
            moved = [g.moved(2**round_, tile.start, tile.end) for g in request.inputs]
            shape = self._tile_shape(request, round_, tile)
            tiles.append([g.encode(parts, shape) for g in moved if g is not None])
        return tiles

    def _round_of(self, number: int) -> int:
        """Which round stage ``number`` of the walk is, counted from 1; below 1 before the rounds."""
        return number - len(self.recipe.stages) + 1

    def _layout(self, request: Request, number: int) -> list[dfr_layout.Tile]:
        """The tiles of round ``number``, counted from 1."""
        time = self.components.geometry.video.time
        return self.recipe.layouts(request.shape, time)[number - 1]

    def _tile_shape(
        self, request: Request, number: int, tile: dfr_layout.Tile
    ) -> VideoPixelShape:
        """The shape of a tile of round ``number``, at a frame rate within the transformer's limit."""
        clip = finished(self.recipe.staged(request.shape), number)
        return clip._replace(frames=tile.frames, fps=min(clip.fps, dfr_layout.MAX_FPS))

    def _sample(self, sampling: Sampling) -> Working[AV[mx.array]]:
        """Walk the stages and the rounds, and cut the canvas to the clip."""
        made = yield from super()._sample(sampling)
        geometry, shape = self.components.geometry, sampling.request.shape
        sound = made.audio
        if sound is not None:
            sound = sound[:, :, : geometry.audio_frames(shape)]
        return AV(made.video[:, :, : geometry.latents(shape).frames], sound)

    def _stage(self, sampling: Sampling, number: int, before: Made) -> Working[Made]:
        """The clip on its canvas with its pictures, at the size of a stage, and its sound; or a round."""
        if number >= len(self.recipe.stages):
            return (yield from self._round(sampling, number, before))
        stage, clip = self.recipe.stages[number], sampling.request.shape
        frames = self.recipe.keyframes(clip)
        size, place = self._place(self.recipe.shape(clip, number))
        smaller, stack, seen = before.latents.video, None, []
        if smaller is not None:
            before, stack = yield from self._enlarged(before, stage)
            seen = [self._reference(smaller, place)] if stage.detailing else []
        more = [AV([generated_keyframes(frames, size, place, stack), *seen])]
        made, states = yield from self._sampled(sampling, number, before, more)
        pictures = dfr_layout.generated_pictures(states.video, frames, size)
        return made._replace(pictures=pictures)

    def _enlarged(self, before: Made, stage: Stage) -> Working[tuple[Made, mx.array]]:
        """``before`` with its latents upsampled for ``stage``, and its pictures, (B, C, pictures, H, W)."""
        latents = yield from self._upsample(before.latents, stage)
        stack = mx.concatenate(list(before.pictures.values()), axis=2)
        larger = yield from self._upsample(AV(stack), stage)
        return before._replace(latents=latents), larger.video

    def _reference(self, smaller: mx.array, place: Place) -> Condition:
        """The clip before it was upsampled, as the detailing LoRA sees it."""
        adapter = lora.Adapter.read(self.components.detailing_lora)
        factor = adapter.reference_downscale(SMALLER)
        return reference(smaller, place, downscale=factor)

    def _round(self, sampling: Sampling, number: int, before: Made) -> Working[Made]:
        """Double the frame rate: upsample in time, then refine each tile between its pictures."""
        stage, old = self.recipe.walk[number], before.pictures
        video = (yield from self._upsample(AV(before.latents.video), stage)).video
        pictures = dict(zip(dfr_layout.doubled(old), old.values()))
        layout = self._layout(sampling.request, self._round_of(number))
        videos, made = [], []
        for index in range(len(layout)):
            refined = yield from self._refine(
                sampling, number, layout, index, video, pictures
            )
            videos.append(refined[0])
            made.append(refined[1])
        joined = AV(dfr_layout.join(videos, layout))
        return Made(joined, before.sound, dfr_layout.carried(made))

    def _refine(
        self,
        sampling: Sampling,
        number: int,
        layout: list[dfr_layout.Tile],
        index: int,
        video: mx.array,
        pictures: Mapping[int, mx.array],
    ) -> Working[tuple[mx.array, dict[int, mx.array]]]:
        """Tile ``index`` of ``layout``, refined between its ``pictures``: its latents, and the pictures for the next round."""
        geometry, stage = self.components.geometry, self.recipe.walk[number]
        request, round_ = sampling.request, self._round_of(number)
        tile = layout[index]
        shape = self._tile_shape(request, round_, tile)
        size, place = self._place(shape)
        part = video[:, :, tile.latents(geometry.video.time)]
        between = AV(dfr_layout.tile_conditions(tile, pictures, part, place))
        given = [*sampling.conditions[number][index], between]
        states = initial_states(shape, geometry, AV(part), given, audio=False)
        noise, key = mx.random.split(tile_key(request.seed, round_, index))
        states = noised(states, stage.sigmas[0], noise)
        denoise = guided(sampling.predict, sampling.embeddings, AV(Guidance()))
        for step, states in self._steps(number, denoise, states, key):
            yield over_tiles(step, index, len(layout))
        new = dfr_layout.generated_pictures(states.video, tile.slots, size)
        kept = {frame: pictures[frame] for frame in tile.anchors}
        return unpatchify(states, shape, geometry).video, kept | new

    def _place(self, shape: VideoPixelShape) -> tuple[tuple[int, int], Place]:
        """Rows and columns of the latents of ``shape``, and their place in pixels and seconds."""
        geometry = self.components.geometry
        grid = geometry.latents(shape)
        return (grid.height, grid.width), Place(geometry.video, shape.fps)


def tile_key(seed: int, number: int, index: int) -> mx.array:
    """The random key of tile ``index`` in round ``number``; no round has 1000 tiles."""
    return mx.random.key((seed + 1000 * number + index) % 2**32)


def over_tiles(step: Step, index: int, count: int) -> Step:
    """``step`` counted over ``count`` tiles, of which ``index`` are done."""
    done = index * step.total + step.index
    return step._replace(index=done, total=count * step.total)
