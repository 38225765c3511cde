"""The text path against transformers and diffusers on fresh random weights."""

import mlx.core as mx
import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")
pytest.importorskip("mlx_lm")

from diffusers.pipelines.ltx2.connectors import LTX2TextConnectors
from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma4ForCausalLM,
    Gemma4TextConfig,
)

from mlx_video.models.ltx.config import ConnectorConfig
from mlx_video.models.ltx.connector import TextConnectors
from mlx_video.models.ltx.gemma import hidden_states
from mlx_video.models.ltx.text_encoder import GemmaTextEncoder
from mlx_video.weights import load_into
from tests.reference import MODULE_TOLERANCE, error
from tests.tiny_tokenizer import write_tokenizer

OFFICIAL_NAMES = {
    "video_text_proj_in.": "text_embedding_projection.video_aggregate_embed.",
    "audio_text_proj_in.": "text_embedding_projection.audio_aggregate_embed.",
    "text_proj_in.": "text_embedding_projection.aggregate_embed.",
    "video_connector.": "model.diffusion_model.video_embeddings_connector.",
    "audio_connector.": "model.diffusion_model.audio_embeddings_connector.",
    ".transformer_blocks.": ".transformer_1d_blocks.",
    ".norm_q.": ".q_norm.",
    ".norm_k.": ".k_norm.",
}


def official_name(key: str) -> str:
    for theirs, official in OFFICIAL_NAMES.items():
        key = key.replace(theirs, official)
    return key


def left_padded_mask(*lengths: int, total: int) -> mx.array:
    return mx.array([[0] * (total - n) + [1] * n for n in lengths])


