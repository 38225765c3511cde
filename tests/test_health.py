"""Each check is fed the failure it is for, and what must pass."""

from contextlib import nullcontext
from functools import cache

import mlx.core as mx
import numpy as np
import pytest

from mlx_video import health
from mlx_video.health import HealthError
from mlx_video.types import AV, VideoPixelShape, VideoScale, Waveform
from tiny.evaluate import drawn, unseen


def noise(*shape: int, seed: int = 0) -> mx.array:
    return mx.random.normal(shape, key=mx.random.key(seed))


GOOD = noise(1, 4, 8)


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


def test_weights():
    nearly = mx.zeros((64, 48)).at[63, 47].add(1e-3)
    fine = [("a", noise(64, 48)), ("b", nearly), ("small", mx.zeros((9, 64)))]
    health.check_weights("vocoder", [*fine, ("convolution", mx.zeros((32, 3, 32)))])
    alike = "alike", mx.ones((64, 48))  # as a quantized file may be
    seen = "1 of the 4 matrices of the vocoder are zero everywhere, such as c"
    with pytest.raises(HealthError, match=seen):
        health.check_weights("vocoder", [*fine, alike, ("c", mx.zeros((64, 48)))])


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


def test_latents_that_are_the_same_everywhere_are_nothing():
    """As an upsampler of zeros makes them: each channel's own mean. A frame of one cell cannot be told so."""
    means = mx.random.normal((1, 8, 1, 1, 1), key=mx.random.key(0))
    flat = mx.broadcast_to(means, (1, 8, 2, 4, 4))
    with pytest.raises(
        HealthError, match="nothing in .* upsampling: it is the same ev"
    ):
        health.check_latents(AV(flat), "upsampling")
    alive = flat + 1e-3 * mx.random.normal(flat.shape, key=mx.random.key(1))
    health.check_latents(AV(alive), "upsampling")
    health.check_latents(AV(flat[:, :, :1, :1, :1]), "upsampling")


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
    assert check_pixels(GOOD) is GOOD
    for bad in (mx.nan, mx.inf, -mx.inf):
        with pytest.raises(HealthError, match="NaN or infinite pixels"):
            check_pixels(GOOD.at[0, 1, 2].add(bad))


def test_pixels_of_half_precision_do_not_overflow():
    check_pixels(-1 - 0.1 * noise(1, 3, 2, 64, 1536).astype(mx.float16))


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
        (died(24, 8, colour=127), 8, 32),
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
        died(24, 25),  # cut to black, which the 8 bits cannot tell from zero
        died(24, 25, colour=255) + died(9, 0),
        black_but_for_a_speck(),
    ],
)
def test_fades_dark_scenes_and_short_blanks_pass(frames):
    assert len(list(health.watched(iter(frames)))) == len(frames)


def test_sound_is_not_told_to_tile():
    with pytest.raises(HealthError, match="mlx-video info") as failure:
        health.check_waveform(Waveform(mx.full((2, 100), mx.nan), 24000))
    assert "tiling" not in str(failure.value)


@pytest.mark.parametrize("device", [mx.cpu, mx.gpu])
def test_remedies_can_help(device, monkeypatch):
    """A CPU computes in float32 already; the device counts that is set when a check fails."""
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(device))
    for remedy in (health.sound_again(), health.decode_again()):
        assert ("--dtype float32" in remedy) == (device == mx.gpu)
        assert "another copy of the files" in remedy
    assert "--tiling aggressive" in health.decode_again()


# Noise: latents from which nothing was removed


def smooth(x: mx.array, axes: tuple[int, ...]) -> mx.array:
    """With as much to do with the neighbours along ``axes`` as with the cell itself."""
    for axis in axes:
        x = (x + mx.roll(x, 1, axis)) / 2**0.5
    return x


@pytest.mark.parametrize("shape", [(1, 128, 2, 2, 4), (1, 128, 16, 16, 24)])
def test_latents_that_are_still_noise_fail(shape):
    with pytest.raises(
        HealthError, match="video latent after stage 1 is still the noise"
    ):
        health.check_latents(AV(noise(*shape)), "stage 1")
    with pytest.raises(
        HealthError, match="audio latent after stage 1 is still the noise"
    ):
        health.check_latents(AV(None, noise(1, 8, 51, 16)), "stage 1")


def test_noise_behind_a_given_image_fails():
    latent = noise(1, 128, 7, 8, 12)
    latent[:, :, 0] = smooth(latent, (3, 4))[:, :, 0] + 2
    with pytest.raises(HealthError, match="still the noise"):
        health.check_latents(AV(latent), "stage 1")


@pytest.mark.parametrize(
    "latents",
    [
        AV(smooth(noise(1, 128, 3, 4, 6), (3,))),
        AV(smooth(noise(1, 128, 3, 4, 6), (2,))),
        AV(noise(1, 128, 3, 8, 12) + 0.3 * noise(1, 128, 1, 1, 1, seed=1)),
        AV(None, smooth(noise(1, 8, 30, 16), (2,))),
        AV(noise(1, 128, 1, 1, 2)),  # too little to tell
    ],
)
def test_latents_with_a_little_order_pass(latents):
    health.check_latents(latents, "stage 1")


