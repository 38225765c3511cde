"""Recipes for sampling each checkpoint, and every default of a generation. Nothing here computes with arrays."""

from dataclasses import dataclass, replace

from mlx_video.clip_limits import MOST_STEPS, check_strength
from mlx_video.disk import short
from mlx_video.errors import UserError, at
from mlx_video.models.ltx import dfr_layout
from mlx_video.models.ltx.checkpoint.layouts import VARIANTS
from mlx_video.models.ltx.config import LTXModelConfig
from mlx_video.models.ltx.loading.schema import Config
from mlx_video.sampling import schedules
from mlx_video.sampling.guidance import Guidance
from mlx_video.sampling.samplers import Sampler
from mlx_video.types import AV, Modality, VideoPixelShape

UPSAMPLERS = ("upsampler", "temporal_upsampler")  # parts
DECODERS = "video_decoder", "audio_decoder", "vocoder"
SEED = 10
SAMPLER_SEED = 10000  # added to a run's seed for the noise that a sampler adds, as in the official code
DECODER_SEED = 20000  # the same for the noise from which a diffusion decoder starts

# Official strengths of the 19B dev model (Lightricks/LTX-2, ltx_pipelines/utils/constants.py).
VIDEO_GUIDANCE = Guidance(cfg=3.0, stg=1.0, modality=3.0, rescale=0.7, stg_blocks=(29,))
USUAL_BLOCKS = (29,), (28,)  # LTX-2's and newer releases' for spatiotemporal guidance
AUDIO_GUIDANCE = replace(VIDEO_GUIDANCE, cfg=7.0)
STEPS = 40
MOST_ROUNDS = 2  # of DFR
# Official strengths of the HQ pipeline, which samples with res_2s.
HQ_GUIDANCE = AV(
    replace(VIDEO_GUIDANCE, stg=0.0, rescale=0.45),
    replace(AUDIO_GUIDANCE, stg=0.0, rescale=1.0),
)
HQ_STEPS = 15
DETAILING = 0.5  # official strength of the detailing LoRA

DEFAULT_NEGATIVE_PROMPT = (
    "blurry picture, low quality, low contrast, washed-out or oversaturated colours, compression blocks, "
    "flicker, jitter, ghosting, distorted anatomy, extra fingers, melting faces, warped objects, "
    "frozen motion, unnatural movement, subtitles, captions, watermark, logo, "
    "muffled voice, robotic speech, lips out of sync, clipping, hiss, hum, silence"
)


@dataclass(frozen=True)
class Stage:
    """One pass of sampling.

    sigmas          noise levels, descending to 0; the stage starts from the first
    scale           of the requested height and width
    distilled_lora  strength of the distilled LoRA fused into the transformer, 0 = none
    upsampler       the part that upsamples the latents of the previous stage
    detailing       strength of DFR's detailing LoRA, with which a stage sees the previous, smaller clip; 0 = none
    """

    sigmas: tuple[float, ...]
    scale: float = 1.0
    guidance: AV[Guidance] = AV(Guidance(), Guidance())
    distilled_lora: float = 0.0
    sampler: Sampler = Sampler()
    upsampler: str = "upsampler"
    detailing: float = 0.0

    @property
    def loras(self) -> tuple[float, float]:
        """Strengths of the LoRAs to fuse into the transformer."""
        return self.distilled_lora, self.detailing

    def check(self, num_layers: int | None = None) -> None:
        """Raise ``UserError`` for invalid noise levels or numbers, also for a model of ``num_layers``."""
        sigmas = self.sigmas
        falls = all(a > b for a, b in zip(sigmas, sigmas[1:]))
        if len(sigmas) < 2 or not falls or not 0 <= sigmas[-1] < sigmas[0] <= 1:
            raise UserError(
                f"A stage needs at least two sigmas, descending from at most 1 to at least 0; got {str(list(sigmas))[:80]}. "
                "For example: [1.0, 0.5, 0.0]."
            ).at("sigmas")
        if len(sigmas) > MOST_STEPS + 1:
            raise UserError(
                f"A stage has at most {MOST_STEPS:,} steps; got {len(sigmas) - 1:,}. The usual number is {STEPS}."
            ).at("sigmas")
        for name in ("distilled_lora", "detailing"):
            with at(name):
                check_strength(f"A stage's {name}", getattr(self, name), usual=0.5)
        for stream in Modality:
            with at("guidance", stream.value):
                _check_guidance(self.guidance[stream], num_layers)


