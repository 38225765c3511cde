"""What people say about the small world: sentences of a small grammar, terse and long.

Knows the words and their order; not how a scene looks or sounds (``tiny.world``).
"""

import re

import numpy as np

from tiny.world import COLOURS, PACES, PERIODS, SIZES, TWO, Scene, pick, sound_kind

NOUNS = {
    "ball": ("ball", "ball", "sphere"),
    "square": ("square",),
    "triangle": ("triangle",),
    "star": ("star",),
    "heart": ("heart",),
    "ring": ("ring", "ring", "hoop"),
    "arrow": ("arrow",),
    "moon": ("moon", "moon", "crescent moon"),
    "cloud": ("cloud",),
    "tree": ("tree",),
}
ADJECTIVES = {colour: (colour,) for colour in COLOURS} | {
    "cyan": ("cyan", "cyan", "turquoise"),
    "purple": ("purple", "purple", "violet"),
}
BULK = {"small": ("small", "little", "tiny"), "big": ("big", "large")}
PACE = {"quick": ("quickly", "fast"), "slow": ("slowly", "gently")}
VERBS = {  # he ...s, he is ...ing, and what follows
    "left-right": (
        ("moves", "moving", "left and right"),
        ("moves", "moving", "to and fro"),
        ("slides", "sliding", "from side to side"),
        ("glides", "gliding", "left and right"),
        ("goes", "going", "from left to right and back"),
    ),
    "rise": (
        ("rises", "rising", ""),
        ("floats", "floating", "up"),
        ("goes", "going", "up"),
        ("climbs", "climbing", "up"),
        ("moves", "moving", "upwards"),
    ),
    "fall": (
        ("falls", "falling", ""),
        ("sinks", "sinking", ""),
        ("goes", "going", "down"),
        ("drops", "dropping", "down"),
        ("moves", "moving", "downwards"),
    ),
    "bounce": (
        ("bounces", "bouncing", ""),
        ("bounces", "bouncing", ""),
        ("bounces", "bouncing", "up and down"),
        ("hops", "hopping", "up and down"),
        ("jumps", "jumping", "up and down"),
    ),
    "spin": (
        ("spins", "spinning", ""),
        ("rotates", "rotating", ""),
        ("turns", "turning", "around"),
        ("spins", "spinning", "around"),
    ),
    "grow": (
        ("grows", "growing", ""),
        ("gets", "getting", "bigger"),
        ("gets", "getting", "larger"),
        ("becomes", "becoming", "bigger"),
    ),
    "shrink": (
        ("shrinks", "shrinking", ""),
        ("gets", "getting", "smaller"),
        ("becomes", "becoming", "smaller"),
    ),
    "circle": (
        ("circles", "circling", ""),
        ("moves", "moving", "in a circle"),
        ("goes", "going", "round in circles"),
        ("flies", "flying", "in a circle"),
    ),
    "still": (
        ("stands", "standing", "still"),
        ("stays", "staying", "still"),
        ("rests", "resting", ""),
        ("keeps", "keeping", "still"),
        ("waits", "waiting", "without moving"),
    ),
}
PLACES = {  # where it happens, and how a terse sentence says so; {floor} is a colour
    "plain": (
        ("on a plain background", "in front of a plain wall", "against a plain wall"),
        ("plain background", "plain wall"),
    ),
    "gradient": (
        ("on a gradient", "in front of a soft gradient", "on a gradient background"),
        ("gradient background", "soft gradient"),
    ),
    "night": (
        ("at night", "in the night sky", "under the stars", "under a starry sky"),
        ("night sky", "night", "starry sky"),
    ),
    "meadow": (
        ("on a meadow", "over the grass", "on green grass under the sky"),
        ("meadow", "grass and sky", "green grass"),
    ),
    "sunset": (
        ("at sunset", "in front of a sunset", "in the light of the sunset"),
        ("sunset", "sunset sky"),
    ),
    "floor": (
        ("on a {floor} floor", "on a {floor} floor",
         "above a {floor} floor", "in a room with a {floor} floor"),
        ("{floor} floor",),
    ),
}  # fmt: skip
NAMES = {  # words that give each background away
    "plain": ("plain",),
    "gradient": ("gradient",),
    "night": ("night", "stars", "starry"),
    "meadow": ("meadow", "grass"),
    "sunset": ("sunset",),
    "floor": ("floor",),
}
NOISES = {
    "knocks": ("knocking at every bounce", "with a knock at every bounce"),
    "rising": ("with a rising tone", "while a tone climbs"),
    "falling": ("with a falling tone", "while a tone sinks"),
    "hum": ("humming", "with a low hum"),
    "swelling": ("with a tone that gets louder", "getting louder"),
    "fading": ("with a tone that fades away", "getting quieter"),
    "steady": ("with a soft tone", "with a steady tone"),
    "warble": ("with a wavering tone", "singing"),
    "silence": ("without a sound", "silently", "in silence", "with no sound"),
}
SIDES = ("on the left", "on the right")
OPEN = (  # sentences that may go without a place
    "{a} {does} {place} {noise}",
    "{a} {does} {place} {noise}",
    "{a} {does} {place} {noise}",
    "{a} is {doing} {place} {noise}",
    "{a} is {doing} {place} {noise}",
    "{a} {doing} {place} {noise}",
    "there is {a} {doing} {place} {noise}",
    "a video of {a} {doing} {place} {noise}",
    "we see {a} that is {doing} {place} {noise}",
    "this short clip shows {a}. it {does} {place} {noise}",
    "look at {a}: it is {doing} {place} {noise}",
)
PLACED = (  # sentences that begin with the place
    "{place}, {a} {does} {noise}",
    "{place}, {a} is {doing} {noise}",
    "{place} there is {a} that {does} {noise}",
    "{place} we see {a} {doing} {noise}",
)
OPEN_TWO = (
    "{a} {does} and {b} {does_too} {place} {noise}",
    "{a} is {doing} and {b} is {doing_too} {place} {noise}",
    "{a} {does} {place} {noise}, while {b} {does_too}",
    "{a} {doing} next to {b} that {does_too}, {place} {noise}",
    "a video of {a} {doing} and {b} {doing_too} {place} {noise}",
)
PLACED_TWO = (
    "{place}, {a} {does} and {b} {does_too} {noise}",
    "{place}, {a} {does} while {b} is {doing_too} {noise}",
    "two things {place}: {a} that {does} and {b} that {does_too} {noise}",
    "{place} there is {a} {doing} and {b} {doing_too} {noise}",
)
TERSE = (
    "{thing} {doing} {noise}, {scenery}",
    "{scenery}, {thing} {doing} {noise}",
    "{thing} {doing} {place} {noise}",
)
TERSE_TWO = (
    "{thing} {doing}, {other} {doing_too} {noise}, {scenery}",
    "{scenery}, {thing} {doing}, {other} {doing_too} {noise}",
    "{thing} {doing} and {other} {doing_too} {place} {noise}",
)


