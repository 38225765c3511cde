"""diffusers' configs of the real models, as the official configs that they stand for."""

import json

import pytest

from mlx_video.errors import UserError
from mlx_video.models.ltx.checkpoint import foreign_configs as foreign
from mlx_video.models.ltx.config import ConnectorConfig, UpsamplerConfig
from mlx_video.models.ltx.vae_config import (
    AudioVAEConfig,
    BigVGANVocoderConfig,
    VideoEncoderConfig,
    VideoVAEConfig,
    VocoderConfig,
)
from tests.reference import FIXTURES

# As the pipelines of diffusers 0.42 state them.
TRANSFORMER = {
    "_class_name": "LTX2VideoTransformer3DModel",
    "in_channels": 128,
    "out_channels": 128,
    "num_attention_heads": 32,
    "attention_head_dim": 128,
    "cross_attention_dim": 4096,
    "pos_embed_max_pos": 20,
    "base_height": 2048,
    "base_width": 2048,
    "audio_in_channels": 128,
    "audio_out_channels": 128,
    "audio_num_attention_heads": 32,
    "audio_attention_head_dim": 64,
    "audio_cross_attention_dim": 2048,
    "audio_pos_embed_max_pos": 20,
    "num_layers": 48,
    "norm_eps": 1e-6,
    "caption_channels": 3840,
    "rope_theta": 10000.0,
    "rope_double_precision": True,
    "rope_type": "split",
    "timestep_scale_multiplier": 1000,
    "cross_attn_timestep_scale_multiplier": 1000,
}
CONNECTORS = {
    "caption_channels": 3840,
    "text_proj_in_factor": 49,
    "video_connector_num_attention_heads": 30,
    "video_connector_attention_head_dim": 128,
    "video_connector_num_layers": 2,
    "video_connector_num_learnable_registers": 128,
    "audio_connector_num_attention_heads": 30,
    "audio_connector_attention_head_dim": 128,
    "audio_connector_num_layers": 2,
    "audio_connector_num_learnable_registers": 128,
    "connector_rope_base_seq_len": 4096,
    "rope_theta": 10000.0,
    "rope_double_precision": True,
    "rope_type": "split",
}
VAE = {
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 128,
    "block_out_channels": [256, 512, 1024, 2048],
    "decoder_block_out_channels": [256, 512, 1024],
    "layers_per_block": [4, 6, 6, 2, 2],
    "decoder_layers_per_block": [5, 5, 5, 5],
    "downsample_type": ["spatial", "temporal", "spatiotemporal", "spatiotemporal"],
    "upsample_residual": [True, True, True],
    "upsample_factor": [2, 2, 2],
    "timestep_conditioning": False,
    "patch_size": 4,
    "encoder_causal": True,
    "decoder_causal": False,
    "encoder_spatial_padding_mode": "zeros",
    "decoder_spatial_padding_mode": "reflect",
}
AUDIO = {
    "base_channels": 128,
    "output_channels": 2,
    "ch_mult": [1, 2, 4],
    "num_res_blocks": 2,
    "attn_resolutions": None,
    "in_channels": 2,
    "resolution": 256,
    "latent_channels": 8,
    "norm_type": "pixel",
    "causality_axis": "height",
    "sample_rate": 16000,
    "mel_hop_length": 160,
    "mel_bins": 64,
}
VOCODER = {
    "hidden_channels": 1024,
    "upsample_kernel_sizes": [16, 15, 8, 4, 4],
    "upsample_factors": [6, 5, 2, 2, 2],
    "resnet_kernel_sizes": [3, 7, 11],
    "resnet_dilations": [[1, 3, 5]] * 3,
    "output_sampling_rate": 24000,
}
TRANSFORMER_23 = TRANSFORMER | {"gated_attn": True, "cross_attn_mod": True}
CONNECTORS_23 = CONNECTORS | {
    "per_modality_projections": True,
    "video_connector_num_attention_heads": 32,
    "video_connector_num_layers": 8,
    "video_gated_attn": True,
    "audio_connector_num_attention_heads": 32,
    "audio_connector_attention_head_dim": 64,
    "audio_connector_num_layers": 8,
    "audio_gated_attn": True,
    "proj_bias": True,
}
VAE_23 = VAE | {
    "block_out_channels": [256, 512, 1024, 1024],
    "layers_per_block": [4, 6, 4, 2, 2],
    "decoder_block_out_channels": [256, 512, 512, 1024],
    "decoder_layers_per_block": [4, 6, 4, 2, 2],
    "upsample_type": ["spatiotemporal", "spatiotemporal", "temporal", "spatial"],
    "upsample_residual": [False, False, False, False],
    "upsample_factor": [2, 2, 1, 2],
    "decoder_spatial_padding_mode": "zeros",
}
VOCODER_23 = {
    "hidden_channels": 1536,
    "upsample_kernel_sizes": [11, 4, 4, 4, 4, 4],
    "upsample_factors": [5, 2, 2, 2, 2, 2],
    "resnet_kernel_sizes": [3, 7, 11],
    "resnet_dilations": [[1, 3, 5]] * 3,
    "act_fn": "snakebeta",
    "final_bias": False,
    "bwe_hidden_channels": 512,
    "bwe_upsample_kernel_sizes": [12, 11, 4, 4, 4],
    "bwe_upsample_factors": [6, 5, 2, 2, 2],
    "bwe_resnet_kernel_sizes": [3, 7, 11],
    "bwe_resnet_dilations": [[1, 3, 5]] * 3,
    "bwe_final_bias": False,
    "filter_length": 512,
    "hop_length": 80,
    "window_length": 512,
    "num_mel_channels": 64,
    "input_sampling_rate": 16000,
    "output_sampling_rate": 48000,
}