def _check_guidance(guidance: Guidance | None, num_layers: int | None) -> None:
    """Raise ``UserError`` for a number that is out of range, or if there are no numbers."""
    if guidance is None:
        raise UserError("Guidance is missing; {} turns it off.")
    for name in ("cfg", "stg", "modality"):
        with at(name):
            usual = getattr(VIDEO_GUIDANCE, name)
            check_strength(name, getattr(guidance, name), usual)
    if not 0 <= guidance.rescale <= 1:
        raise UserError(
            f"rescale must be from 0 (off) to 1; got {guidance.rescale:g}. The usual value is {VIDEO_GUIDANCE.rescale:g}."
        ).at("rescale")
    if guidance.skip_step < 0:
        raise UserError(
            f"skip_step must be 0 or more; got {guidance.skip_step}. The usual number is 0."
        ).at("skip_step")
    # The usual block only matters where it is used: a small model may lack it.
    chosen = guidance.stg or guidance.stg_blocks not in USUAL_BLOCKS
    for block in guidance.stg_blocks if chosen else ():
        if block < 0:
            raise UserError(
                f"Blocks are counted from 0; got block {short(block)}. The usual one is {VIDEO_GUIDANCE.stg_blocks[0]}."
            ).at("stg_blocks")
        if num_layers and block >= num_layers:
            raise UserError(
                f"Guidance perturbs block {short(block)}; this transformer has {num_layers} blocks, counted from 0. "
                f"Try --stg-blocks {num_layers // 2}."
            ).at("stg_blocks")


