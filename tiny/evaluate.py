"""How well a model shows what a sentence says: ``python -m tiny.evaluate``. It prints the table of ``tiny/README.md``.

Knows sentences, scenes and verdicts; how things are recognised is in ``tiny.detectors``, how clips are made in the package.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Callable, Iterator, NamedTuple, Sequence

import mlx.core as mx
import numpy as np
from PIL import Image as Picture

from mlx_video import Image, Pipeline, Request, VideoPixelShape
from mlx_video.clip_settings import resolve_model
from mlx_video.models.ltx.checkpoint.files import Files
from mlx_video.models.ltx.checkpoint.find import DEMO
from mlx_video.models.ltx.loading.components import Components
from mlx_video.postprocess import to_uint8
from mlx_video.types import Waveform
from tiny import detectors, world
from tiny.contact_sheet import sheet
from tiny.detectors import Seen
from tiny.sentences import complete, describe
from tiny.world import Actor, Scene, random_scene

GOALS = {  # percent
    "colour": 95,
    "background": 95,
    "motion": 90,
    "thing": 85,
    "sound": 90,
    "knocks": 80,
    "two colours": 75,
}
VAE_GOAL, IMAGE_GOAL = 32.0, 28.0  # dB
TOLERANCE = 0.08  # seconds from a bounce to its knock
VISIBLE = (
    3.0  # mean difference of pixels, of 255, from which two clips are visibly different
)
SAY_EVERY = 20  # clips

Made = tuple[
    Sequence[np.ndarray], Waveform | None
]  # frames, uint8 (H, W, 3), and sound
Make = Callable[
    ..., Made
]  # of a sentence, a seed and, by name, a picture to begin with


class Score(NamedTuple):
    """How often something was right, of how often it was asked."""

    right: int
    asked: int = 1

    def __add__(self, other: "Score") -> "Score":
        return Score(self.right + other.right, self.asked + other.asked)

    @property
    def percent(self) -> float:
        return 100 * self.right / max(1, self.asked)


Scores = dict[str, Score]


# ---- one clip


def judge(
    scene: Scene,
    frames: Sequence[np.ndarray],
    waveform: Waveform | None,
    sentence: str | None = None,
) -> dict[str, bool | None]:
    """Whether a clip shows the scene, by rows of the table; ``None`` where a row has nothing to ask.

    frames    uint8 RGB (H, W, 3), 24 a second
    sentence  that the clip was made by, since what it leaves open is not asked; without one the background is
    Knocks are right where 80% of the bounces that are seen have theirs.
    """
    scores = examine(scene, frames, waveform, sentence)
    enough = lambda score: score.percent >= GOALS["knocks"] if score.asked else None
    return {row: enough(score) for row, score in scores.items()}


def examine(
    scene: Scene,
    frames: Sequence[np.ndarray],
    waveform: Waveform | None,
    sentence: str | None = None,
) -> Scores:
    """The same, counted: knocks are asked for each bounce that is seen, other rows once or not at all."""
    frames = np.stack(list(frames))
    sides = sentence is not None and "on the left" in sentence.lower()
    seen = _cast(scene, detectors.look(frames, len(scene.actors)), sides)
    scores = _shown(scene.actors[0], seen[0])
    named = sentence is None or complete(sentence, scene)
    shown = detectors.background(frames) == (scene.background, scene.floor)
    scores["background"] = Score(int(shown and named), int(named))
    if waveform is not None:
        heard = np.array(waveform.samples), waveform.sample_rate
        kind = detectors.sound_kind(*heard)
        scores["sound"] = Score(int(kind == world.sound_kind(scene)))
        scores["knocks"] = _knocks(scene, seen[0], *heard)
    if len(scene.actors) == 2:
        scores["two colours"] = Score(int(_own_colours(scene, seen)))
        second = _shown(scene.actors[1], seen[1])
        scores |= {f"second {row}": second[row] for row in ("motion", "thing")}
    return scores


def _shown(actor: Actor, seen: Seen | None) -> Scores:
    rows = {
        "colour": seen and detectors.colour(seen) == actor.colour,
        "motion": seen and detectors.motion(seen) == actor.motion,
        "thing": seen and detectors.thing(seen) == actor.thing,
    }
    return {row: Score(int(bool(right))) for row, right in rows.items()}


def _cast(
    scene: Scene, seen: list[Seen | None], sides: bool
) -> tuple[Seen | None, ...]:
    """What is seen of each actor, in the scene's order.

    Where the sentence does not tell the ``sides``, two may stand the other way round: as they fit best.
    """
    if len(seen) == 1:
        return tuple(seen)
    fits = lambda cast: sum(
        _shown(actor, one)[row].right
        for actor, one in zip(scene.actors, cast)
        for row in ("colour", "thing")
    )
    first, second = scene.actors
    orders = [tuple(seen), tuple(seen[::-1])][:: 1 if first.x < second.x else -1]
    return orders[0] if sides else max(orders, key=fits)


def _own_colours(scene: Scene, seen: tuple[Seen | None, ...]) -> bool:
    """Whether both colours are there, each on that of the two things whose it is."""
    things = [actor.thing for actor in scene.actors]
    return all(
        one is not None
        and detectors.colour(one) == actor.colour
        and detectors.thing(one, things) == actor.thing
        for actor, one in zip(scene.actors, seen)
    )


def _knocks(scene: Scene, seen: Seen | None, sound: np.ndarray, rate: int) -> Score:
    """How many of the first actor's bounces, as they are seen, are heard in time."""
    if seen is None or world.sound_kind(scene) != "knocks":
        return Score(0, 0)
    bounces, knocks = detectors.bounces(seen), detectors.knocks(sound, rate)
    in_time = [any(abs(b - k) <= TOLERANCE for k in knocks) for b in bounces]
    return Score(sum(in_time), len(bounces))


