"""Angles against Lightricks' numbers and closed forms; rotations against complex multiplication."""

import mlx.core as mx
import numpy as np
import pytest

from mlx_video.models.ltx.config import LTXRopeType
from mlx_video.models.ltx.rope import _frequencies, apply_rotary, precompute_freqs_cis
from tests.reference import MODULE_TOLERANCE, error, vectors

ROPE = vectors("rope")

VIDEO = dict(dim=4096, max_pos=(20, 2048, 2048), use_middle_indices_grid=True)
AUDIO = dict(dim=2048, max_pos=(20,), use_middle_indices_grid=True)
SPLIT = LTXRopeType.SPLIT
INTERLEAVED = LTXRopeType.INTERLEAVED


def split_tables(positions, *, double_precision=True, **options):
    return precompute_freqs_cis(
        positions, rope_type=SPLIT, double_precision=double_precision, **options
    )


def meets(rope, name):
    return all(
        error(table, official(name.format(part))) < MODULE_TOLERANCE
        for part, table in zip(("cos", "sin"), rope)
    )


def official(name):
    """Lightricks' table, whose heads come before the tokens."""
    return ROPE[name].swapaxes(1, 2)


@pytest.mark.parametrize("precision", ["f64", "f32"])
@pytest.mark.parametrize(
    "part, count", [("video", 682), ("audio", 1024), ("connector", 1920)]
)
def test_frequencies(precision, part, count):
    ours = _frequencies(10000.0, count, precision == "f64")
    assert error(ours, ROPE[f"real.grid_{precision}_{part}"]) < 1e-6


@pytest.mark.parametrize("precision", ["f64", "f32"])
def test_video_tables(precision):
    rope = split_tables(
        ROPE["real.video_positions"], double_precision=precision == "f64", **VIDEO
    )
    # The float32 powers of numpy and torch differ in the last bit, worth 4e-3 rad at 16,000 rad.
    tolerance = MODULE_TOLERANCE if precision == "f64" else 5e-3
    for part, table in zip(("cos", "sin"), rope):
        assert error(table, official(f"real.video_{part}_{precision}")) < tolerance


def test_audio_tables():
    assert meets(split_tables(ROPE["real.audio_positions"], **AUDIO), "real.audio_{}")


def test_cross_attention_tables_use_the_time_axis_only():
    times = ROPE["real.video_positions"][:, :1]
    assert meets(split_tables(times, **AUDIO), "real.video_cross_{}")


@pytest.mark.parametrize("ends", [False, True], ids=["points", "bounds"])
def test_connector_tables_stand_at_the_start_of_each_token(ends):
    tokens = mx.array([[[0.0, 1.0, 5.0, 1023.0]]])
    grid = mx.stack([tokens, tokens + 1], axis=-1) if ends else tokens
    rope = split_tables(grid, dim=3840, max_pos=(4096,), num_attention_heads=30)
    assert meets(rope, "real.connector_{}")


def test_positions_are_float32_before_any_arithmetic():
    """The February 2026 release took midpoints in bfloat16; the current one and ours do not."""
    exact = official("real.video_cos_f64")
    rounded = ROPE["real.video_positions"].astype(mx.bfloat16)
    ours, _ = split_tables(rounded, **VIDEO)
    assert ours.dtype == mx.float32
    of_rounded_bounds, _ = split_tables(rounded.astype(mx.float32), **VIDEO)
    assert mx.array_equal(ours, of_rounded_bounds)
    distance = mx.abs(ours - exact).mean()
    assert distance < mx.abs(official("real.video_cos_f64_bf16pos") - exact).mean()


def angles_in_numpy(positions, dim, max_pos, theta=10000.0):
    """Closed form in float64: middle of the bounds, -1..1 over the extent, axes fastest, zeros in front."""
    middle = np.array(positions, dtype=np.float64).mean(-1)
    count = dim // (2 * len(max_pos))
    grid = theta ** (np.arange(count) / (count - 1)) * np.pi / 2
    signed = 2 * middle / np.array(max_pos)[None, :, None] - 1
    angles = np.einsum("f,ban->bnfa", grid, signed)
    angles = angles.reshape(*angles.shape[:2], -1)
    return np.pad(angles, ((0, 0), (0, 0), (dim // 2 - angles.shape[-1], 0)))


def some_positions(axes, tokens=5, batch=2):
    start = mx.random.uniform(0, 10, (batch, axes, tokens), key=mx.random.key(1))
    return mx.stack([start, start + 1], axis=-1)


def pairs(x, rope_type):
    """(..., head_dim) -> two arrays (..., head_dim / 2): the planes that turn."""
    x, half = np.array(x), x.shape[-1] // 2
    if rope_type is SPLIT:
        return x[..., :half], x[..., half:]
    return x[..., ::2], x[..., 1::2]


@pytest.mark.parametrize("rope_type", [SPLIT, INTERLEAVED])
@pytest.mark.parametrize("max_pos", [(20,), (20, 64, 64)])
def test_rotation_is_complex_multiplication(rope_type, max_pos):
    heads, head_dim = 4, 16
    positions = some_positions(len(max_pos))
    rope = tables(positions, heads * head_dim, max_pos, heads, rope_type)
    x = mx.random.normal((2, 5, heads, head_dim), key=mx.random.key(2))
    turn = np.exp(1j * angles_in_numpy(positions, heads * head_dim, max_pos))
    turn = turn.reshape(2, 5, heads, head_dim // 2)
    a, b = pairs(x, rope_type)
    turned = (a + 1j * b) * turn
    a, b = pairs(apply_rotary(x, rope, rope_type), rope_type)
    # Angles of 16,000 rad in float32 are good to 1e-3.
    np.testing.assert_allclose(a, turned.real, atol=5e-3)
    np.testing.assert_allclose(b, turned.imag, atol=5e-3)


def tables(positions, dim, max_pos, heads, rope_type):
    return precompute_freqs_cis(
        positions,
        dim,
        max_pos=max_pos,
        use_middle_indices_grid=True,
        num_attention_heads=heads,
        rope_type=rope_type,
        double_precision=True,
    )


@pytest.mark.parametrize(
    "rope_type, shape", [(SPLIT, (2, 5, 4, 8)), (INTERLEAVED, (2, 5, 64))]
)
def test_shape_of_the_tables(rope_type, shape):
    cos, sin = tables(some_positions(3), 64, (20, 64, 64), 4, rope_type)
    assert cos.shape == sin.shape == shape


@pytest.mark.parametrize("rope_type", [SPLIT, INTERLEAVED])
def test_rotation_keeps_bfloat16_and_rounds_once(rope_type):
    rope = tables(some_positions(1), 64, (20,), 4, rope_type)
    x = mx.random.normal((2, 5, 4, 16), key=mx.random.key(3)).astype(mx.bfloat16)
    turned = apply_rotary(x, rope, rope_type)
    exact = apply_rotary(x.astype(mx.float32), rope, rope_type)
    assert turned.dtype == mx.bfloat16
    assert mx.array_equal(turned, exact.astype(mx.bfloat16))


def test_one_extent_per_axis():
    with pytest.raises(
        ValueError, match=r"one extent for each of the 3 axes .* got \(20,\)"
    ):
        precompute_freqs_cis(some_positions(3), 64, max_pos=(20,))