@dataclass(frozen=True)
class Recipe:
    """The stages of a generation; each starts from the upsampled result of the one before.

    variant  of the transformer that it is for: "distilled" or "dev"
    sound    the stage, counted from 0, whose sound the clip keeps; -1 = the last
    rounds   DFR's rounds, each of which doubles the frame rate; ``None`` = not a DFR recipe
    """

    variant: str
    stages: tuple[Stage, ...]
    sound: int = -1
    rounds: tuple[Stage, ...] | None = None

    @property
    def sound_stage(self) -> int:
        """The stage whose sound the clip keeps, counted from 0."""
        return self.sound % len(self.stages)

    @property
    def walk(self) -> tuple[Stage, ...]:
        """The stages, followed by the rounds."""
        return (*self.stages, *(self.rounds or ()))

    def phase(self, number: int) -> str:
        """The name of stage ``number``, counted from 0, in plans and progress; DFR's rounds follow the stages."""
        late = number - len(self.stages)
        return f"stage {number + 1}" if late < 0 else f"round {late + 1}"

    def shape(self, clip: VideoPixelShape, number: int) -> VideoPixelShape:
        """The shape that stage ``number``, counted from 0, samples for a ``clip``."""
        return self.staged(clip).scaled(self.stages[number].scale)

    def staged(self, shape: VideoPixelShape) -> VideoPixelShape:
        """The shape that the stages sample for a clip of ``shape``; for DFR, its canvas before the rounds."""
        if self.rounds is None:
            return shape
        factor = 2 ** len(self.rounds)
        if (shape.frames - 1) % factor or shape.frames < 2:
            raise UserError(
                f"DFR with {len(self.rounds)} rounds makes 1 + {factor}k frames, at least {1 + factor}; got {shape.frames}. "
                "For example: 121."
            )
        canvas = dfr_layout.Canvas.of((shape.frames - 1) // factor + 1)
        return shape._replace(frames=canvas.frames, fps=shape.fps / factor)

    def keyframes(self, clip: VideoPixelShape) -> tuple[int, ...]:
        """Frames of the canvas where DFR generates pictures, besides those of the user."""
        if self.rounds is None:
            return ()
        return dfr_layout.Canvas.of(self.staged(clip).frames).keyframes

    def layouts(
        self, clip: VideoPixelShape, time_scale: int
    ) -> list[list[dfr_layout.Tile]]:
        """The tiles of each of DFR's rounds."""
        canvas = dfr_layout.Canvas.of(self.staged(clip).frames)
        return dfr_layout.layouts(canvas, len(self.rounds or ()), time_scale)

    @property
    def shrink(self) -> int:
        """How many times smaller the smallest stage is than the clip."""
        return round(1 / min(stage.scale for stage in self.stages))

    @property
    def needs(self) -> tuple[str, ...]:
        """Names of the parts that it needs; a request adds those of its inputs."""
        parts = ["text_encoder", "connectors", "transformer"]
        parts += dict.fromkeys(stage.upsampler for stage in self.walk[1:])
        if any(stage.distilled_lora for stage in self.stages):
            parts.append("distilled_lora")
        return (*parts, *DECODERS)

    @property
    def guided(self) -> bool:
        """Whether any stage uses the negative prompt."""
        return any(g.cfg != 1.0 for stage in self.stages for g in stage.guidance.values)

    def check(self, model: LTXModelConfig | None = None) -> None:
        """Raise ``UserError`` for invalid stages, variant or rounds, or what a transformer of config ``model`` cannot do."""
        if self.variant not in VARIANTS:
            raise UserError(
                f"The variant must be distilled or dev; got {short(repr(self.variant))}."
            ).at("variant")
        if not self.stages:
            raise UserError("A recipe needs at least one stage; got none.").at("stages")
        scales = [stage.scale for stage in self.stages]
        usual = [0.5**number for number in reversed(range(len(scales)))]
        if scales != usual:
            raise UserError(
                f"Each stage doubles the size, up to scale 1: scales must be {str(usual)[-80:]}; got {str(scales)[-80:]}."
            ).at("stages")
        if not -1 <= self.sound < len(self.stages):
            raise UserError(
                f"sound must be the number of a stage, from 0 to {len(self.stages) - 1}, or -1 for the last; got "
                f"{short(self.sound)}."
            ).at("sound")
        with at("rounds"):
            _check_rounds(len(self.rounds or ()))
        lacking = model and not model.use_keyframes_abs_pos_embedding
        if self.rounds is not None and lacking:
            raise UserError(
                "This model cannot generate keyframes, which DFR needs; LTX-2.5 can. Leave out --dfr."
            ).at("rounds")
        for name, upsampler in zip(("stages", "rounds"), UPSAMPLERS):
            for number, stage in enumerate(getattr(self, name) or ()):
                with at(name, number):
                    stage.check(model and model.num_layers)
                    self._check_stage(stage, upsampler)

    def _check_stage(self, stage: Stage, upsampler: str) -> None:
        """Raise ``UserError`` for what ``stage`` cannot have in this recipe."""
        if stage.upsampler != upsampler:
            raise UserError(
                "A recipe's stages take the upsampler and DFR's rounds the temporal_upsampler; got "
                f"{stage.upsampler[:40]!r}."
            )
        if self.rounds is None and stage.detailing:
            raise UserError(
                "Only DFR uses the detailing LoRA; leave it out of a recipe without rounds."
            )


def distilled(sampler: str = "euler") -> Recipe:
    """Eight steps at half size with ``sampler``, then three Euler steps at full size on the upsampled latents."""
    first = Stage(schedules.STAGE_1_SIGMAS, scale=0.5, sampler=Sampler(sampler))
    return Recipe("distilled", (first, Stage(schedules.STAGE_2_SIGMAS)))


def finished(shape: VideoPixelShape, rounds: int | None) -> VideoPixelShape:
    """The shape of a clip of ``shape`` after ``rounds`` of DFR; ``None`` = not DFR."""
    _check_rounds(rounds or 0)
    factor = 2 ** (rounds or 0)
    frames = (shape.frames - 1) * factor + 1
    return shape._replace(frames=frames, fps=shape.fps * factor)


def _check_rounds(rounds: int) -> None:
    if not 0 <= rounds <= MOST_ROUNDS:
        raise UserError(f"DFR must have from 0 to {MOST_ROUNDS} rounds; got {rounds}.")


def dfr_recipe(rounds: int, detailing: float = 0.0) -> Recipe:
    """Two stages that generate pictures with the clip, then ``rounds`` that double its frame rate tile by tile.

    ``detailing`` is the strength of the detailing LoRA in the second stage, usually ``DETAILING``; 0 is none.
    """
    _check_rounds(rounds)
    second = Stage(schedules.STAGE_2_SIGMAS, detailing=detailing)
    stages = Stage(schedules.STAGE_1_SIGMAS, scale=0.5), second
    sampler = Sampler("euler_ancestral", dfr_layout.ROUND_ETA)
    round_ = Stage(
        schedules.DFR_ROUND_SIGMAS, sampler=sampler, upsampler="temporal_upsampler"
    )
    return Recipe("distilled", stages, sound=0, rounds=(round_,) * rounds)


def dev(
    steps: int = STEPS,
    guidance: AV[Guidance] = AV(VIDEO_GUIDANCE, AUDIO_GUIDANCE),
    two_stage: bool = False,
) -> Recipe:
    """A guided stage at full size; or at half size, followed by a distilled refinement of the video."""
    sigmas = tuple(schedules.ltx2_scheduler(steps).tolist())
    if not two_stage:
        return Recipe("dev", (Stage(sigmas, 1.0, guidance),))
    refinement = Stage(schedules.STAGE_2_SIGMAS, distilled_lora=1.0)
    return Recipe("dev", (Stage(sigmas, 0.5, guidance), refinement), sound=0)


@dataclass(frozen=True)
class Defaults(Config):
    """Settings that apply unless the user chooses others: LTX-2's, or those that a checkpoint states.

    audio                       whether clips have sound, unless the door decides
    sampler                     for the distilled model's first stage
    image_crf                   H.264 constant rate factor of the pictures that the model was trained on; officially 33
    cfg, stg, modality, rescale strengths of guidance; ``audio_cfg`` is for the audio, the others are shared
    may_be_still, may_be_silent whether such clips are healthy, because the model was trained on some
    """

    width: int = 768
    height: int = 512
    frames: int = 121
    fps: float = 24.0
    audio: bool = True
    negative_prompt: str = DEFAULT_NEGATIVE_PROMPT
    steps: int = STEPS
    cfg: float = VIDEO_GUIDANCE.cfg
    audio_cfg: float = AUDIO_GUIDANCE.cfg
    stg: float = VIDEO_GUIDANCE.stg
    stg_blocks: tuple[int, ...] = VIDEO_GUIDANCE.stg_blocks
    modality: float = VIDEO_GUIDANCE.modality
    rescale: float = VIDEO_GUIDANCE.rescale
    sampler: str = "euler"
    image_crf: int = 33
    may_be_still: bool = False
    may_be_silent: bool = False

    def given(self, **values) -> "Defaults":
        """The same with the ``values`` that are not ``None``."""
        return replace(self, **{k: v for k, v in values.items() if v is not None})

    @property
    def shape(self) -> VideoPixelShape:
        """The shape of a default clip."""
        return VideoPixelShape(self.frames, self.height, self.width, self.fps)

    @property
    def guidance(self) -> AV[Guidance]:
        """Strengths of the dev model, for video and for audio."""
        strengths = self.cfg, self.stg, self.modality, self.rescale
        video = Guidance(*strengths, stg_blocks=tuple(self.stg_blocks))
        return AV(video, replace(video, cfg=self.audio_cfg))

    def hq(
        self,
        tokens: int,
        *,
        steps: int = HQ_STEPS,
        audio_cfg: float = HQ_GUIDANCE.audio.cfg,
        **given,
    ) -> Recipe:
        """A few guided steps of two predictions each at half size, then a refinement, both with a weak distilled LoRA.

        tokens  of the half-size clip's latents, on which the noise levels depend
        given   strengths of ``Guidance`` instead of those of the official HQ pipeline
        """
        given = {"stg_blocks": tuple(self.stg_blocks)} | given
        video = replace(HQ_GUIDANCE.video, **given)
        audio = replace(HQ_GUIDANCE.audio, **given | {"cfg": audio_cfg})
        sampler = Sampler("res_2s")
        sigmas = tuple(schedules.ltx2_scheduler(steps, tokens).tolist())
        first = Stage(sigmas, 0.5, AV(video, audio), 0.25, sampler)
        second = Stage(schedules.STAGE_2_SIGMAS, distilled_lora=0.5, sampler=sampler)
        return Recipe("dev", (first, second), sound=0)

    def recipe(self, variant: str, two_stage: bool = False) -> Recipe:
        """The recipe for ``variant``; raises ``UserError`` if it is neither "distilled" nor "dev"."""
        if variant == "distilled":
            return distilled(self.sampler)
        if variant == "dev":
            return dev(self.steps, self.guidance, two_stage)
        raise UserError(f"The variant must be distilled or dev; got {variant!r}.")