# ---- many clips


def unseen(count: int, seed: int) -> Iterator[tuple[int, Scene, str]]:
    """Number, scene and sentence, of combinations that training never saw."""
    for number in range(count):
        rng = np.random.default_rng((seed, number))
        scene = random_scene(rng, unseen=True)
        yield number, scene, describe(scene, rng)


def opened(
    model: str, variant: str = "distilled", steps: int | None = None
) -> Pipeline:
    """A pipeline whose parts can be had too; it makes clips that look like garbage as well."""
    files, defaults = resolve_model(Files(model), variant)
    recipe = defaults.given(steps=steps).recipe(variant)
    needs = *recipe.needs, *Image.needs
    components = Components.open(files, variant=variant, needs=needs)
    return Pipeline(components, recipe, health=False)


def maker(pipeline: Pipeline, shape: VideoPixelShape) -> Make:
    """Makes clips of sentences as anybody would."""

    def make(sentence: str, seed: int, image: Path | None = None) -> Made:
        images = () if image is None else (Image(str(image)),)
        usual = pipeline.defaults
        request = Request(
            sentence,
            shape,
            negative_prompt=usual.negative_prompt,
            seed=seed,
            audio=usual.audio,
            inputs=images,
        )
        *_, clip = pipeline.stream(request)
        return list(clip.frames), clip.audio

    return make


def drawn(scene: Scene, shape: VideoPixelShape) -> Made:
    """The world's own clip."""
    frames = to_uint8(world.draw([scene], *shape[:3])[0])
    sound = world.sound([scene], shape.frames)[0]
    return list(np.array(frames)), Waveform(sound, world.SAMPLE_RATE)


def read_sentences(count: int, seed: int, make, sheets: Path | None) -> dict:
    """Scores of clips of unseen sentences, and every clip's verdict. ``make(scene, sentence, seed)`` makes them."""
    total: Scores = {}
    clips, began = [], time.perf_counter()
    for number, scene, sentence in unseen(count, seed):
        frames, waveform = make(scene, sentence, seed + number)
        scores = examine(scene, frames, waveform, sentence)
        total = added(total, scores)
        wrong = [row for row, score in scores.items() if score.right < score.asked]
        clips.append({"sentence": sentence, "seed": seed + number, "wrong": wrong})
        if sheets:
            name = " ".join([f"{number:03d}", *wrong])
            sheet(frames, waveform, sentence).save(sheets / f"{name}.png")
        if (number + 1) % SAY_EVERY == 0:
            pace = (time.perf_counter() - began) / (number + 1)
            shares = (f"{row} {s.percent:.0f}" for row, s in total.items() if s.asked)
            print(f"{number + 1}/{count}, {pace:.1f} s each:", *shares, flush=True)
    return {"scores": total, "clips": clips}


def added(total: Scores, scores: Scores) -> Scores:
    return total | {row: total.get(row, Score(0, 0)) + s for row, s in scores.items()}


def read_images(count: int, seed: int, make: Make, shape: VideoPixelShape) -> dict:
    """Clips that begin with their scene's own first picture: dB to it, and scores of what follows."""
    total, likeness = {}, []
    with tempfile.TemporaryDirectory() as folder:
        for number, scene, sentence in unseen(count, seed):
            picture, file = (
                drawn(scene, shape._replace(frames=1))[0][0],
                f"{number}.png",
            )
            Picture.fromarray(picture).save(Path(folder) / file)
            frames, waveform = make(sentence, seed + number, image=Path(folder) / file)
            likeness.append(psnr(frames[0], picture))
            total = added(total, examine(scene, frames, waveform, sentence))
    return {"psnr": likeness, "scores": total}


