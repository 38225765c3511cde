"""The single path from a request to a clip, for all doors. Owns order and lifetimes, and no mathematics."""

import math
import warnings
from contextlib import ExitStack
from dataclasses import KW_ONLY, dataclass, replace
from itertools import groupby
from typing import Callable, Generator, Iterator, Mapping, NamedTuple, TypeVar

import mlx.core as mx
import numpy as np

from mlx_video import health, postprocess
from mlx_video.conditioning.latent import Condition, LatentState
from mlx_video.errors import UserError, at
from mlx_video.inputs import Model, Parts, forget_pictures
from mlx_video.models.ltx import connector, duration
from mlx_video.models.ltx.checkpoint.checks import check_duration_head
from mlx_video.models.ltx.loading.components import Components
from mlx_video.models.ltx.loading.parts import PARTS, Network
from mlx_video.models.ltx.pacing import piece_by_piece
from mlx_video.models.ltx.patchify import initial_states, noised, unpatchify
from mlx_video.models.ltx.upsampler import upsample_normalized
from mlx_video.models.ltx.video_vae.decoding import choose_tiling, decode_stream
from mlx_video.plan import machine_bytes
from mlx_video.previews import Preview, Previews
from mlx_video.recipes import DECODER_SEED, SAMPLER_SEED, Defaults, Recipe, Stage
from mlx_video.request import Request
from mlx_video.sampling.guidance import Predict, guided, may_start
from mlx_video.sampling.samplers import Denoise
from mlx_video.types import AV, Clip, Doing, PromptEmbeddings, Sample, Step, Waveform

X = TypeVar("X")
Conditions = list[AV[list[Condition]]]


class Reached(NamedTuple):
    """How far sampling has come: with the request and the recipe, all that is needed to resume to the same bytes.

    stage, step  how many stages are done, and how many steps of the next
    latents      each stream's tokens at that point, (B, N, C), float32
    sound        audio latents that the clip keeps; ``None`` until their stage is done
    """

    stage: int
    step: int
    latents: AV[mx.array]
    sound: mx.array | None = None

    def into(self, states: AV[LatentState]) -> AV[LatentState]:
        """``states`` of that stage with these latents."""
        shapes = self.latents.map(lambda latent: latent.shape)
        if shapes != states.map(lambda state: state.latent.shape):
            raise UserError(
                "The saved state does not match its record: its streams or sizes differ."
            )
        return states.map(lambda state, x: state._replace(latent=x), self.latents)


class Made(NamedTuple):
    """What a stage made, for the next.

    latents   video (B, C, F, H, W) and audio (B, C, T, M)
    sound     audio latents that the clip keeps; ``None`` until their stage is done
    pictures  DFR's pictures, (B, C, 1, H, W) each, by frame
    """

    latents: AV[mx.array] = AV()
    sound: mx.array | None = None
    pictures: Mapping[int, mx.array] = {}


Working = Generator[Step | Preview | Reached, None, X]  # yields progress, returns an X


class Sampling(NamedTuple):
    """What sampling needs: ``conditions`` of each stage, where to ``start``, and the transformer while it is lent."""

    request: Request
    embeddings: PromptEmbeddings
    conditions: list[Conditions]
    start: Reached | None = None
    predict: Predict | None = None
    previews: Previews | None = None