def describe(scene: Scene, rng: np.random.Generator) -> str:
    """An English sentence that is true of the scene, at most 45 words.

    It names every thing with its colour and motion, silence where there is no sound but might be, and mostly the
    background; the pace of what spins, unless it is the middle one; now and then sizes, other paces, sides and sounds.
    """
    terse, placed = rng.random() < 0.2, rng.random() < 0.85
    terse, two = terse or not placed and rng.random() < 0.5, len(scene.actors) == 2
    if terse:
        forms = TERSE_TWO if two else TERSE
    elif placed:
        forms = OPEN_TWO + PLACED_TWO if two else OPEN + PLACED
    else:
        forms = OPEN_TWO if two else OPEN
    parts = _parts(scene, rng)
    if not placed:
        parts |= {"place": "", "scenery": ""}
    sentence = _tidy(pick(rng, forms).format_map(parts))
    return sentence if terse or rng.random() < 0.35 else _capitals(sentence) + "."


def complete(sentence: str, scene: Scene) -> bool:
    """Whether the sentence names the scene's background, and the colour of its floor."""
    said = split(sentence)
    if scene.background == "floor":
        return [scene.floor, "floor"] in [said[i : i + 2] for i in range(len(said))]
    return any(name in said for name in NAMES[scene.background])


