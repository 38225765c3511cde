"""One block, its modulation and its noise levels, against Lightricks' numbers."""

from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest

from mlx_video.models.ltx.adaln import (
    Modulation,
    Rows,
    add_gated,
    chosen_rows,
    modulate,
    norm_modulate,
    timestep_embedding,
)
from mlx_video.models.ltx.transformer import CROSS_GATE, Timesteps
from mlx_video.types import AV, Modality
from tests.models.ltx.dit import (
    DIT,
    PER_TOKEN,
    SIGMA,
    UNIFORM,
    av,
    errors,
    fresh_model,
    inputs,
    model,
)
from tests.reference import MODULE_TOLERANCE, error, vectors


def conditioning(timesteps, some=model(), sigma=SIGMA):
    return some.embed(inputs(some, timesteps, sigma=sigma))[1]


def of_tokens(values: mx.array, levels: mx.array | None) -> mx.array:
    """What every token has of (B, K, ...)."""
    return values if levels is None else mx.take(values, levels, axis=1)


def test_timestep_embedding():
    rope = vectors("rope")
    ours = timestep_embedding(rope["timesteps"], 256)
    assert error(ours, rope["timestep_embedding"]) < MODULE_TOLERANCE


@pytest.mark.parametrize("name", ["uniform", "per_token"])
def test_rows_of_each_level_reach_its_tokens(name):
    c = conditioning(UNIFORM if name == "uniform" else PER_TOKEN).video
    for ours, official in (
        (c.own.rows, "timesteps"),
        (c.output.rows[:, :, :1], "embedded_timestep"),
        (c.cross.rows[:, :, :CROSS_GATE], "cross_scale_shift_timestep"),
    ):
        expected = DIT[f"int.{name}.video_{official}"]
        ours = of_tokens(ours.flatten(2), c.own.levels)
        ours = mx.broadcast_to(ours, expected.shape)
        assert error(ours, expected) < MODULE_TOLERANCE


def test_audio_rows():
    c = conditioning(UNIFORM).audio
    for ours, official in (
        (c.own.rows, "timesteps"),
        (c.output.rows[:, :, :1], "embedded_timestep"),
        (c.cross.rows[:, :, :CROSS_GATE], "cross_scale_shift_timestep"),
        (gate_of(c), "cross_gate_timestep"),
    ):
        expected = DIT[f"int.audio_{official}"]
        ours = mx.broadcast_to(ours.flatten(2), expected.shape)
        assert error(ours, expected) < MODULE_TOLERANCE


def test_gate_hears_the_other_modality():
    """Its own tokens may be pinned: the gate is that of the sound's noise level, everywhere."""
    expected = DIT["int.uniform.video_cross_gate_timestep"]
    for timesteps in (UNIFORM, PER_TOKEN):
        gates = gate_of(conditioning(timesteps).video)
        for level in range(gates.shape[1]):
            assert error(gates[:, level], expected[:, 0]) < MODULE_TOLERANCE


def gate_of(c):
    """(B, K, D)"""
    return c.cross.rows[:, :, CROSS_GATE]


def test_gates_are_crossed():
    """Where the modalities are at different noise levels, each gate takes that of the other."""
    levels = AV(0.2, 0.8).map(
        lambda sigma: Timesteps.from_mask(sigma, mx.ones((1, 4, 1)))
    )
    streams = inputs(model()).map(lambda s, t: replace(s, timesteps=t), levels)
    _, c = model().embed(streams)
    for modality, sigma in ((Modality.VIDEO, 0.8), (Modality.AUDIO, 0.2)):
        expected = gate_of(conditioning(UNIFORM, sigma=sigma)[modality])
        assert error(gate_of(c[modality]), expected) < 1e-6


def test_gate_has_a_timescale_of_its_own():
    slow = fresh_model(av_ca_timestep_scale_multiplier=250.0)
    assert (
        error(
            gate_of(conditioning(UNIFORM, slow, sigma=0.8).audio),
            gate_of(conditioning(UNIFORM, sigma=0.2).audio),
        )
        < 1e-6
    )


def test_modalities_share_the_longer_of_their_timescales():
    tables, of_short_sound = (
        inputs(some).video.rope
        for some in (
            model(),
            fresh_model(audio_positional_embedding_max_pos=(10,)),
        )
    )
    assert mx.array_equal(tables.cross[0], of_short_sound.cross[0])