# Decoded values: a part that is missing or out of range


def decoded(height=96, width=128, frames=3) -> mx.array:
    return mx.clip(0.4 * noise(1, 3, frames, height, width), -1.2, 1.2)


def check_pixels(chunk: mx.array, side: int = 32) -> mx.array:
    return health.check_pixels(chunk, VideoScale(8, side, side))


@pytest.mark.parametrize("side", [16, 32])
@pytest.mark.parametrize("value", [0.0, 1.0, -1.0])
@pytest.mark.parametrize("rows, columns", [((0, 96), (64, 128)), ((32, 96), (0, 64))])
def test_a_missing_part_fails(value, rows, columns, side):
    """A failed tile is exactly zero, or what the layers after make of that: the same for each latent cell."""
    chunk = decoded()
    chunk[..., slice(*rows), slice(*columns)] = value
    with pytest.raises(HealthError, match="a part repeats exactly"):
        check_pixels(chunk, side)
    cell, chunk = 0.1 * noise(1, 3, 1, side, side), decoded()
    chunk[..., 32 : 32 + 2 * side, : 2 * side] = mx.tile(cell, (1, 1, 1, 2, 2))
    with pytest.raises(HealthError, match="a part repeats exactly"):
        check_pixels(chunk, side)


@pytest.mark.parametrize("height, width", [(8, 8), (33, 64), (70, 40), (100, 130)])
def test_pictures_of_any_size_are_looked_at(height, width):
    check_pixels(decoded(height, width))


def test_a_plain_picture_of_a_decoder_passes():
    """Of one colour but for noise far below what 8 bits show, or with one cell like its neighbour."""
    check_pixels(0.5 + 1e-4 * decoded())
    chunk = decoded()
    chunk[..., :32, :64] = 0.0
    check_pixels(chunk)
    for place in ((0, 0), (3, 5)):  # alike in one place of each cell is alike by chance
        chunk = decoded()
        chunk[..., place[0] :: 32, place[1] :: 32] = 0.0
        check_pixels(chunk)


@pytest.mark.parametrize("share, healthy", [(0.005, True), (0.03, False)])
def test_values_far_out_of_range(share, healthy):
    wild = mx.random.uniform(shape=(1, 3, 3, 96, 128), key=mx.random.key(3)) < share
    chunk = mx.where(wild, 9.0, decoded())
    if healthy:
        check_pixels(chunk)
        return
    with pytest.raises(HealthError, match="3% is far out of range"):
        check_pixels(chunk)


# Frames: grey, flickering, frozen, half


def grey(spread, count=17):
    rng = np.random.default_rng(0)
    return [
        rng.integers(127 - spread, 128 + spread, (64, 64, 3), dtype=np.uint8)
        for _ in range(count)
    ]


@cache
def drifting(count, step=1):
    """A picture that moves sideways, with a decoder's noise."""
    rng = np.random.default_rng(0)
    row, column = np.mgrid[0:64, 0:96]
    base = np.stack([60 + row * 2, 40 + column * 2, 255 - row], axis=-1)
    moved = (np.roll(base, step * i, axis=1) for i in range(count))
    return [
        np.clip(x + rng.integers(-1, 2, x.shape), 0, 255).astype(np.uint8)
        for x in moved
    ]


def alternating(count):
    """Every second frame of another clip, or of nothing."""
    return [a if i % 2 else 255 - a for i, a in enumerate(drifting(count))]


def frozen(alive, still):
    frames = drifting(alive)
    return frames + frames[-1:] * still


def halved(frames, rows=slice(None), columns=slice(None), colour=127):
    frames = [frame.copy() for frame in frames]
    for frame in frames:
        frame[rows, columns] = colour
    return frames


@pytest.mark.parametrize(
    "frames, seen",
    [
        (grey(1), "All 17 frames have one colour"),
        (alternating(9), "flickers: 7 of 9 frames in a row equal the one before last"),
        (drifting(30) + alternating(10), "flickers: 9 of 40"),
        (frozen(5, 20), "freezes: 20 of 25 frames in a row equal the one before"),
        (frozen(5, 4), "freezes: 4 of 9"),
        (
            halved(drifting(25), columns=slice(48, None)),
            "A side of the picture .* in 25 of 25",
        ),
        (halved(drifting(25), rows=slice(0, 24)), "A side of the picture"),
        (halved(drifting(25), columns=slice(0, 48), colour=0), "A side of the picture"),
        (
            halved(drifting(25), columns=slice(0, 48), colour=255),
            "A side of the picture",
        ),
        (drifting(16) + halved(drifting(9), rows=slice(32, None)), "in 9 of 25"),
    ],
)
def test_garbage_that_moves_fails(frames, seen):
    with pytest.raises(HealthError, match=seen):
        list(health.watched(iter(frames)))