def read_seeds(count: int, seed: int, make: Make) -> list[float]:
    """Mean differences, of 255, between clips of one sentence and two seeds."""
    differences = []
    for number, _, sentence in unseen(count, seed):
        first = seed + number
        one, other = (np.stack(make(sentence, s)[0]) for s in (first, first + 10**6))
        differences.append(float(np.abs(one.astype(np.int16) - other).mean()))
    return differences


def read_autoencoder(
    count: int, seed: int, components: Components, shape: VideoPixelShape
) -> list[float]:
    """PSNR (dB) of the world's clips after encoding and decoding."""
    scenes = [scene for _, scene, _ in unseen(count, seed)]
    latents, decibels = [], []
    with components.lend("video_encoder") as encoder:
        for scene in scenes:
            latents.append(encoder(world.draw([scene], *shape[:3])))
            mx.eval(latents[-1])
    with components.lend("video_decoder") as decoder:
        for scene, latent in zip(scenes, latents):
            frames = np.array(to_uint8(decoder(latent)[0]))
            decibels.append(psnr(frames, np.stack(drawn(scene, shape)[0])))
    return decibels


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Peak signal-to-noise ratio of uint8 pixels, dB."""
    error = np.square(a.astype(np.float32) - b).mean()
    return float(10 * np.log10(255**2 / max(error, 1e-9)))


# ---- telling


def table(scores: Scores, goals=GOALS) -> str:
    """Lines of a Markdown table."""
    lines = ["| row | right | of | share | goal |", "|---|---|---|---|---|"]
    rows = sorted(scores, key=lambda row: [*goals, row].index(row))
    for row in rows:
        right, asked = scores[row]
        goal = f"{goals[row]}%" if row in goals else ""
        share = f"{scores[row].percent:.1f}%" if asked else "-"
        lines.append(f"| {row} | {right} | {asked} | {share} | {goal} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tiny.evaluate")
    parser.add_argument("--sentences", type=int, default=200)
    parser.add_argument(
        "--world", type=int, help="judge as many of the world's own clips instead"
    )
    parser.add_argument("--variant", choices=("distilled", "dev"), default="distilled")
    parser.add_argument("--steps", type=int, help="of the dev model")
    parser.add_argument("--size", type=int, default=256, help="pixels a side")
    parser.add_argument("--frames", type=int, default=49)
    parser.add_argument("--model", default=DEMO)
    parser.add_argument(
        "--seed",
        type=int,
        default=1000,
        help="of the first clip; the next has the next",
    )
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument(
        "--sheets",
        type=Path,
        metavar="FOLDER",
        help="for a contact sheet of every clip",
    )
    options = parser.parse_args()
    if options.sheets:
        options.sheets.mkdir(parents=True, exist_ok=True)
    shape = VideoPixelShape(options.frames, options.size, options.size, world.FPS)
    if options.world:
        make = lambda scene, sentence, seed: drawn(scene, shape)
        found = read_sentences(options.world, options.seed, make, options.sheets)
        print(table(found["scores"]))
    else:
        found = evaluate(options, shape)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


def evaluate(options: argparse.Namespace, shape: VideoPixelShape) -> dict:
    """Everything, told as it is found."""
    pipeline = opened(options.model, options.variant, options.steps)
    make, seed, few = (
        maker(pipeline, shape),
        options.seed,
        max(1, options.sentences // 10),
    )
    found = {"variant": options.variant, "shape": shape}
    found["autoencoder"] = read_autoencoder(few, seed, pipeline.components, shape)
    print(f"autoencoder: {_decibels(found['autoencoder'], VAE_GOAL)}", flush=True)
    of_scene = lambda scene, sentence, seed: make(sentence, seed)
    found |= read_sentences(options.sentences, seed, of_scene, options.sheets)
    print(table(found["scores"]), flush=True)
    found["images"] = read_images(few, seed, make, shape)
    print(
        f"first frame to its picture: {_decibels(found['images']['psnr'], IMAGE_GOAL)}"
    )
    print(table(found["images"]["scores"]), flush=True)
    found["seeds"] = read_seeds(few, seed, make)
    visible = sum(d > VISIBLE for d in found["seeds"])
    print(
        f"seeds: {np.mean(found['seeds']):.1f} of 255 apart, visibly in {visible} of {few}"
    )
    return found


def _decibels(values: list[float], goal: float) -> str:
    return f"{np.mean(values):.2f} dB, at least {min(values):.2f}, of {len(values)} clips; goal {goal:.0f}"


if __name__ == "__main__":
    main()
