"""One block, its modulation and its noise levels, against Lightricks' numbers."""

from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest

from mlx_video.models.ltx.adaln import (
    Modulation,
    add_gated,
    modulate,
    timestep_embedding,
)
from mlx_video.models.ltx.transformer import MODALITIES, Timesteps
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
    streams = inputs(some, timesteps, sigma=sigma)
    swapped = AV(streams.audio, streams.video)
    return streams.map(some._conditioning, MODALITIES, swapped)


def of_tokens(levels: mx.array, timesteps: Timesteps) -> mx.array:
    """What every token has of (B, K, ...)."""
    return Modulation(levels[:, :, None], timesteps.index).row(0)


def test_timestep_embedding():
    rope = vectors("rope")
    ours = timestep_embedding(rope["timesteps"], 256)
    assert error(ours, rope["timestep_embedding"]) < MODULE_TOLERANCE


@pytest.mark.parametrize("name", ["uniform", "per_token"])
def test_rows_of_each_level_reach_its_tokens(name):
    c = conditioning(UNIFORM if name == "uniform" else PER_TOKEN).video
    for ours, official in (
        (c.rows, "timesteps"),
        (c.embedded, "embedded_timestep"),
        (c.cross_rows, "cross_scale_shift_timestep"),
    ):
        expected = DIT[f"int.{name}.video_{official}"]
        ours = of_tokens(ours.flatten(2), c.timesteps)
        ours = mx.broadcast_to(ours, expected.shape)
        assert error(ours, expected) < MODULE_TOLERANCE


def test_audio_rows():
    c = conditioning(UNIFORM).audio
    for ours, official in (
        (c.rows, "timesteps"),
        (c.embedded, "embedded_timestep"),
        (c.cross_rows, "cross_scale_shift_timestep"),
        (c.cross_gate, "cross_gate_timestep"),
    ):
        expected = DIT[f"int.audio_{official}"]
        ours = mx.broadcast_to(ours.flatten(2), expected.shape)
        assert error(ours, expected) < MODULE_TOLERANCE


def test_gate_hears_the_other_modality():
    """Its own tokens may be pinned: the gate is that of the sound's noise level, everywhere."""
    expected = DIT["int.uniform.video_cross_gate_timestep"]
    for timesteps in (UNIFORM, PER_TOKEN):
        gate = conditioning(timesteps).video.cross_gate
        assert error(gate[:, 0, 0], expected[:, 0]) < MODULE_TOLERANCE


def test_gates_are_crossed():
    """Where the modalities are at different noise levels, each gate takes that of the other."""
    levels = AV(0.2, 0.8).map(
        lambda sigma: Timesteps.from_mask(sigma, mx.ones((1, 4, 1)))
    )
    streams = inputs(model()).map(lambda s, t: replace(s, timesteps=t), levels)
    c = streams.map(model()._conditioning, MODALITIES, AV(streams.audio, streams.video))
    for modality, sigma in ((Modality.VIDEO, 0.8), (Modality.AUDIO, 0.2)):
        expected = conditioning(UNIFORM, sigma=sigma)[modality].cross_gate
        assert error(c[modality].cross_gate, expected) < 1e-6


def test_gate_has_a_timescale_of_its_own():
    slow = fresh_model(av_ca_timestep_scale_multiplier=250.0)
    assert (
        error(
            conditioning(UNIFORM, slow, sigma=0.8).audio.cross_gate,
            conditioning(UNIFORM, sigma=0.2).audio.cross_gate,
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
            assert error(part, expected) < MODULE_TOLERANCE


def test_first_block():
    streams = inputs(model())
    x = streams.map(model()._patchify, MODALITIES)
    assert error(x.video, DIT["int.uniform.video_x"]) < MODULE_TOLERANCE
    assert error(x.audio, DIT["int.audio_x"]) < MODULE_TOLERANCE
    x = model().transformer_blocks[0](x, conditioning(UNIFORM))
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
    tokens = of_tokens(timesteps.values, timesteps)
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
    tokens = of_tokens(timesteps.values, timesteps)
    assert mx.allclose(tokens, some_mask()[:1, :, 0] * sigma[:, None])


def test_levels_from_tokens_equal_levels_from_a_mask():
    mask = some_mask()
    of_levels = Timesteps.from_tokens(mask * 0.5, 0.5)
    of_mask = Timesteps.from_mask(0.5, mask)
    for ours, expected in zip(of_levels, of_mask):
        assert mx.array_equal(ours, expected)


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
def test_elementwise_rules_round_once(dtype):
    x, y, row = (
        mx.random.normal(shape, key=mx.random.key(i)).astype(dtype)
        for i, shape in enumerate([(2, 5, 8), (2, 5, 8), (2, 1, 8)])
    )
    x64, y64, row64 = (np.array(a.astype(mx.float32)) for a in (x, y, row))
    for ours, exact in (
        (modulate(x, row, row), x64 * (1 + row64) + row64),
        (add_gated(x, y, row), x64 + y64 * row64),
    ):
        assert ours.dtype == dtype
        assert mx.allclose(ours, mx.array(exact).astype(dtype), rtol=1e-6, atol=1e-6)


def test_tables_are_added_in_float32():
    table = mx.full((2, 4), 1 / 3)
    rows = mx.full((1, 1, 2, 4), 256.0).astype(mx.bfloat16)
    first = Modulation.of(table, rows, None, mx.float32).row(0)
    assert first.shape == (1, 1, 4)
    assert mx.allclose(first, mx.array(256 + 1 / 3), atol=1e-4)
