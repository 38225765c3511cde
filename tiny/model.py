"""``ltx-2-tiny``: the configs of all its parts, in the words of the official metadata, and the parts themselves.

Knows how large the model is and what its files look like; not how any part is trained.
"""

import shutil
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from mlx_video.models.ltx.checkpoint.source import Source
from mlx_video.models.ltx.loading.geometry import read_geometry
from mlx_video.models.ltx.loading.parts import PARTS
from mlx_video.weights import save_folder

NAME = "ltx-2-tiny"
PACKAGED = Path(__file__).parent.parent / "mlx_video" / NAME
WORK = Path(__file__).parent / "work"  # checkpoints of the training in progress

TEXT_WIDTH = 128
TEXT_TOKENS = 64  # of a prompt; also the number of registers

TRANSFORMER = {
    "_class_name": "AVTransformer3DModel",
    "num_layers": 4,
    # No stream is narrower than the 128 channels of its latents, whose noise it has to carry through; what the video's
    # has beside them is for drawing.
    "num_attention_heads": 8,
    "attention_head_dim": 32,
    "cross_attention_dim": 256,
    "audio_num_attention_heads": 8,
    "audio_attention_head_dim": 16,
    "audio_cross_attention_dim": 128,
    "caption_channels": TEXT_WIDTH,
    "in_channels": 128,
    "out_channels": 128,
    "audio_out_channels": 128,
    "norm_eps": 1e-6,
    # Short clips in few cells: from one to the next the angles differ by 0.05 to 10, so that nearly no pair of features
    # turns so fast that it says nothing of nearness.
    "positional_embedding_theta": 100.0,
    "positional_embedding_max_pos": [10, 2048, 2048],
    "audio_positional_embedding_max_pos": [2],
    "use_middle_indices_grid": True,
    "timestep_scale_multiplier": 1000,
    "av_ca_timestep_scale_multiplier": 1000.0,
    "rope_type": "split",
    "frequencies_precision": "float64",
    "connector_num_layers": 1,
    "connector_num_attention_heads": 4,
    "connector_attention_head_dim": TEXT_WIDTH // 4,
    "connector_num_learnable_registers": TEXT_TOKENS,
    "connector_positional_embedding_max_pos": [TEXT_TOKENS],
    "connector_norm_output": True,
    "use_embeddings_connector": True,
}
VAE = {
    "_class_name": "CausalVideoAutoencoder",
    "dims": 3,
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 128,
    "latent_log_var": "uniform",
    "norm_layer": "pixel_norm",
    "patch_size": 4,
    "causal_decoder": False,
    "timestep_conditioning": False,
    "encoder_base_channels": 16,
    "encoder_blocks": [
        ["compress_space_res", {"multiplier": 4}],
        ["compress_time_res", {"multiplier": 1}],
        ["res_x", {"num_layers": 1}],
        ["compress_all_res", {"multiplier": 2}],
        ["compress_all_res", {"multiplier": 2}],
    ],
    "decoder_base_channels": 24,
    # No residual blocks at the finest grid, where they took most of the time, nor at the coarsest, which is most bytes.
    "decoder_blocks": [
        ["compress_all", {"multiplier": 1, "residual": True}],
        ["res_x", {"num_layers": 2, "inject_noise": False}],
        ["compress_all", {"multiplier": 2, "residual": True}],
        ["res_x", {"num_layers": 2, "inject_noise": False}],
        ["compress_all", {"multiplier": 2, "residual": True}],
    ],
}
AUDIO_VAE = {
    "model": {
        "params": {
            "ddconfig": {
                "double_z": True,
                "mel_bins": 64,
                "z_channels": 8,
                "downsample_time": False,
                "in_channels": 2,
                "out_ch": 2,
                "ch": 16,
                "ch_mult": [1, 2, 4],
                "num_res_blocks": 1,
                "attn_resolutions": [],
                "mid_block_add_attention": False,
                "norm_type": "pixel",
                "causality_axis": "height",
            },
            "sampling_rate": 16000,
        }
    },
    "preprocessing": {
        "audio": {"sampling_rate": 16000, "stereo": True, "causal_padding": 3},
        "stft": {
            "filter_length": 1024,
            "hop_length": 160,
            "win_length": 1024,
            "causal": True,
        },
        "mel": {"n_mel_channels": 64, "mel_fmin": 0, "mel_fmax": 8000},
    },
}
VOCODER = {
    "resblock": "1",
    "stereo": True,
    "upsample_initial_channel": 128,
    "upsample_rates": [6, 5, 2, 2, 2],
    "upsample_kernel_sizes": [16, 15, 8, 4, 4],
    "resblock_kernel_sizes": [3, 7],
    "resblock_dilation_sizes": [[1, 3], [1, 3]],
}
UPSAMPLER = {
    "_class_name": "LatentUpsampler",
    "dims": 3,
    "in_channels": 128,
    "mid_channels": 64,
    "num_blocks_per_stage": 1,
    "spatial_upsample": True,
    "temporal_upsample": False,
    "spatial_scale": 2.0,
    "rational_resampler": False,
}
CONFIGS = {
    "transformer": TRANSFORMER,
    "connectors": TRANSFORMER,
    "video_encoder": VAE,
    "video_decoder": VAE,
    "audio_encoder": AUDIO_VAE,
    "audio_decoder": AUDIO_VAE,
    "vocoder": VOCODER,
    "upsampler": UPSAMPLER,
}
GEOMETRY = read_geometry({n: Source(Path(n), c) for n, c in CONFIGS.items()})
TEXT_ENCODER = {
    "architectures": ["Gemma3ForCausalLM"],
    "model_type": "gemma3_text",
    "vocab_size": 512,
    "hidden_size": TEXT_WIDTH,
    "intermediate_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "hidden_activation": "gelu_pytorch_tanh",
    "max_position_embeddings": 1024,
    "rms_norm_eps": 1e-6,
    "query_pre_attn_scalar": 32,
    "sliding_window": 64,
    "sliding_window_pattern": 2,
    "rope_theta": 1000000.0,
    "rope_local_base_freq": 10000.0,
    "attention_bias": False,
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
}
# What a clip of this model is like unless the user says otherwise.
DEFAULTS = {
    "width": 256,
    "height": 256,
    "frames": 49,
    "fps": 24,
    "audio": True,
    "negative_prompt": "",
    "steps": 40,
    "cfg": 3.0,
    "audio_cfg": 3.0,
    "stg": 0.0,
    "modality": 1.0,
    "rescale": 0.0,
    "may_be_still": True,
    "may_be_silent": True,
}


