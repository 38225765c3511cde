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
    official = vectors("sampling")[f"pos.keyframe_frame{frame}_mask"]
    assert error(after.denoise_mask, official) < 1e-6


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
