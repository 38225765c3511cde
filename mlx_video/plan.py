"""Plans how much memory a run needs, phase by phase, and how to make it fit. Knows sizes; reads no weights."""

import os
from bisect import bisect_left
from dataclasses import dataclass, replace
from functools import cache
from typing import Iterable, Iterator, NamedTuple

import mlx.core as mx

from mlx_video.disk import GB, amount
from mlx_video.errors import UserError
from mlx_video.models.ltx.loading.components import Components
from mlx_video.models.ltx.loading.memory_table import on_gpu
from mlx_video.models.ltx.loading.residency import Residency
from mlx_video.models.ltx.pacing import SMALL
from mlx_video.models.ltx.text_folder import MAX_TOKENS, max_tokens
from mlx_video.models.ltx.video_vae.decoding import WHOLE, choose_tiling
from mlx_video.recipes import Recipe
from mlx_video.request import Request
from mlx_video.sampling.guidance import passes_of
from mlx_video.types import AV, Doing, Geometry, PromptEmbeddings, VideoPixelShape

LIBRARY_BYTES = 200e6  # of a process besides MLX's arrays, and of the clip's encoder; measured as 90 to 200 MB
OFFERED = 0.95  # share of a machine's memory that a run may use
KEPT = ("transformer", "text_encoder"), ("transformer",), ()  # the best first
# Pairs of `low_memory` and `quantize`, the smallest loss of quality first.
SETTINGS = (False, 8), (True, None), (True, 8), (False, 4), (True, 4)
DIGIT = GB // 100  # bytes of the last digit of sizes in messages
# The transformer's floating-point operations per second by device, from docs/measurements/2026-11.md.
SPEED = {"NVIDIA H200": 5.8e14}
PASSES_TO_DECODE = 0.5  # decoding takes as long as this many passes: 0.3 for ltx-2-tiny on a CPU, 0.7 for the 19B on an H200


class Work(NamedTuple):
    """What the plan needs to know of a run.

    batched   whether guided passes run as one batch
    previews  whether the clip is shown while it is sampled, if memory allows
    keep      whether the large parts stay loaded afterwards, if memory allows
    sampled   whether the latents exist already and only need decoding
    """

    request: Request
    recipe: Recipe
    batched: bool = False
    previews: bool = False
    keep: bool = False
    sampled: bool = False

    @property
    def shape(self) -> VideoPixelShape:
        """The shape of the finished clip."""
        return self.request.shape

    @property
    def prompt_tokens(self) -> int:
        """The most tokens a prompt can have: one per byte of UTF-8, a first token, and a space some tokenizers prepend."""
        request = self.request
        texts = (request.prompt, request.negative_prompt)[: 1 + self.recipe.guided]
        most = max(len(text.encode()) for text in texts) + 2
        return MAX_TOKENS if request.enhance else most

    def tokens(self, number: int, geometry: Geometry) -> AV[int]:
        """Tokens of each modality in stage ``number``, counted from 0."""
        recipe, shape = self.recipe, self.recipe.shape(self.shape, number)
        grid = geometry.latents(shape)
        video = grid.tokens + len(recipe.keyframes(self.shape)) * grid.tokens_per_frame
        if recipe.stages[number].detailing:  # it sees the previous stage's clip
            video += geometry.latents(recipe.shape(self.shape, number - 1)).tokens
        sound = geometry.audio_frames(self.shape) if self.request.audio else None
        tokens = AV(video, sound)
        for given in self.request.inputs_of(number):
            tokens = tokens.map(lambda n, more: n + (more or 0), given.tokens(grid))
        return tokens

    def round_tokens(self, geometry: Geometry) -> Iterator[tuple[AV[int], int]]:
        """Tokens of the largest tile in each of DFR's rounds, and the number of its tiles."""
        cells, time = geometry.latents(self.shape).tokens_per_frame, geometry.video.time
        layouts = self.recipe.layouts(self.shape, time) if self.recipe.rounds else ()
        for layout in layouts:
            yield AV(max(tile.cells(time) for tile in layout) * cells), len(layout)


class Phase(NamedTuple):
    """Bytes that a phase needs, and its floating-point operations (0 = few), from which the remaining time is estimated."""

    name: str
    weights: int
    activations: float
    operations: float = 0.0

    @property
    def peak(self) -> float:
        """Its most bytes at a time."""
        return self.weights + self.activations

    @property
    def seconds(self) -> float | None:
        """How long its operations take; ``None`` for decoding, and if the device was not measured."""
        speed = SPEED.get(mx.device_info().get("device_name"))
        known = speed and self.name != Doing.DECODE_VIDEO
        return self.operations / speed if known else None


