"""Conditions and masks, against the official classes where there is one."""

from dataclasses import dataclass

import mlx.core as mx
import pytest

from mlx_video.conditioning.latent import (
    AppendedTokens,
    GeneratedKeyframes,
    LatentState,
    TemporalRegionMask,
    VideoConditionByLatentIndex,
    VideoConditionByMask,
    WithAttention,
    apply_conditioning,
    patchify_video,
)
from mlx_video.types import AV
from tests.reference import error, vectors

OFFICIAL = vectors("conditions", "ltx2_modes")
NAMES = {
    "latent": "latent",
    "clean": "clean_latent",
    "mask": "denoise_mask",
    "positions": "positions",
    "keyframes_mask": "keyframes_mask",
    "attention_mask": "attention_mask",
}
IMAGE = mx.full((1, 8, 1, 2, 2), 5.0)
TOKENS = patchify_video(IMAGE)


def official_state(case: str) -> LatentState:
    return LatentState(
        **{ours: OFFICIAL.get(f"{case}.{name}") for name, ours in NAMES.items()}
    )


def assert_official(state: LatentState, case: str):
    theirs = official_state(case)
    for name in NAMES.values():
        ours, official = getattr(state, name), getattr(theirs, name)
        assert (ours is None) == (official is None), name
        assert ours is None or error(ours, official) < 1e-6, name


def tokens(name: str) -> mx.array:
    return patchify_video(OFFICIAL[f"cond.{name}"])


def where(case: str) -> mx.array:
    """Positions of what the official condition appends."""
    return OFFICIAL[f"{case}.positions"][:, :, 18:]


def appended(case: str, name: str, strength=1.0) -> AppendedTokens:
    return AppendedTokens(tokens(name), where(case), strength)


def two_references():
    positions = where("attn_two_refs")
    return [
        WithAttention(
            AppendedTokens(tokens("ref_half"), positions[:, :, :6]),
            OFFICIAL["cond.attn_tokens"],
        ),
        AppendedTokens(tokens("one"), positions[:, :, 6:]),
    ]


def combined():
    positions = where("combined")
    return [
        VideoConditionByLatentIndex(OFFICIAL["cond.one"]),
        AppendedTokens(tokens("one2"), positions[:, :, :6], 0.9),
        AppendedTokens(tokens("ref_half"), positions[:, :, 6:12]),
        GeneratedKeyframes(positions[:, :, 12:]),
    ]


CASES = {
    "latent_index0": [VideoConditionByLatentIndex(OFFICIAL["cond.one"])],
    "latent_index1_s06": [VideoConditionByLatentIndex(OFFICIAL["cond.two"], 1, 0.6)],
    "keyframe0": [appended("keyframe0", "one", 0.8)],
    "keyframe5": [appended("keyframe5", "one", 0.8)],
    "keyframe16": [appended("keyframe16", "one", 0.8)],
    "keyframe8_multi": [appended("keyframe8_multi", "two")],
    "slots": [GeneratedKeyframes(where("slots"))],
    "slots_seeded": [GeneratedKeyframes(where("slots_seeded"), tokens("two"))],
    "mask_s10": [VideoConditionByMask(OFFICIAL["cond.full"], OFFICIAL["cond.mask"])],
    "mask_s07": [
        VideoConditionByMask(OFFICIAL["cond.full"], OFFICIAL["cond.mask"], 0.7)
    ],
    "region_video": [TemporalRegionMask(0.2, 0.45)],
    "reference": [appended("reference", "ref")],
    "reference_ds2": [appended("reference_ds2", "ref_half", 0.9)],
    "reference_ts2": [appended("reference_ts2", "ref_t")],
    "attn_scalar": [WithAttention(appended("attn_scalar", "ref_half"), 0.5)],
    "attn_two_refs": two_references(),
    "combined": combined(),
}


@pytest.mark.parametrize("case", CASES)
def test_a_condition_of_video_is_the_official_one(case):
    assert_official(apply_conditioning(official_state("initial"), CASES[case]), case)


def test_a_condition_of_sound_is_the_official_one():
    sound = official_state("initial_audio")
    assert_official(TemporalRegionMask(0.2, 0.45)(sound), "region_audio")
    reference = AppendedTokens(OFFICIAL["dub.tokens"], OFFICIAL["dub.positions"])
    assert_official(reference(sound), "audio_reference")


