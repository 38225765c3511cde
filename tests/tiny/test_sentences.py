"""The sentences: which words they use, and that they are true of their scenes."""

import itertools
import re

import numpy as np
import pytest

from tiny import world
from tiny.sentences import BULK, PACE, complete, describe, split, words

SCENES = 3000


@pytest.fixture(scope="module")
def told():
    rng = np.random.default_rng(0)
    scenes = [world.random_scene(rng, bool(i % 2)) for i in range(SCENES)]
    return [(scene, describe(scene, rng)) for scene in scenes]


def scene(thing="ball", colour="red", motion="bounce", background="plain", **changes):
    looks = dict(size=0.18, x=0.5, y=0.7, reach=0.4, period=1.0, phase=0.5)
    actor = dict(thing=thing, colour=colour, motion=motion, direction=1)
    actor = world.Actor(**actor | looks | changes)
    return world.Scene((actor,), background, "blue" if background == "floor" else None)


def sentences(of, count=60):
    rng = np.random.default_rng(1)
    return [describe(of, rng) for _ in range(count)]


@pytest.mark.slow
def test_sentences_use_the_grammars_words_and_all_of_them(told):
    assert {word for _, text in told for word in split(text)} == set(words())
    assert words() == sorted(set(words())) and len(words()) < 300


@pytest.mark.slow
def test_sentences_are_short_and_of_many_lengths(told):
    lengths = [
        len([word for word in split(text) if word.isalpha()]) for _, text in told
    ]
    assert min(lengths) <= 4 and max(lengths) <= 45 and np.std(lengths) > 3


def test_sentences_have_no_gaps_or_stray_marks(told):
    stray = re.compile(r"[{]|  | ,| [.]|,,|,[.]|None| a [aeiou]")
    for _, text in told:
        assert text == text.strip(" ,") and not stray.search(text), text


def test_every_sentence_names_things_and_colours(told):
    spoken = {"ball": "sphere", "ring": "hoop", "cyan": "turquoise", "purple": "violet"}
    for told_scene, text in told:
        for actor in told_scene.actors:
            for word in (actor.thing, actor.colour):
                assert {word, spoken.get(word)} & set(split(text)), text


def test_no_two_motions_share_a_sentence():
    said = {motion: set(sentences(scene(motion=motion))) for motion in world.MOTIONS}
    for one, other in itertools.combinations(world.MOTIONS, 2):
        assert not said[one] & said[other]
    assert all(len(texts) > 30 for texts in said.values())


def test_most_sentences_name_the_background_and_only_the_right_one(told):
    named = [complete(text, told_scene) for told_scene, text in told]
    assert 0.75 < np.mean(named) < 0.95
    for told_scene, text in told:
        others = [
            told_scene._replace(background=b, floor="") for b in world.BACKGROUNDS
        ]
        said = [o.background for o in others if complete(text, o)]
        assert set(said) <= {told_scene.background}


def test_a_floor_is_named_with_its_colour():
    blue = scene(background="floor")
    assert complete("a red ball bounces on a blue floor", blue)
    assert not complete(
        "a red ball bounces on a blue floor", blue._replace(floor="red")
    )
    assert not complete("a blue ball bounces on a red floor", blue)


def test_the_first_sentence_of_the_readme_can_be_said():
    said = sentences(scene(background="floor"), 1500)
    assert "a red ball bounces on a blue floor" in said


def test_silence_is_said_wherever_there_could_be_sound(told):
    silence = {"silently", "silence", "sound"}
    for told_scene, text in told:
        if told_scene.silent:
            assert silence & set(split(text)), text
        elif told_scene.actors[0].motion != "still":
            assert not silence & set(split(text)), text


@pytest.mark.parametrize(
    "changes, some, none",
    [
        ({"size": world.SIZES["small"]}, "small", "big"),
        ({"size": world.SIZES["big"]}, "big", "small"),
        ({"period": 0.8}, "quickly", "slowly"),
        ({"period": 1.3}, "slowly", "quickly"),
    ],
)
def test_sizes_and_paces_are_true(changes, some, none):
    said = [split(text) for text in sentences(scene(**changes))]
    (synonyms,) = (set(s) for s in [*BULK.values(), *PACE.values()] if some in s)
    assert 0.2 < np.mean([bool(synonyms & set(text)) for text in said]) < 0.8
    assert any(some in text for text in said)
    assert not any(none in text for text in said)
    assert not any(some in split(text) for text in sentences(scene()))


@pytest.mark.parametrize("pace", world.PACES)
def test_the_pace_of_a_spin_is_always_told(pace):
    period = world.PERIODS["spin"] * world.PACES[pace]
    for text in sentences(scene(motion="spin", period=period)):
        for name, adverbs in PACE.items():
            assert bool(set(adverbs) & set(split(text))) == (pace == name), text


def test_two_things_are_small_and_big_among_themselves():
    one, other = (
        scene(thing=t, size=size * world.TWO).actors[0]
        for t, size in (("ball", world.SIZES["big"]), ("star", world.SIZES["small"]))
    )
    said = sentences(world.Scene((one, other), "plain"))
    assert any("big red" in text for text in said)
    assert any("small red star" in text for text in said)
    assert not any("big red star" in text or "small red ball" in text for text in said)


def test_what_cannot_be_seen_is_not_said():
    growing = " ".join(sentences(scene(motion="grow", size=0.22)))
    assert not {"big", "large"} & set(split(growing))
    still = " ".join(sentences(scene(motion="still", period=0.7)))
    assert not {"quickly", "fast"} & set(split(still))


def test_a_sound_is_told_only_when_one_thing_makes_it():
    one, other = scene().actors[0], scene(motion="rise", thing="star").actors[0]
    resting = other._replace(motion="still")
    both, alone = (sentences(world.Scene((one, b), "plain")) for b in (other, resting))
    assert not any("knock" in text for text in both)
    assert any("knock" in text for text in alone)


def test_a_sentence_with_a_capital_ends_with_a_stop(told):
    whole = [text[0].isupper() for _, text in told]
    assert whole == [text.endswith(".") for _, text in told]
    assert 0.3 < np.mean(whole) < 0.7
    assert any(". It " in text for _, text in told)


def test_sides_are_true(told):
    sided = 0
    for told_scene, text in told:
        if "on the left" in text:
            sided += 1
            left = min(told_scene.actors, key=lambda actor: actor.x)
            before = split(text[: text.index(" on the left")])
            assert before[-1] in (left.thing, "sphere", "hoop"), text
    assert sided > 50


def test_the_same_seed_says_the_same():
    assert sentences(scene()) == sentences(scene())