@dataclass(frozen=True)
class Plan:
    """What a run will need.

    phases      the first is "libraries", which stay during all others and are not part of their ``peak``
    limit       bytes that the process may use
    components  unchanged, or under the residency that fits, which ``chosen`` names
    refusal     why nothing fits, and what would; empty if the plan fits
    previews    whether the clip can be shown while it is sampled
    """

    phases: tuple[Phase, ...]
    limit: float
    components: Components
    chosen: str = ""
    refusal: str = ""
    previews: bool = False

    @property
    def largest(self) -> Phase:
        """The phase that needs most, apart from the libraries."""
        return largest(self.phases[1:])

    @property
    def libraries(self) -> float:
        """Bytes of the libraries."""
        return self.phases[0].peak

    @property
    def room(self) -> float:
        """Bytes of the limit that the libraries leave."""
        return self.limit - self.libraries

    @property
    def spare(self) -> int:
        """Bytes of the limit that stay free in every phase."""
        return max(0, round(self.room - self.largest.peak))

    def check(self) -> "Plan":
        """The plan itself; raises ``UserError`` if it does not fit."""
        if self.refusal:
            raise UserError(self.refusal)
        return self


def plan(components: Components, work: Work, limit: float | None = None) -> Plan:
    """The first plan that fits into ``limit`` bytes (by default what the machine offers).

    Tries ``components`` as they are, then those ``SETTINGS`` that do not contradict the user's choice or the checkpoint.
    Previews and parts that stay loaded are dropped first if they do not fit.
    """
    limit = limit or OFFERED * machine_bytes()
    components = components.streaming(work.request.model_type)
    # A GPU's own memory holds no libraries.
    apart = mx.default_device() == mx.gpu and not mx.metal.is_available()
    libraries = Phase(Doing.LIBRARIES, 0, 0.0 if apart else LIBRARY_BYTES)
    room = limit - libraries.peak
    for chosen, residency in _residencies(components, work):
        for tried, residency in _with_extras(work, residency):
            footprint = Footprint(components, residency)
            steps = libraries, *footprint.phases(tried, room)
            found = Plan(steps, limit, components, chosen, previews=tried.previews)
            if found.largest.peak <= room:
                return replace(found, components=components.under(residency))
    refusal = footprint.refusal(tried, found)
    return replace(found, components=components.under(residency), refusal=refusal)