@pytest.mark.parametrize(
    "heads, head_dim, layers, registers, length, rope_type, precision",
    [
        (2, 24, 1, 8, 32, "split", "float64"),
        (4, 16, 2, 4, 12, "interleaved", "float64"),
        (3, 8, 3, 16, 16, "split", "float32"),
    ],
)
def test_connectors(heads, head_dim, layers, registers, length, rope_type, precision):
    torch.manual_seed(heads)
    width, text_layers = heads * head_dim, 5
    shape = {
        "num_attention_heads": heads,
        "attention_head_dim": head_dim,
        "num_layers": layers,
        "num_learnable_registers": registers,
    }
    theirs = LTX2TextConnectors(
        caption_channels=width,
        text_proj_in_factor=text_layers + 1,
        rope_type=rope_type,
        rope_double_precision=precision == "float64",
        **{
            f"{m}_connector_{k}": v
            for m in ("video", "audio")
            for k, v in shape.items()
        },
    ).eval()
    weights = {
        official_name(k): mx.array(v.numpy()) for k, v in theirs.state_dict().items()
    }
    config = ConnectorConfig.from_dict(
        {f"connector_{k}": v for k, v in shape.items()}
        | {
            "caption_channels": width,
            "rope_type": rope_type,
            "frequencies_precision": precision,
        }
    )
    ours = TextConnectors(TextConnectors.fit(config, weights))
    ours.load_weights(list(TextConnectors.sanitize(weights).items()))

    states = mx.random.normal((text_layers + 1, 2, length, width)) * 30
    mask = left_padded_mask(length // 3, length, total=length)
    with torch.no_grad():
        video, audio, _ = theirs(
            torch.tensor(np.array(states.transpose(1, 2, 3, 0))),
            torch.tensor(np.array(mask)),
        )
    context = ours(states, mask)
    assert error(context.video, mx.array(video.numpy())) < MODULE_TOLERANCE
    assert error(context.audio, mx.array(audio.numpy())) < MODULE_TOLERANCE


@pytest.mark.parametrize("registers, length", [(8, 32), (16, 16)])
def test_newer_connectors(registers, length):
    """LTX-2.3's and 2.5's: a projection for each stream, gates, and two widths."""
    torch.manual_seed(registers)
    width, text_layers = 40, 5
    sizes = {"video": (2, 24, 3), "audio": (4, 8, 2)}  # heads, head dimension, layers
    keys = ("num_attention_heads", "attention_head_dim", "num_layers")
    given = {f"{m}_connector_{k}": v for m in sizes for k, v in zip(keys, sizes[m])} | {
        f"{m}_connector_num_learnable_registers": registers for m in sizes
    }
    theirs = LTX2TextConnectors(
        caption_channels=width,
        text_proj_in_factor=text_layers + 1,
        rope_type="split",
        video_gated_attn=True,
        audio_gated_attn=True,
        per_modality_projections=True,
        video_hidden_dim=48,
        audio_hidden_dim=32,
        proj_bias=True,
        **given,
    ).eval()
    with torch.no_grad():  # gates begin at 1; make them matter
        for name, value in theirs.named_parameters():
            if "gate" in name:
                value.normal_(0, 0.5)
    weights = {
        official_name(k): mx.array(v.numpy()) for k, v in theirs.state_dict().items()
    }
    config = ConnectorConfig.from_dict(
        {k.removeprefix("video_"): v for k, v in given.items() if k.startswith("video")}
        | {f"audio_connector_{k}": v for k, v in zip(keys, sizes["audio"])}
        | {
            "caption_channels": width,
            "caption_proj_before_connector": True,
            "connector_apply_gated_attention": True,
            "rope_type": "split",
            "frequencies_precision": "float64",
        }
    )
    ours = TextConnectors(TextConnectors.fit(config, weights))
    load_into(ours, TextConnectors.sanitize(weights))

    states = mx.random.normal((text_layers + 1, 2, length, width)) * 30
    mask = left_padded_mask(length // 3, length, total=length)
    with torch.no_grad():
        video, audio, _ = theirs(
            torch.tensor(np.array(states.transpose(1, 2, 3, 0))),
            torch.tensor(np.array(mask)),
        )
    context = ours(states, mask)
    assert error(context.video, mx.array(video.numpy())) < MODULE_TOLERANCE
    assert error(context.audio, mx.array(audio.numpy())) < MODULE_TOLERANCE


def test_gemma_4(tmp_path):
    torch.manual_seed(4)
    config = Gemma4TextConfig(
        vocab_size=300,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=7,  # each random one amplifies float32 noise
        num_attention_heads=4,
        num_key_value_heads=2,
        num_global_key_value_heads=1,
        head_dim=16,
        global_head_dim=32,
        attention_k_eq_v=True,
        sliding_window=7,
        hidden_size_per_layer_input=0,
    )
    theirs = Gemma4ForCausalLM(config).eval()
    with torch.no_grad():
        for name, value in theirs.named_parameters():
            value.normal_(1 if "norm" in name else 0, 0.1)
        for layer in theirs.model.layers:
            layer.layer_scalar.fill_(0.8)
    theirs.save_pretrained(tmp_path)
    write_tokenizer(tmp_path)
    ours = GemmaTextEncoder.load(tmp_path)

    ids = mx.random.randint(3, 300, (2, 40))
    mask = left_padded_mask(17, 40, total=40)
    with torch.no_grad():
        expected = theirs.model(
            torch.tensor(np.array(ids)),
            attention_mask=torch.tensor(np.array(mask)),
            output_hidden_states=True,
        ).hidden_states
    actual = list(hidden_states(ours.model, ids, mask))
    assert len(actual) == len(expected) == 8
    for mine, their in zip(actual, expected):
        their = mx.array(their.numpy())
        assert error(mine[1], their[1]) < MODULE_TOLERANCE
        assert error(mine[0, -17:], their[0, -17:]) < MODULE_TOLERANCE


@pytest.mark.parametrize(
    "layers, heads, kv_heads, window, factor", [(7, 4, 2, 5, 8.0), (13, 8, 1, 9, 1.0)]
)
def test_gemma(tmp_path, layers, heads, kv_heads, window, factor):
    torch.manual_seed(layers)
    text_config = dict(
        vocab_size=300,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=16,
        query_pre_attn_scalar=24,
        sliding_window=window,
        rope_parameters={
            "full_attention": {
                "rope_type": "linear",
                "factor": factor,
                "rope_theta": 1e6,
            },
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        },
    )
    vision_config = dict(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=28,
        patch_size=14,
    )
    config = Gemma3Config(text_config=text_config, vision_config=vision_config)
    theirs = Gemma3ForConditionalGeneration(config).eval()
    with torch.no_grad():  # norms begin as the identity; make them matter
        for name, value in theirs.named_parameters():
            value.normal_(0, 0.3 if "norm" in name else 0.1)
    theirs.save_pretrained(tmp_path)
    write_tokenizer(tmp_path)
    ours = GemmaTextEncoder.load(tmp_path)

    ids = mx.random.randint(3, 300, (2, 40))
    mask = left_padded_mask(17, 40, total=40)
    with torch.no_grad():
        expected = theirs.model.language_model(
            torch.tensor(np.array(ids)),
            attention_mask=torch.tensor(np.array(mask)),
            output_hidden_states=True,
        ).hidden_states
    actual = list(hidden_states(ours.model, ids, mask))
    assert len(actual) == len(expected) == layers + 1
    for mine, their in zip(actual, expected):
        their = mx.array(their.numpy())
        assert error(mine[1], their[1]) < MODULE_TOLERANCE
        assert error(mine[0, -17:], their[0, -17:]) < MODULE_TOLERANCE