def test_a_fresh_state_is_the_official_one():
    video, audio = official_state("initial"), official_state("initial_audio")
    assert_official(LatentState.fresh(video.latent, video.positions, 6), "initial")
    assert_official(LatentState.fresh(audio.latent, audio.positions), "initial_audio")


@pytest.mark.parametrize("sigma, name", [(1.0, "10"), (0.909375, "0909375")])
def test_noise_is_mixed_in_as_officially(sigma, name):
    noised = official_state("combined").noised(sigma, OFFICIAL["noiser.noise"])
    assert error(noised.latent, OFFICIAL[f"noiser.out_{name}"]) < 1e-6


def state() -> LatentState:
    latent = mx.random.normal((1, 12, 8), key=mx.random.key(1))
    return LatentState.fresh(latent, mx.zeros((1, 3, 12, 2)), 4)


def test_a_pinned_frame_stays_and_the_rest_is_noise():
    before = state()
    after = VideoConditionByLatentIndex(latent=IMAGE, frame_idx=1)(before)
    noised = after.noised(1.0, mx.full((1, 12, 8), -3.0))
    assert mx.array_equal(noised.latent[:, 4:8], TOKENS)
    assert mx.all(noised.latent[:, :4] == -3).item()
    assert mx.all(noised.latent[:, 8:] == -3).item()
    assert mx.all(before.denoise_mask == 1).item()  # nothing given is changed


def test_strength_0_at_the_first_frame_is_the_clip_without_a_picture():
    before, noise = state(), mx.random.normal((1, 12, 8), key=mx.random.key(2))
    after = VideoConditionByLatentIndex(IMAGE, strength=0.0)(before)
    ours, theirs = (s.noised(0.9, noise) for s in (after, before))
    assert mx.array_equal(ours.latent, theirs.latent)
    assert mx.array_equal(ours.denoise_mask, theirs.denoise_mask)


def test_a_condition_past_the_end_is_refused():
    keyframe = AppendedTokens(TOKENS, mx.zeros((1, 3, 4, 2)))
    longer = keyframe(state())  # what was appended is no part of the clip
    with pytest.raises(ValueError, match="covers tokens 12 to 16, but the clip has 12"):
        VideoConditionByLatentIndex(IMAGE, frame_idx=3)(longer)


def test_generated_keyframes_are_found_behind_the_clip():
    positions = mx.zeros((1, 3, 4, 2))
    conditions = [
        AppendedTokens(TOKENS - 1, positions),
        GeneratedKeyframes(positions, TOKENS),
        AppendedTokens(TOKENS + 1, positions),
    ]
    after = apply_conditioning(state(), conditions)
    assert after.own_tokens == 12 and after.latent.shape[1] == 24
    assert mx.array_equal(after.generated_keyframes(), TOKENS)
    assert state().generated_keyframes().shape == (1, 0, 8)


def test_sound_may_have_generated_tokens_too():
    sound = LatentState.fresh(mx.zeros((1, 3, 8)), mx.zeros((1, 1, 3, 2)))
    after = GeneratedKeyframes(mx.zeros((1, 1, 2, 2)))(sound)
    assert after.keyframes_mask.flatten().tolist() == [0, 0, 0, 1, 1]


@dataclass(frozen=True)
class Halved:
    """A condition that somebody else wrote."""

    def __call__(self, state: LatentState) -> LatentState:
        return state._replace(denoise_mask=state.denoise_mask / 2)


def test_a_condition_is_any_function_of_a_state_of_either_stream():
    sound = LatentState.fresh(mx.zeros((1, 3, 8)), mx.zeros((1, 1, 3, 2)))
    halved = AV(state(), sound).map(Halved())
    assert mx.all(halved.video.denoise_mask == 0.5) and mx.all(
        halved.audio.denoise_mask == 0.5
    )


def test_given_sound_stays_as_it_is_and_counts_as_clean():
    pinned = LatentState.pinned(TOKENS, mx.zeros((1, 1, 4, 2)))
    assert mx.array_equal(pinned.noised(1.0, mx.ones(TOKENS.shape)).latent, TOKENS)
    assert pinned.frozen


def test_the_mask_mixes_and_keeps_the_dtype():
    mask = mx.array([1.0, 0.25]).reshape(1, 2, 1)
    x, clean = mx.full((1, 2, 1), 8.0, mx.bfloat16), mx.zeros((1, 2, 1))
    mixed = LatentState(x, clean, mask, mx.zeros((1, 1, 2, 2))).masked(x)
    assert mixed.dtype == mx.bfloat16 and mixed.flatten().tolist() == [8.0, 2.0]