@pytest.mark.parametrize("modality", Modality)
def test_rope_tables(modality):
    tables = inputs(model())[modality].rope
    for table, name in ((tables.tokens, "rope"), (tables.cross, "cross_rope")):
        for part, expected in zip(table, ("cos", "sin")):
            expected = DIT[f"int.{modality.value}_{name}_{expected}"]
            assert error(part.swapaxes(1, 2), expected) < MODULE_TOLERANCE


def test_first_block():
    x, c = model().embed(inputs(model()))
    assert error(x.video, DIT["int.uniform.video_x"]) < MODULE_TOLERANCE
    assert error(x.audio, DIT["int.audio_x"]) < MODULE_TOLERANCE
    x = model().transformer_blocks[0](x, c)
    assert errors(x, av("int.uniform.block0_{}")) < MODULE_TOLERANCE


def test_projected_context():
    streams = inputs(model())
    contexts = streams.map(lambda stream: stream.context)
    assert errors(contexts, av("int.{}_context")) < MODULE_TOLERANCE


def some_mask():
    """(2, 6, 1): a pinned token and a half-pinned one, alike in both items, and one that differs."""
    return mx.array([[0, 1, 0.5, 1, 1, 0], [0, 1, 0.5, 1, 1, 1]])[..., None]


def test_levels_reproduce_every_token():
    timesteps = Timesteps.from_mask(0.5, some_mask())
    assert timesteps.values.shape == (2, 4)  # 0, 1, 0.5 and the one that differs
    assert timesteps.values.dtype == mx.float32
    tokens = of_tokens(timesteps.values, timesteps.index)
    assert mx.array_equal(tokens, some_mask()[..., 0] * 0.5)
    assert timesteps.sigma.tolist() == [0.5, 0.5]


def test_one_level_needs_no_index():
    timesteps = Timesteps.from_mask(0.5, mx.ones((1, 6, 1)))
    assert timesteps.index is None
    assert timesteps.values.tolist() == [[0.5]]


def test_a_mask_of_one_item_takes_the_noise_levels_of_many():
    sigma = mx.array([0.2, 0.4])
    timesteps = Timesteps.from_mask(sigma, some_mask()[:1])
    assert mx.array_equal(timesteps.sigma, sigma)
    tokens = of_tokens(timesteps.values, timesteps.index)
    assert mx.allclose(tokens, some_mask()[:1, :, 0] * sigma[:, None])


AT = Rows(shift=0, scale=1, gate=2)


def some_rows(dtype=mx.float32, levels=1):
    """A table of three rows, and what three rows of each level add to it."""
    table = mx.random.normal((3, 8), key=mx.random.key(7))
    rows = mx.random.normal((2, levels, 3, 8), key=mx.random.key(8))
    return table, rows.astype(dtype)


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
def test_elementwise_rules_round_once(dtype):
    x, y = (
        mx.random.normal((2, 5, 8), key=mx.random.key(i)).astype(dtype) for i in (0, 1)
    )
    table, rows = some_rows(dtype)
    shift, scale, gate = chosen_rows(table, rows, None, *AT)
    x64, y64, shift64, scale64, gate64 = (
        np.array(a.astype(mx.float32)) for a in (x, y, shift, scale, gate)
    )
    for ours, exact in (
        (modulate(x, table, Modulation(rows), AT), x64 * (1 + scale64) + shift64),
        (add_gated(x, y, table, Modulation(rows), AT), x64 + y64 * gate64),
    ):
        assert ours.dtype == dtype
        assert mx.allclose(ours, mx.array(exact).astype(dtype), rtol=1e-6, atol=1e-6)


def test_tables_are_added_in_float32():
    """In bfloat16 the table's value would be 1, and the sum a tie that rounds down."""
    table = mx.full((2, 4), 1 + 2**-9)
    rows = mx.full((1, 1, 2, 4), 256.0).astype(mx.bfloat16)
    (row,) = chosen_rows(table, rows, None, 1)
    assert row.tolist() == [[[258.0] * 4]]


def test_each_token_has_the_rows_of_its_level():
    table, rows = some_rows(levels=2)
    levels = mx.array([1, 0, 1])
    shift, each = chosen_rows(table, rows, levels, 0, 1)
    for token, level in enumerate(levels.tolist()):
        assert mx.array_equal(each[:, token], table[1] + rows[:, level, 1])
    x = mx.random.normal((2, 3, 8))
    normed = norm_modulate(x, table, Modulation(rows, levels), AT, 1e-6)
    assert mx.allclose(normed, mx.fast.rms_norm(x, None, 1e-6) * (1 + each) + shift)