def official(release: str) -> dict[str, dict]:
    name = {"2": "ltx-2-19b", "2.3": "ltx-2.3-22b"}[release]
    file = FIXTURES / f"manifests/{name}.config.json"
    return json.loads(file.read_text())["config"]


THEIRS = {
    "2": (TRANSFORMER, CONNECTORS, VAE, AUDIO, VOCODER),
    "2.3": (TRANSFORMER_23, CONNECTORS_23, VAE_23, AUDIO, VOCODER_23),
}


@pytest.mark.parametrize("release", THEIRS)
def test_every_part_is_configured_as_by_the_official_file(release):
    transformer, connectors, vae, audio, vocoder = THEIRS[release]
    ours = {
        "transformer": foreign.transformer_block(transformer, connectors),
        "vae": foreign.video_vae_block(vae),
        "audio_vae": foreign.audio_vae_block(audio),
        "vocoder": foreign.vocoder_block(vocoder),
    }
    vocoders = {"2": VocoderConfig, "2.3": BigVGANVocoderConfig}
    expected = official(release)
    for key, value in ours["transformer"].items():
        assert expected["transformer"].get(key, value) == value, key
    kinds = {
        ConnectorConfig: "transformer",
        VideoEncoderConfig: "vae",
        VideoVAEConfig: "vae",
        AudioVAEConfig: "audio_vae",
        vocoders[release]: "vocoder",
    }
    for _, options in [
        *expected["vae"]["encoder_blocks"],
        *expected["vae"]["decoder_blocks"],
    ]:
        options.pop("inject_noise", None)  # false, which diffusers leaves out
    for kind, block in kinds.items():
        assert kind.from_dict(ours[block]) == kind.from_dict(expected[block]), kind


def test_the_upscaler_too():
    theirs = {
        "in_channels": 128,
        "mid_channels": 1024,
        "num_blocks_per_stage": 4,
        "dims": 3,
        "spatial_upsample": True,
        "temporal_upsample": False,
        "rational_spatial_scale": 2.0,
        "use_rational_resampler": True,
    }
    found = UpsamplerConfig.from_dict(foreign.upsampler_config(theirs))
    assert found.mid_channels == 1024 and found.rational_resampler


def test_an_absurd_number_of_blocks_is_refused_before_they_are_built():
    config = VAE | {"layers_per_block": [1024] * 401}
    with pytest.raises(UserError, match="layers_per_block has 401 entries; at most 64"):
        foreign.video_vae_block(config)


def test_what_is_missing_is_named():
    with pytest.raises(UserError, match="config of the vae has no latent_channels"):
        foreign.video_vae_block({})
