"""Each check is fed the failure it is for, and what must pass."""

import mlx.core as mx
import numpy as np
import pytest

from mlx_video import health
from mlx_video.health import HealthError
from mlx_video.types import AV, Waveform

GOOD = mx.random.normal((1, 4, 8), key=mx.random.key(0))


def moving(count=5, shape=(32, 48, 3)):
    rng = np.random.default_rng(0)
    return [rng.integers(0, 255, shape, dtype=np.uint8) for _ in range(count)]


@pytest.mark.parametrize(
    "bad, seen",
    [
        (GOOD.at[0, 0, 0].add(mx.nan), "NaN or infinite values in the audio prompt"),
        (mx.full((1, 4, 8), 2.0), "nothing in the audio prompt embedding"),
    ],
)
def test_embeddings(bad, seen):
    health.check_embeddings(AV(GOOD, GOOD))
    with pytest.raises(HealthError, match=seen):
        health.check_embeddings(AV(GOOD, bad))


@pytest.mark.parametrize(
    "bad, seen",
    [
        (GOOD * mx.inf, "NaN or infinite values in the video latent after stage 2"),
        (mx.zeros((1, 4, 8)), "nothing in the video latent after stage 2"),
        (GOOD * 1000, "video latent after stage 2 reaches .* lower --cfg-scale"),
    ],
)
def test_latents(bad, seen):
    health.check_latents(AV(GOOD), "stage 2")
    with pytest.raises(HealthError, match=seen):
        health.check_latents(AV(bad), "stage 2")


def test_bfloat16_latents_are_judged_too():
    health.check_latents(AV(GOOD.astype(mx.bfloat16)), "stage 1")


@pytest.mark.parametrize(
    "samples, seen",
    [
        (mx.zeros((2, 100)), "silence .* where sound was asked for"),
        (mx.full((2, 100), mx.nan), "NaN or infinite samples"),
    ],
)
def test_waveform(samples, seen):
    health.check_waveform(Waveform(0.1 * GOOD.reshape(2, -1), 24000))
    with pytest.raises(HealthError, match=seen):
        health.check_waveform(Waveform(samples, 24000))


def test_silence_and_stills_pass_where_they_may_be():
    health.check_waveform(Waveform(mx.zeros((2, 100)), 24000), silent=True)
    still = [moving()[0]] * 5
    assert len(list(health.watched(iter(still), still=True))) == 5
    with pytest.raises(HealthError, match="one colour"):
        list(health.watched(iter(one_colour_each()), still=True))


def test_pixels():
    assert health.check_pixels(GOOD) is GOOD
    for bad in (mx.nan, mx.inf, -mx.inf):
        with pytest.raises(HealthError, match="NaN or infinite pixels"):
            health.check_pixels(GOOD.at[0, 1, 2].add(bad))


def test_pixels_of_half_precision_do_not_overflow():
    health.check_pixels(mx.full((1, 3, 2, 64, 1536), -1.0, mx.float16))


def one_colour_each(count=5):
    """Flat frames that do differ from each other."""
    return [np.full((32, 48, 3), 40 * i, np.uint8) for i in range(1, count + 1)]


@pytest.mark.parametrize(
    "frames, seen",
    [
        ([np.zeros((32, 48, 3), np.uint8)] * 5, "All 5 frames are black"),
        (one_colour_each(), "All 5 frames have one colour"),
        ([moving()[0]] * 5, "All 5 frames are the same picture"),
        ([], "made no frames"),
    ],
)
def test_frames(frames, seen):
    shown = []
    with pytest.raises(HealthError, match=seen):
        for frame in health.watched(iter(frames)):
            shown.append(frame)
    assert len(shown) == len(frames)  # judged when all are seen, none withheld


def test_healthy_frames_pass_unchanged():
    frames = moving()
    assert all(a is b for a, b in zip(health.watched(iter(frames)), frames))


def test_a_dark_clip_with_something_to_see_passes():
    frames = [np.zeros((64, 64, 3), np.uint8) for _ in range(3)]
    for i, frame in enumerate(frames):
        frame[8 * i : 8 * i + 16, 8:24] = 60
    assert len(list(health.watched(iter(frames)))) == 3


def test_a_single_frame_is_no_still():
    assert len(list(health.watched(iter(moving(1))))) == 1


def picture(rng, level=255):
    return rng.integers(0, level + 1, (64, 64, 3), dtype=np.uint8)


def plain(colour, count):
    return [np.full((64, 64, 3), colour, np.uint8)] * count


def died(alive=9, dead=112, colour=0):
    rng = np.random.default_rng(0)
    return [picture(rng) for _ in range(alive)] + plain(colour, dead)


def blended_into_grey():
    """A failed tile of zeros, blended over the frames that it shares with a good one."""
    rng = np.random.default_rng(0)
    shares = np.linspace(1, 0, 16, endpoint=False)
    blend = [127 + share * (picture(rng) - 127.0) for share in shares]
    return died(9, 0) + [frame.astype(np.uint8) for frame in blend] + plain(127, 24)


@pytest.mark.parametrize(
    "frames, dead, count",
    [
        (died(), 112, 121),
        (died(24, 8), 8, 32),
        (died(9, 40, colour=255), 40, 49),
        (died(9, 40, colour=127), 40, 49),
        (died(9, 112) + died(9, 0), 112, 130),
        (blended_into_grey(), 24, 49),
        (died(0, 40, colour=127) + died(9, 0), 40, 49),
    ],
)
def test_a_clip_that_dies_fails(frames, dead, count):
    with pytest.raises(HealthError, match=f"dies: {dead} of {count} frames in a row"):
        list(health.watched(iter(frames)))


def faded(steps, black=30):
    """A fade that ends in black which the 8 bits cannot tell from zero."""
    rng = np.random.default_rng(0)
    shares = np.linspace(1, 0, steps, endpoint=False)
    fade = [(share * picture(rng)).astype(np.uint8) for share in shares]
    return died(5, 0) + fade + plain(0, black)


def dim(count=121, level=6):
    rng = np.random.default_rng(0)
    return [picture(rng, level) for _ in range(count)]


def black_but_for_a_speck():
    """Found by no sampled pixel."""
    frames = [frame.copy() for frame in plain(0, 112)]
    for frame in frames:
        frame[3, 3] = 90
    return died(9, 0) + frames


@pytest.mark.parametrize(
    "frames",
    [
        faded(12),
        faded(24),
        faded(12)[::-1],
        dim(),
        died(9, 0) + dim(112, level=1),  # cut to black, with a decoder's noise
        died(30, 7),
        died(31, 8),
        died(112, 9),
        black_but_for_a_speck(),
    ],
)
def test_fades_dark_scenes_and_short_blanks_pass(frames):
    assert len(list(health.watched(iter(frames)))) == len(frames)


def test_sound_is_not_told_to_tile():
    with pytest.raises(HealthError, match="--dtype float32") as failure:
        health.check_waveform(Waveform(mx.full((2, 100), mx.nan), 24000))
    assert "tiling" not in str(failure.value)
