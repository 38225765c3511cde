"""The small world as latents: scenes encoded once, in shards on disk, with sentences about each: ``python -m tiny.latents``.

Knows encoders, sentences and files; not what a transformer learns from them.
"""

import argparse
import time
from pathlib import Path
from typing import Iterator, NamedTuple, Sequence

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_video.models.ltx.patchify import (
    patchify_audio,
    patchify_video,
)
from mlx_video.models.ltx.text_encoder import GemmaTextEncoder
from mlx_video.types import AV, VideoPixelShape
from tiny import quick
from tiny.model import GEOMETRY, TEXT_TOKENS, WORK, load
from tiny.sentences import describe
from tiny.text import load_encoder
from tiny.train_audio_vae import spectrograms
from tiny.world import MOTIONS, Scene, draw, random_scene

GPU = mx.default_device() == mx.gpu
SHARD = 256  # scenes
TOLD = 8  # sentences about each scene
PAIRED = 0.4  # chance of a try at a second actor: a third of the scenes have one
# Of first actors: what spins thrice, what circles or bounces twice.
OFTEN = (*MOTIONS, "spin", "spin", "circle", "bounce")
UNSEEN = "unseen"  # in place of a shard's number: scenes to measure on, whose first actor is held out
PIXELS = 2**25 if GPU else 2**22  # encoded at once
CACHE = 2**31  # bytes of freed memory to keep, since several processes share a GPU


class Latents(NamedTuple):
    """Scenes of one size, as inference has them.

    video  (n, N, 128) float16, tokens of normalised latents; a shorter clip is their beginning, for the encoders are
           causal
    audio  (n, T, 128) float16
    ids    (n, TOLD, TEXT_TOKENS) int16 on the host, sentences padded on the left with 0
    """

    video: mx.array
    audio: mx.array
    ids: np.ndarray

    def batch(self, rows: np.ndarray, shape: VideoPixelShape) -> AV[mx.array]:
        """float32 tokens (B, N, 128) and (B, T, 128) of clips cut to ``shape``, which has the size of these."""
        tokens = GEOMETRY.latents(shape).tokens
        sounds = GEOMETRY.audio_frames(shape)
        rows = mx.array(rows)
        both = AV(self.video[rows, :tokens], self.audio[rows, :sounds])
        return both.map(lambda x: x.astype(mx.float32))


class Encoders(NamedTuple):
    video: nn.Module
    audio: nn.Module
    text: GemmaTextEncoder

    @classmethod
    def trained(cls) -> "Encoders":
        """As training left them; the video's in bfloat16 on a GPU."""
        video = load("video_encoder")
        if GPU:
            video.set_dtype(mx.bfloat16)
        return cls(video, load("audio_encoder"), load_encoder())


def read(size: int, which: str = "[0-9]*") -> Latents:
    """All shards of scenes ``size`` pixels high, or the one that is called ``which``.

    Raises ``FileNotFoundError`` where there are none.
    """
    files = sorted(WORK.glob(f"latents-{size}-{which}.safetensors"))
    if not files:
        raise FileNotFoundError(
            f"No latents of {size} pixels in {WORK}. Make them: python -m tiny.latents --size {size}"
        )
    shards = [mx.load(str(file)) for file in files]
    video, audio, ids = (
        mx.concatenate([shard[name] for shard in shards]) for name in Latents._fields
    )
    mx.eval(video, audio, ids)
    return Latents(video, audio, np.array(ids))


def make(
    encoders: Encoders,
    count: int,
    size: int,
    frames: int,
    share: Sequence[int] = (0, 1),
) -> Iterator[tuple[int, Path]]:
    """Write the shards that are missing to ``count`` scenes, first the one to measure on; yields each one's number of scenes.

    Of ``share`` (i, n), only every nth from the ith, so that n processes can do it together.
    """
    WORK.mkdir(parents=True, exist_ok=True)
    whole, rest = divmod(count, SHARD)
    counts = [SHARD // 4, *[SHARD] * whole, *[rest] * (rest > 0)]
    for number, n in enumerate(counts):
        name = f"{number:04d}" if number else UNSEEN
        file = WORK / f"latents-{size}-{name}.safetensors"
        if file.exists() or number % share[1] != share[0]:
            continue
        rng = np.random.default_rng([size, number])
        scenes = draw_scenes(rng, n, unseen=number == 0)
        latents = encode(encoders, scenes, size, frames, rng)
        arrays = latents._replace(ids=mx.array(latents.ids))._asdict()
        aside = file.with_name(f"part-{file.name}")  # which nobody reads
        mx.save_safetensors(str(aside), arrays)
        yield n, aside.rename(file)


def draw_scenes(rng: np.random.Generator, count: int, unseen: bool) -> list[Scene]:
    """Scenes to train on, the hard ones more often than in the world; or ``unseen`` ones to measure on, as often as there."""
    how = {"unseen": True} if unseen else {"two": PAIRED, "motions": OFTEN}
    return [random_scene(rng, **how) for _ in range(count)]


def encode(
    encoders: Encoders,
    scenes: list[Scene],
    size: int,
    frames: int,
    rng: np.random.Generator,
) -> Latents:
    """Latents of ``scenes`` that are ``size`` pixels high and wide and ``frames`` long."""
    step = max(1, PIXELS // (frames * size * size))
    pieces = []
    for start in range(0, len(scenes), step):
        part = scenes[start : start + step]
        video = patchify_video(encoders.video(draw(part, frames, size, size)))
        audio = patchify_audio(encoders.audio(spectrograms(part, frames)))
        pieces.append([x.astype(mx.float16) for x in (video, audio)])
        mx.eval(pieces[-1])
    video, audio = map(mx.concatenate, zip(*pieces))
    return Latents(video, audio, tell(encoders.text, scenes, rng))


def tell(
    encoder: GemmaTextEncoder, scenes: list[Scene], rng: np.random.Generator
) -> np.ndarray:
    """``TOLD`` sentences about each scene as ids: (n, TOLD, TEXT_TOKENS) int16."""
    texts = [describe(scene, rng) for scene in scenes for _ in range(TOLD)]
    ids, _ = encoder.tokenizer.tokenize(texts, TEXT_TOKENS)
    return np.array(ids, np.int16).reshape(len(scenes), TOLD, TEXT_TOKENS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=128, help="128 or 256 pixels")
    parser.add_argument("--frames", type=int, default=97 if GPU else 49)
    parser.add_argument("--count", type=int, help="of scenes")
    parser.add_argument(
        "--share",
        type=int,
        nargs=2,
        default=(0, 1),
        metavar=("I", "N"),
        help="make every Nth shard from number I: N processes make them all",
    )
    options = parser.parse_args()
    mx.set_cache_limit(CACHE)
    count = options.count or (65536 if GPU else 4096) * 128**2 // options.size**2
    quick.install()
    began, done = time.perf_counter(), 0
    given = options.size, options.frames, options.share
    for n, file in make(Encoders.trained(), count, *given):
        done += n
        seconds = time.perf_counter() - began
        print(f"{file.name}: {seconds / done:.3f} s a scene", flush=True)


if __name__ == "__main__":
    main()