class Footprint:
    """Bytes that ``components`` need: each part's weights while loaded, its activations, and so the phases of a run.

    residency   how weights are kept; by default that of ``components``
    context     tokens of a padded prompt, including registers
    """

    def __init__(self, components: Components, residency: Residency | None = None):
        sources = components.sources
        self.components = components
        self.residency = residency = residency or components.residency
        self.part = cache(components.sketch)
        self.weights = cache(
            lambda name: residency.weight_bytes(self.part(name), sources[name])
        )
        gemma = sources.get("text_encoder")
        self.context = max_tokens(gemma.path) if gemma else MAX_TOKENS

    def phases(self, work: Work, room: float) -> Iterator[Phase]:
        """The phases of a run in order; ``room`` is for MLX's arrays and decides how the video is decoded."""
        request, sources = work.request, self.components.sources
        if not work.sampled:
            yield self.in_turn(Doing.ENCODE_PROMPT, work, "text_encoder", "connectors")
            if request.timed and "duration_head" in sources:
                yield self.in_turn(Doing.PREDICT_DURATION, work, "duration_head")
            # Networks of inputs are lent together, and meanwhile files are read.
            if request.inputs:
                most = [given.read_bytes for given in request.inputs]
                most += [self.computing(name, work) for name in request.encoders]
                yield self.phase(Doing.ENCODE_INPUTS, max(most), *request.encoders)
            yield from self._sampling(work)
        if request.audio:
            yield self.in_turn(Doing.DECODE_SOUND, work, "audio_decoder", "vocoder")
        yield self._decoding(work, room)

    def fits(self, work: Work, room: float) -> bool:
        """Whether no phase of ``work`` needs more than ``room`` bytes."""
        return all(phase.peak <= room for phase in self.phases(work, room))

    def phase(self, name: str, activations: float, *parts: str) -> Phase:
        """A phase that needs ``parts`` besides those that stay loaded."""
        weights = sum(map(self.weights, self.residency.keep.union(parts)))
        return Phase(name, weights, activations + SMALL)

    def computing(self, name: str, work: Work) -> float:
        """The most bytes that part ``name`` needs besides its weights: for all prompts, one picture, or the whole sound."""
        geometry, context = self.components.geometry, self.context
        prompts = 1 + work.recipe.guided
        rows = prompts * min(work.prompt_tokens, context)
        frames = geometry.audio_frames(work.shape) if geometry.audio else 0
        mel = frames and frames * geometry.audio.mel_frames
        sizes = {
            "text_encoder": (rows,),
            "connectors": (rows, prompts, context),
            "duration_head": (context,),
            "video_encoder": work.shape[1:3],
            "audio_encoder": (mel,),
            "audio_decoder": (frames,),
            "vocoder": (mel,),
        }
        return self.part(name).activation_bytes(*sizes[name])

    def in_turn(self, name: str, work: Work, *parts: str) -> Phase:
        """The phase ``name``, in which ``parts`` are lent one after the other: what the largest of them needs."""
        return largest([self.phase(name, self.computing(p, work), p) for p in parts])

    def _sampling(self, work: Work) -> Iterator[Phase]:
        """Each stage, and then each of DFR's rounds, which upsamples the whole clip and samples it tile by tile."""
        recipe, transformer = work.recipe, self.part("transformer")
        geometry, context = self.components.geometry, self.context
        sizes = [(work.tokens(n, geometry), 1) for n, _ in enumerate(recipe.stages)]
        sizes += work.round_tokens(geometry)
        streams = AV(True, work.request.audio or None)
        together = work.batched or self.residency.low_memory
        for number, (stage, (tokens, tiles)) in enumerate(zip(recipe.walk, sizes)):
            strengths = streams.map(lambda _, guidance: guidance, stage.guidance)
            passes = len(passes_of(PromptEmbeddings(AV(), AV()), strengths))
            held = transformer.held_bytes(tokens, passes, context)
            if number:
                whole = geometry.latents(work.shape).tokens
                finer = tokens.video if number < len(recipe.stages) else whole
                most = held + self.part(stage.upsampler).activation_bytes(finer)
                yield self.phase(Doing.UPSAMPLE, most, "transformer", stage.upsampler)
            at_once = passes if together else 1
            forward = transformer.activation_bytes(tokens, at_once, context)
            most = held + self._with_preview(work, number, forward)
            forwards = tiles * passes * (len(stage.sigmas) - 1)
            operations = forwards * transformer.operations(tokens, context)
            phase = self.phase(recipe.phase(number), most, "transformer")
            yield phase._replace(operations=operations)

    def _with_preview(self, work: Work, number: int, forward: float) -> float:
        """Bytes of a ``forward`` in stage ``number`` and of decoding one frame; rounds have no previews."""
        if not work.previews or number >= len(work.recipe.stages):
            return forward
        shape = work.recipe.shape(work.shape, number)
        latent = self.components.geometry.latents(shape)._replace(frames=1)
        decoder = self.part("video_decoder")
        frame = decoder.activation_bytes(latent, decoder.FRAME)
        if on_gpu() and decoder.FRAME == WHOLE:  # queued while the forward ends
            return forward + frame
        return max(forward, frame)

    def _decoding(self, work: Work, room: float) -> Phase:
        """The decoding, in tiles that may be chosen by the ``room`` that all weights leave."""
        name, geometry = "video_decoder", self.components.geometry
        loaded = self.residency.keep | {name}
        budget = room - sum(map(self.weights, loaded)) - SMALL
        decoder, grid = self.part(name), geometry.latents(work.shape)
        tiling = choose_tiling(work.request.tiling, decoder, grid, budget)
        most = decoder.activation_bytes(grid, tiling)
        decode = self.phase(Doing.DECODE_VIDEO, most, name)
        if work.sampled:  # there is no other to compare it with
            return decode
        tokens = work.tokens(len(work.recipe.stages) - 1, geometry)
        one = self.part("transformer").operations(tokens, self.context)
        return decode._replace(operations=PASSES_TO_DECODE * one)

    # What would fit, for those whose clip does not

    def least_limit(self, work: Work, plan: Plan) -> int:
        """The lowest limit in bytes that ``work`` fits into, a multiple of ``DIGIT``; ``plan`` is of the same work."""
        most = round(plan.libraries + plan.largest.peak) + 2 * DIGIT
        limits = range(DIGIT, most, DIGIT)

        def enough(limit: int) -> bool:
            return self.fits(work, limit - plan.libraries)

        return limits[bisect_left(limits, True, key=enough)]

    def nearest_sizes(self, work: Work, room: float) -> Iterator[VideoPixelShape]:
        """The longest clip of this size, and the largest of this length, that fit into ``room`` bytes; none if it is sampled."""
        grid = self.components.geometry.grid(work.recipe.shrink)
        ways = () if work.sampled else (grid.shorter, grid.smaller)

        def fitting(shape: VideoPixelShape) -> bool:
            request = replace(work.request, shape=shape)
            return self.fits(work._replace(request=request), room)

        for shapes in ([*way(work.shape)] for way in ways):
            first = bisect_left(shapes, True, key=fitting)
            yield from shapes[first : first + 1]

    def other_settings(self, work: Work, room: float) -> Iterator[str]:
        """Options that make ``work`` fit into ``room`` bytes: tiles, and the first of ``SETTINGS`` if the user chose others."""
        own, tiled = self.residency, replace(work.request, tiling="auto")
        if self.fits(work._replace(request=tiled), room):
            yield "--tiling auto"
        for low_memory, bits in SETTINGS if own.quantize else ():
            kept = replace(own, low_memory=low_memory or own.low_memory, quantize=bits)
            if Footprint(self.components, kept).fits(work, room):
                options = ["--low-memory"] * kept.low_memory
                yield " ".join(options + [f"--quantize {bits}"] * bool(bits))
                return

    def refusal(self, work: Work, plan: Plan) -> str:
        """Why ``work`` does not fit, and what would."""
        needed = self.least_limit(work, plan)
        phase = largest(self.phases(work, needed - plan.libraries)).name
        chosen = f", even with the {plan.chosen}" if plan.chosen else ""
        sizes = " or ".join(map(str, self.nearest_sizes(work, plan.room)))
        smaller = f"What fits: {sizes}. " if sizes else "No smaller clip fits. "
        smaller = "" if work.sampled else smaller
        ways = [*self.other_settings(work, plan.room)]
        ways.append(f"--memory-limit {needed / GB:.2f}GB")
        # Rounded down, while what is needed is rounded up, so that the two differ.
        limit = amount(plan.limit // DIGIT * DIGIT or plan.limit)
        return (
            f"{work.shape} need {amount(needed)} in the phase {phase!r}{chosen}; the limit is {limit}. "
            f"{smaller}At this size: {' or '.join(ways)}."
        )


def machine_bytes() -> int:
    """Memory that MLX's device can use: Metal's recommendation, what a GPU has free, or the computer's."""
    info = mx.device_info()
    if "free_memory" in info:  # which excludes our own
        ours = mx.get_active_memory() + mx.get_cache_memory()
        return info["free_memory"] + ours
    names = ("max_recommended_working_set_size", "total_memory")
    known = next((info[name] for name in names if name in info), None)
    return known or os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def largest(phases: Iterable[Phase]) -> Phase:
    """The phase that needs most."""
    return max(phases, key=lambda phase: phase.peak)


def _with_extras(work: Work, residency: Residency) -> Iterator[tuple[Work, Residency]]:
    """Variants from all optional extras to none."""
    for parts in KEPT if work.keep else KEPT[-1:]:
        for previews in (True, False) if work.previews else (False,):
            # Previews keep the decoder, which is needed again after sampling.
            keep = residency.keep.union(parts, ["video_decoder"] * previews)
            yield work._replace(previews=previews), replace(residency, keep=keep)


def _residencies(components: Components, work: Work) -> Iterator[tuple[str, Residency]]:
    """The residency of ``components``, then those of ``SETTINGS`` that user and checkpoint allow, each with its name."""
    own, sources = components.residency, components.sources
    yield "", own
    for low_memory, bits in () if own.quantize or work.sampled else SETTINGS:
        large = KEPT[0][low_memory:] if bits else ()
        large = [name for name in large if not sources[name].quantization]
        what = "weights" if "transformer" in large else "text encoder"
        names = ["transformer read in each step"] * (low_memory and not own.low_memory)
        names += [f"{what} in {bits} bits"] * bool(large)
        if names and low_memory >= own.low_memory and bool(large) == bool(bits):
            tried = replace(own, low_memory=low_memory, quantize=bits)
            yield " and the ".join(names), tried