@dataclass(eq=False)
class Pipeline:
    """Generate clips with a checkpoint's ``components``, sampled by ``recipe``; one large component is loaded at a time.

    health   whether to check the output of each phase and raise ``HealthError`` for garbage
    batched  whether to run guided passes as one batch: faster if memory allows. Always so if blocks are read in each step
    memory   bytes that may be used in total while decoding; by default what the device has
    previews whether to yield a ``Preview`` after steps that are long enough
    """

    components: Components
    recipe: Recipe
    _: KW_ONLY
    health: bool = True
    batched: bool = False
    memory: float | None = None
    previews: bool = False

    def __post_init__(self):
        self.components.inspect = health.check_weights if self.health else None
        self.defaults = Defaults.from_dict(self.components.layout.defaults)

    def __call__(self, request: Request) -> Clip:
        """The clip of ``request``; its frames are decoded as they are taken."""
        *_, clip = self.stream(request)
        return clip

    def stream(self, request: Request) -> Iterator[Step | Preview | Sample | Clip]:
        """Yield ``Step``s of progress, then the ``Sample``, which is worth saving, and finally the ``Clip``.

        Raises ``UserError`` before anything is loaded, ``HealthError`` later.
        """
        for caution in self.cautions(request):
            warnings.warn(caution, stacklevel=2)
        if request.timed:
            self.check(request)
            request = yield from self.timed(request)
        for event in self.events(request):
            if not isinstance(event, Reached):
                yield event
        yield self.decode(event.latents, request)

    def events(
        self, request: Request, start: Reached | None = None
    ) -> Iterator[Step | Preview | Reached | Sample]:
        """``stream`` up to the ``Sample``, with a ``Reached`` after each step that ``start`` can be; resumes from ``start``."""
        self.check(request)
        embeddings, prompt = yield from self._encode_prompt(request)
        conditions = yield from self._encode_inputs(request)
        sampling = Sampling(request, embeddings, conditions, start)
        latents = yield from self._sample(sampling)
        yield Sample(latents, prompt)

    def timed(self, request: Request) -> Generator[Step, None, Request]:
        """``request`` with the number of frames that the duration head chooses for its prompt.

        If the prompt is to be enhanced, that is done here, once.
        """
        whole = replace(request, audio=True)  # the head reads both streams' context
        embeddings, prompt = yield from self._encode_prompt(whole)
        yield Step(Doing.PREDICT_DURATION, 0, 1)
        with self.components.lend("duration_head") as head:
            seconds = head(embeddings.positive).item()
        yield Step(Doing.PREDICT_DURATION, 1, 1)
        fps, step = request.shape.fps, self.components.geometry.video.time
        shape = request.shape._replace(frames=duration.frames_for(seconds, fps, step))
        return replace(request, shape=shape, prompt=prompt, enhance=False, timed=False)

    def decode(self, latents: AV[mx.array], request: Request) -> Clip:
        """The clip of latents (B, C, F, H, W) and (B, C, T, M): decodes sound now, and frames as they are taken."""
        *_, clip = self.decoding(latents, request)
        return clip

    def decoding(
        self, latents: AV[mx.array], request: Request
    ) -> Iterator[Step | Clip]:
        """``Step``s up to the first frame, and finally the clip."""
        if self.health:
            health.check_latents(latents, "sampling")
        shape, sound = request.shape, None
        if latents.audio is not None:
            yield Step(Doing.DECODE_SOUND, 0, 1)
            sound = postprocess.fit_sound(self._decode_audio(latents.audio), shape)
            yield Step(Doing.DECODE_SOUND, 1, 1)
        yield Step(Doing.DECODE_VIDEO, 0, shape.frames)
        yield Clip(self._decode_video(latents.video, request), shape, sound)

    def latent_shapes(self, request: Request) -> AV[tuple[int, ...]]:
        """The shapes of the latents that sampling makes for ``request``."""
        geometry = self.components.geometry
        video = tuple(geometry.latents(request.shape))
        if not request.audio:
            return AV(video)
        T, audio = geometry.audio_frames(request.shape), geometry.audio
        return AV(video, (1, audio.channels, T, audio.bins))

    def latent_bytes(self, request: Request) -> int:
        """The size of those latents."""
        return sum(4 * math.prod(shape) for shape in self.latent_shapes(request).values)

    def check(self, request: Request) -> None:
        """Raise ``UserError`` for anything wrong that can be known before weights are read."""
        config = PARTS["transformer"].config(self.components.sources["transformer"])
        with at("recipe"):
            self.recipe.check(config)
        with at("request"):
            request.check(self.recipe, Model(self.components.geometry, config))
        needs = request.needs(self.recipe)
        with at("request", "timed"):
            check_duration_head(needs, self.components.sources)
        texts = self._texts(request, request.prompt)
        self.components.streaming(request.model_type).check(needs, texts)

    def cautions(self, request: Request) -> Iterator[str]:
        """What the user should know before sampling: words unknown to the model, and notices of the inputs."""
        if not request.enhance:
            from mlx_video.models.ltx import tokenizer  # imports tokenizers

            text_encoder = self.components.sources["text_encoder"].path
            if caution := tokenizer.caution(text_encoder, request.prompt):
                yield caution
        for given in request.inputs:
            yield from given.notices(request.shape)

    def _texts(self, request: Request, prompt: str) -> list[str]:
        return [prompt, request.negative_prompt] if self.recipe.guided else [prompt]

    # Phases, in order. Each is a generator that yields Steps and returns its result.

    def _encode_prompt(self, request: Request) -> Working[tuple[PromptEmbeddings, str]]:
        yield Step(Doing.LOAD_TEXT_ENCODER, 0, 1)
        with self.components.lend("text_encoder") as encoder:
            yield Step(Doing.LOAD_TEXT_ENCODER, 1, 1)
            yield Step(Doing.ENCODE_PROMPT, 0, 2)
            prompt = self._enhanced(request, encoder)
            features = encoder.features(self._texts(request, prompt))
        yield Step(Doing.ENCODE_PROMPT, 1, 2)
        with self.components.lend("connectors") as connectors:
            modalities = AV(True, request.audio or None).present
            embeddings = connector.embed_prompts(connectors, features, modalities)
            mx.eval([p.values for p in (embeddings.positive, embeddings.negative) if p])
        if self.health:
            health.check_embeddings(embeddings.positive)
        yield Step(Doing.ENCODE_PROMPT, 2, 2)
        return embeddings, prompt

    def _enhanced(self, request: Request, encoder: Network) -> str:
        if not request.enhance:
            return request.prompt
        from mlx_video.models.ltx.enhance import enhance_i2v, enhance_t2v

        pictured = "video_encoder" in request.encoders
        enhance = enhance_i2v if pictured else enhance_t2v
        return enhance(encoder, request.prompt, seed=request.seed)

    def _encode_inputs(self, request: Request) -> Working[list[Conditions]]:
        count, conditions = len(self.recipe.walk), []
        if request.inputs:
            yield Step(Doing.ENCODE_INPUTS, 0, count)
        with ExitStack() as loans:
            lend = self.components.lend
            networks = {n: loans.enter_context(lend(n)) for n in request.encoders}
            parts = Parts(networks, self.components.geometry, self.defaults.image_crf)
            for number in range(count):
                conditions.append(self._conditions(request, parts, number))
                if request.inputs:
                    yield Step(Doing.ENCODE_INPUTS, number + 1, count)
        forget_pictures()
        return conditions

    def _conditions(self, request: Request, parts: Parts, number: int) -> Conditions:
        """The conditions of stage ``number``, at its size."""
        shape = self.recipe.shape(request.shape, number)
        return [given.encode(parts, shape) for given in request.inputs_of(number)]

    def _sample(self, sampling: Sampling) -> Working[AV[mx.array]]:
        """Run the stages; consecutive ones with the same weights share one load of the transformer."""
        request, start = sampling.request, sampling.start
        stages = list(enumerate(self.recipe.walk))[start.stage if start else 0 :]
        made = Made(sound=start.sound if start else None)
        components = self.components.streaming(request.model_type)
        for loras, group in groupby(stages, key=lambda item: item[1].loras):
            yield Step(Doing.LOAD_TRANSFORMER, 0, 1)
            with components.transformer(*loras) as predict:
                yield Step(Doing.LOAD_TRANSFORMER, 1, 1)
                shown = predict.model if self.previews else None
                with Previews(components, shown) as previews:
                    lent = sampling._replace(predict=predict, previews=previews)
                    for number, _ in group:
                        made = yield from self._stage(lent, number, made)
        return AV(made.latents.video, made.sound)

    def _stage(self, sampling: Sampling, number: int, before: Made) -> Working[Made]:
        """Run stage ``number`` on the upsampled latents of the previous one."""
        if before.latents.video is not None:
            upsampled = self._upsample(before.latents, self.recipe.stages[number])
            before = before._replace(latents=(yield from upsampled))
        made, _ = yield from self._sampled(sampling, number, before)
        return made

    def _sampled(
        self, sampling: Sampling, number: int, before: Made, more: Conditions = []
    ) -> Working[tuple[Made, AV[LatentState]]]:
        """What stage ``number`` makes of the upsampled ``before``, and its last states; ``more`` are further conditions."""
        geometry, request = self.components.geometry, sampling.request
        shape = self.recipe.shape(request.shape, number)
        given = [*sampling.conditions[number], *more]
        states = initial_states(shape, geometry, before.latents, given, request.audio)
        sampling.previews.begin(number, geometry.latents(shape))
        states = yield from self._denoise(sampling, number, before, states)
        latents = unpatchify(states, shape, geometry)
        if self.health:
            health.check_latents(latents, self.recipe.phase(number))
        own = number == self.recipe.sound_stage
        return Made(latents, latents.audio if own else before.sound), states

    def _denoise(
        self, sampling: Sampling, number: int, before: Made, states: AV[LatentState]
    ) -> Working[AV[LatentState]]:
        """The states after the last step of stage ``number``, from noiseless ``states``."""
        request, embeddings, _, start, predict, previews = sampling
        stage, done, queue = self.recipe.stages[number], 0, previews.queue
        states = noised(states, stage.sigmas[0], self._key(request.seed, number))
        if start and start.stage == number:
            states, done = start.into(states), start.step
        strengths = states.map(lambda _, guidance: guidance, stage.guidance)
        batched = self.batched or self.components.residency.low_memory
        denoise = guided(predict, embeddings, strengths, batched=batched)
        denoise = previews.watching(denoise, len(stage.sigmas) - 1)
        key = self._key((request.seed + SAMPLER_SEED) % 2**32, number)
        for step, states in self._steps(number, denoise, states, key, done, queue):
            yield step
            if not done < step.index < step.total:
                continue  # nothing is new, or the stage is over
            # The smaller clip that a detailing stage sees is not saved.
            if not stage.detailing and may_start(strengths, step.index):
                latents = states.map(lambda state: state.latent)
                yield Reached(number, step.index, latents, before.sound)
            yield from previews.after(step.index)
        return states

    def _steps(
        self,
        number: int,
        denoise: Denoise,
        states: AV[LatentState],
        key: mx.array,
        done: int = 0,
        queued: Callable[[], None] = lambda: None,
    ) -> Iterator[tuple[Step, AV[LatentState]]]:
        """The steps of stage ``number`` from ``done`` on, each with its evaluated states; the first has ``states``.

        queued  is called when a step is queued on the device, before it is waited for
        """
        name, stage = self.recipe.phase(number), self.recipe.walk[number]
        total = len(stage.sigmas) - 1
        yield Step(name, done, total, stage.sigmas[done]), states
        sampled = stage.sampler(denoise, states, stage.sigmas, key=key, start=done)
        for index, (states, sigma) in enumerate(sampled, start=done + 1):
            latents = [state.latent for state in states.values]
            mx.async_eval(latents)
            queued()
            mx.eval(latents)
            del latents
            yield Step(name, index, total, sigma), states

    def _key(self, seed: int, number: int) -> mx.array:
        return mx.random.split(mx.random.key(seed), len(self.recipe.stages))[number]

    def _upsample(self, latents: AV[mx.array], stage: Stage) -> Working[AV[mx.array]]:
        """The video upsampled for ``stage``, by default to twice the rows and columns, and the sound unchanged."""
        yield Step(Doing.UPSAMPLE, 0, 1)
        with self.components.lend(stage.upsampler) as upsampler, piece_by_piece():
            statistics = self.components.video_statistics()
            video = upsample_normalized(upsampler, statistics, latents.video)
            mx.eval(video)
        if self.health:
            health.check_latents(AV(video), "upsampling")
        yield Step(Doing.UPSAMPLE, 1, 1)
        return AV(video, latents.audio)

    def _decode_audio(self, latent: mx.array) -> Waveform:
        with self.components.lend("audio_decoder") as decoder:
            log_mel = decoder(latent)
            mx.eval(log_mel)
        with self.components.lend("vocoder") as vocoder:
            waveform = Waveform(vocoder(log_mel)[0], vocoder.sample_rate)
            mx.eval(waveform.samples)
        if self.health:
            health.check_waveform(waveform, self.defaults.may_be_silent)
        return waveform

    def _decode_video(self, latent: mx.array, request: Request) -> Iterator[np.ndarray]:
        # A diffusion decoder starts from noise.
        key = mx.random.key((request.seed + DECODER_SEED) % 2**32)
        with self.components.lend("video_decoder") as decoder:
            budget = (self.memory or machine_bytes()) - mx.get_active_memory()
            tiling = choose_tiling(request.tiling, decoder, latent.shape, budget)
            pieces = decode_stream(decoder, latent, tiling, key=key)
            if not self.health:
                yield from postprocess.frames(pieces)
                return
            cell = self.components.geometry.video
            frames = postprocess.frames(health.check_pixels(p, cell) for p in pieces)
            yield from health.watched(frames, self.defaults.may_be_still)