@pytest.mark.parametrize("levels, fails", [(3, False), (6, True)])
def test_a_flicker_is_seen_from_four_levels_on(levels, fails):
    """Fewer are what a lamp, or the compression of a picture, may do."""
    dark = np.minimum(drifting(1)[0], 240)
    frames = [dark + np.uint8(levels * (i % 2)) for i in range(12)]
    with pytest.raises(HealthError, match="flickers") if fails else nullcontext():
        list(health.watched(iter(frames)))


def night(count=25):
    """A black sky over a lit town; and stars."""
    frames = halved(drifting(count), rows=slice(0, 40), colour=0)
    for i, frame in enumerate(frames):
        frame[8 + i % 2, 16] = 200
    return frames


def spotlight(count=25):
    """Black to the left, by a soft edge."""
    light = np.clip((np.arange(96) - 40) / 40, 0, 1)[None, :, None]
    return [(frame * light).astype(np.uint8) for frame in drifting(count)]


def flash(count=25):
    return [
        np.full_like(x, 255) if i in (9, 10) else x
        for i, x in enumerate(drifting(count))
    ]


@pytest.mark.parametrize(
    "frames",
    [
        grey(2),
        drifting(25),
        drifting(25, step=0),  # a still shot
        alternating(6) + drifting(25),  # a short flicker of light
        frozen(20, 5),
        night(),
        halved(drifting(25), rows=slice(0, 24), colour=0),
        halved(
            halved(drifting(25), columns=slice(0, 24), colour=0),
            columns=slice(72, None),
            colour=0,
        ),
        spotlight(),
        flash(),
    ],
)
def test_pictures_that_nearly_look_so_pass(frames):
    assert len(list(health.watched(iter(frames)))) == len(frames)


def test_a_model_that_was_taught_plain_stills_may_make_them():
    for frames in (frozen(5, 20), halved(drifting(25), columns=slice(48, None))):
        assert len(list(health.watched(iter(frames), still=True))) == 25


# Sound


RATE = 24000
TIME = np.arange(2 * RATE) / RATE


def sound(left, right=None):
    return Waveform(
        mx.array(np.stack([left, left if right is None else right]).astype(np.float32)),
        RATE,
    )


def tone(hertz=110.0, level=0.3):
    return level * np.sin(2 * np.pi * hertz * TIME)


def hiss(level, seed=0):
    return np.clip(
        level * np.random.default_rng(seed).standard_normal(len(TIME)), -1, 1
    )


@pytest.mark.parametrize(
    "waveform, seen",
    [
        (sound(tone()), "a drone, whose loudness never changes"),
        (sound(tone(100) + tone(150), tone(220)), "a drone"),
        (sound(tone(100) * (1 + 0.005 * np.sin(9 * TIME))), "a drone"),
        (sound(0.2 + 0.05 * hiss(1)), "little more than a constant offset"),
        (sound(np.sign(tone())), "100% is at full scale"),
        (sound(hiss(0.9)), "of which .*% is at full scale"),
        (sound(hiss(0.6)), "white noise at full loudness"),
        (sound(hiss(0.1), 0 * TIME), "sound in one channel only"),
    ],
)
def test_garbage_that_is_heard_fails(waveform, seen):
    with pytest.raises(HealthError, match=seen):
        health.check_waveform(waveform)


@pytest.mark.parametrize(
    "waveform",
    [
        sound(tone() * (1 + 0.03 * np.sin(9 * TIME))),
        sound(tone() * (1 - 0.4 * TIME / 2)),
        sound(
            tone() * np.sin(TIME), tone() * np.cos(TIME)
        ),  # it moves from left to right
        sound(hiss(0.1)),  # rain
        sound(tone(level=0.95) * (1 - 0.3 * TIME / 2)),  # loud, but no noise
        sound(0.2 + hiss(0.1), 0.4 + hiss(0.1)),
        sound(np.clip(1.5 * tone(level=1) * np.exp(-3 * TIME), -1, 1)),  # a loud crash
        sound(hiss(0.1), hiss(0.001)),
        sound(1e-4 * np.sign(tone())),  # hardly heard
    ],
)
def test_sounds_that_nearly_are_so_pass(waveform):
    health.check_waveform(waveform)


def test_short_sounds_pass():
    health.check_waveform(
        Waveform(mx.array(tone()[None, :9000], dtype=mx.float32), RATE)
    )


# The synthetic world's own clips, since no real ones ship in a package


MANY = pytest.param(400, marks=pytest.mark.thorough)


@pytest.mark.slow
@pytest.mark.parametrize("count", [20, MANY])
def test_clips_of_the_world_pass(count):
    """As they are, for a model that was taught such plain ones; and with a decoder's noise, for any."""
    rng = np.random.default_rng(0)
    for _, scene, _ in unseen(count, seed=1):
        frames, waveform = drawn(scene, VideoPixelShape(25, 64, 64, 24.0))
        noisy = (np.clip(x + rng.integers(-1, 2, x.shape), 0, 255) for x in frames)
        list(health.watched(iter(frames), still=True))
        list(health.watched(x.astype(np.uint8) for x in noisy))
        health.check_waveform(waveform, silent=True)