def words() -> list[str]:
    """Every word that describe can say, in lower case, and every mark; sorted."""
    forms = OPEN + PLACED + OPEN_TWO + PLACED_TWO + TERSE + TERSE_TWO
    tables = NOUNS, ADJECTIVES, BULK, PACE, VERBS, PLACES, NOISES
    texts = [*forms, *SIDES, "a an ."]
    for value in (value for table in tables for value in table.values()):
        texts += [
            t for item in value for t in ((item,) if isinstance(item, str) else item)
        ]
    return sorted({word for t in texts for word in split(re.sub(r"\{\w+\}", " ", t))})


def split(sentence: str) -> list[str]:
    """Its words in lower case, and its marks."""
    return re.findall(r"\w+|[^\w\s]", sentence.lower())


def _parts(scene, rng) -> dict[str, str]:
    """What fills the forms: {a} and {b} have articles, {thing} and {other} have none."""
    places, sceneries = PLACES[scene.background]
    parts = {
        "place": pick(rng, places).format(floor=scene.floor),
        "scenery": pick(rng, sceneries).format(floor=scene.floor),
        "noise": _noise(scene, rng),
    }
    sides = len(scene.actors) == 2 and rng.random() < 0.3
    names = ("a", "thing", "does", "doing"), ("b", "other", "does_too", "doing_too")
    for actor, (full, bare, does, doing) in zip(scene.actors, names):
        parts[bare] = _thing(actor, len(scene.actors), rng)
        if sides:
            parts[bare] += " " + SIDES[actor.x > 0.5]
        parts[full] = "a " + parts[bare]
        parts[does], parts[doing] = _verbs(actor, rng)
    return parts


def _thing(actor, actors, rng):
    """Size, colour and noun."""
    whole = actor.size / (TWO if actors == 2 else 1)
    bulk = BULK.get(_nearest(SIZES, whole))
    told = bulk and actor.motion not in ("grow", "shrink") and rng.random() < 0.5
    adjective = pick(rng, ADJECTIVES[actor.colour])
    noun = pick(rng, NOUNS[actor.thing])
    return f"{pick(rng, bulk) if told else ''} {adjective} {noun}".strip()


def _verbs(actor, rng) -> tuple[str, str]:
    """What it does, and what it is doing."""
    does, doing, way = pick(rng, VERBS[actor.motion])
    pace = PACE.get(_nearest(PACES, actor.period / PERIODS[actor.motion]))
    told = actor.motion == "spin" or rng.random() < 0.5  # how far a turn gets
    if not pace or actor.motion == "still" or not told:
        return f"{does} {way}", f"{doing} {way}"
    adverb = pick(rng, pace)
    if adverb.endswith("ly") and rng.random() < 0.4:
        return f"{adverb} {does} {way}", f"{adverb} {doing} {way}"
    return f"{does} {way} {adverb}", f"{doing} {way} {adverb}"


def _noise(scene, rng):
    """What is heard: always where the scene is silent, else now and then, and of a first actor beside a still one."""
    kind = sound_kind(scene)
    clear = all(actor.motion == "still" for actor in scene.actors[1:])
    if not scene.silent and not (clear and rng.random() < 0.25):
        return ""
    noise = pick(rng, NOISES[kind])
    return noise if kind == "silence" and rng.random() < 0.5 else f", {noise}"


def _nearest(table, value):
    return min(table, key=lambda name: abs(table[name] - value))


def _tidy(text):
    """With "an" before a vowel, and without the gaps and marks that empty parts leave."""
    text = re.sub(r"(\s*,)+", ",", re.sub(r"\s+([.:])", r"\1", " ".join(text.split())))
    return re.sub(r"\ba (?=[aeiou])", "an ", text).strip(", ")


def _capitals(text):
    return re.sub(r"(^|\. )(\w)", lambda m: m[1] + m[2].upper(), text)