def fresh(name: str) -> nn.Module:
    """Part ``name`` with random weights, float32."""
    source = Source(Path(name), CONFIGS[name])
    config = PARTS[name].config(source)
    if name == "connectors":
        config = replace(config, text_layers=TEXT_ENCODER["num_hidden_layers"])
    return PARTS[name].network(source)(config)


def load(name: str) -> nn.Module:
    """Part ``name`` as training left it, or else as it is packaged; float32. Raises where there is neither."""
    folder = WORK / name if (WORK / name).is_dir() else PACKAGED / name
    return PARTS[folder_part(name)].build(Source.of(folder), mx.float32)


def store(name: str, module: nn.Module) -> Path:
    """Write a part as ``convert`` does, its config beside it, float32; returns the folder."""
    folder, scratch = WORK / name, WORK / f"{name}.new"
    shutil.rmtree(scratch, ignore_errors=True)
    weights = dict(tree_flatten(module.parameters()))
    save_folder(scratch, weights, dict(CONFIGS[folder_part(name)]))
    shutil.rmtree(folder, ignore_errors=True)
    return scratch.rename(folder)


def folder_part(folder: str) -> str:
    """Which part a folder holds: ``transformer-dev`` and ``transformer-distilled`` are transformers."""
    return folder.split("-")[0]
