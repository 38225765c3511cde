"""Conditions and masks."""

import mlx.core as mx
import pytest

from mlx_video.conditioning.latent import (
    LatentState,
    VideoConditionByKeyframe,
    VideoConditionByLatentIndex,
    apply_conditioning,
    apply_denoise_mask,
)
from mlx_video.models.ltx.patchify import patchify_video
from tests.reference import error, vectors

IMAGE = mx.full((1, 4, 8), 5.0)


def state() -> LatentState:
    latent = mx.random.normal((1, 12, 8), key=mx.random.key(1))
    return LatentState.fresh(latent, mx.zeros((1, 3, 12, 2)))


def test_a_pinned_frame_stays_and_the_rest_is_noise():
    before = state()
    after = VideoConditionByLatentIndex(IMAGE, frame_idx=1).apply(before, 4)
    noised = after.noised(1.0, mx.full((1, 12, 8), -3.0))
    assert mx.array_equal(noised.latent[:, 4:8], IMAGE)
    assert mx.all(noised.latent[:, :4] == -3).item()
    assert mx.all(noised.latent[:, 8:] == -3).item()
    assert mx.all(before.denoise_mask == 1).item()  # nothing given is changed


def official(case: str, name: str) -> mx.array:
    return vectors("conditions", "ltx2_modes")[f"{case}.{name}"]


def official_state(case: str) -> LatentState:
    names = ("latent", "clean", "mask", "positions")
    return LatentState(*(official(case, name) for name in names))


def assert_official(state: LatentState, case: str):
    for ours, theirs in zip(state, official_state(case)):
        assert error(ours, theirs) < 1e-6


def test_a_weaker_latent_index_leaves_the_latent_and_sets_what_it_is_drawn_to():
    tokens = patchify_video(official("cond", "two"))
    condition = VideoConditionByLatentIndex(tokens, frame_idx=1, strength=0.6)
    state = condition.apply(official_state("initial"), 6)
    assert_official(state, "latent_index1_s06")


@pytest.mark.parametrize("frame", [0, 5, 16])
def test_a_weaker_keyframe_starts_from_zeros(frame):
    case = f"keyframe{frame}"
    tokens = patchify_video(official("cond", "one"))
    positions = official(case, "positions")[:, :, 18:]
    condition = VideoConditionByKeyframe(tokens, positions, strength=0.8)
    assert_official(condition.apply(official_state("initial"), 6), case)


def test_strength_0_at_the_first_frame_is_the_clip_without_a_picture():
    before, noise = state(), mx.random.normal((1, 12, 8), key=mx.random.key(2))
    after = VideoConditionByLatentIndex(IMAGE, strength=0.0).apply(before, 4)
    ours, theirs = (s.noised(0.9, noise) for s in (after, before))
    assert mx.array_equal(ours.latent, theirs.latent)
    assert mx.array_equal(ours.denoise_mask, theirs.denoise_mask)


def test_strength_leaves_a_pinned_frame_partly_free():
    after = VideoConditionByLatentIndex(IMAGE, strength=0.8).apply(state(), 4)
    noised = after.noised(1.0, mx.zeros((1, 12, 8)))
    assert error(noised.latent[:, :4], 0.8 * IMAGE) < 1e-6
    assert error(after.denoise_mask[:, :4], mx.full((1, 4, 1), 0.2)) < 1e-6


@pytest.mark.parametrize("frame", [0, 9])
def test_a_keyframe_is_appended_with_its_mask(frame):
    positions = mx.ones((1, 3, 4, 2))
    keyframe = VideoConditionByKeyframe(IMAGE, positions, strength=0.8)
    after = apply_conditioning(state(), [keyframe], 4)
    assert after.latent.shape == (1, 16, 8) and after.positions.shape == (1, 3, 16, 2)
    assert mx.array_equal(after.positions[:, :, 12:], positions)
    mask = vectors("sampling")[f"pos.keyframe_frame{frame}_mask"]
    assert error(after.denoise_mask, mask) < 1e-6


def test_a_condition_past_the_end_is_refused():
    with pytest.raises(ValueError, match="covers tokens 12 to 16, but the clip has 12"):
        VideoConditionByLatentIndex(IMAGE, frame_idx=3).apply(state(), 4)


def test_given_sound_stays_as_it_is():
    pinned = LatentState.pinned(IMAGE, mx.zeros((1, 1, 4, 2)))
    assert mx.array_equal(pinned.noised(1.0, mx.ones(IMAGE.shape)).latent, IMAGE)


def test_the_mask_mixes_and_keeps_the_dtype():
    mask = mx.array([1.0, 0.25]).reshape(1, 2, 1)
    x, clean = mx.full((1, 2, 1), 8.0, mx.bfloat16), mx.zeros((1, 2, 1))
    mixed = apply_denoise_mask(x, clean, mask)
    assert mixed.dtype == mx.bfloat16 and mixed.flatten().tolist() == [8.0, 2.0]
