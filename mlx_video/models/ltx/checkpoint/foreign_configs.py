"""Translates diffusers' config of each part to the official one, key by key."""

from typing import Literal, Mapping

from mlx_video.errors import UserError
from mlx_video.models.ltx.checkpoint.releases import LTX_2
from mlx_video.models.ltx.loading.schema import read_value

Block = Mapping[str, object]

KINDS = {"spatial": "space", "temporal": "time", "spatiotemporal": "all"}
INTS, NAMES = tuple[int, ...], tuple[Literal[tuple(KINDS)], ...]
SAME = (  # the transformer's keys that are the same in both; diffusers may leave them out
    *("num_layers", "norm_eps", "timestep_scale_multiplier"),
    *("in_channels", "out_channels", "num_attention_heads", "attention_head_dim"),
    *("cross_attention_dim", "audio_num_attention_heads", "audio_attention_head_dim"),
    *("audio_in_channels", "audio_out_channels", "audio_cross_attention_dim"),
    *("ff_bias", "audio_ff_bias", "use_keyframes_abs_pos_embedding"),
    "use_prompt_adaln_single",
)
HEADS, COUNTS = ("num_attention_heads", "attention_head_dim"), ("num_layers", "num_learnable_registers")  # fmt: skip
# Values that never vary, which diffusers leaves out.
MEL = {"stft": ("filter_length", "win_length"), "mel": ("mel_fmin", "mel_fmax")}


def transformer_block(transformer: Block, connectors: Block) -> dict[str, object]:
    """The official block of the transformer and the connectors."""
    t = _Reader("transformer", transformer, gated_attn=False, cross_attn_mod=False)
    absent = {"per_modality_projections": False, "video_gated_attn": False}
    c = _Reader("connectors", connectors, caption_channels=3840, **absent)
    block = t.renamed(
        "rope_type",
        positional_embedding_theta="rope_theta",
        av_ca_timestep_scale_multiplier="cross_attn_timestep_scale_multiplier",
        apply_gated_attention="gated_attn",
        cross_attention_adaln="cross_attn_mod",
    )
    block |= c.renamed(
        "caption_channels",
        caption_proj_before_connector="per_modality_projections",
        connector_apply_gated_attention="video_gated_attn",
        **{f"connector_{key}": f"video_connector_{key}" for key in HEADS + COUNTS},
    )
    if block["caption_proj_before_connector"]:  # else audio's equal video's
        block |= c.renamed(*(f"audio_connector_{key}" for key in HEADS))
    sides = ("pos_embed_max_pos", "base_height", "base_width")
    return block | {
        "_class_name": "AVTransformer3DModel",
        "positional_embedding_max_pos": [t(key) for key in sides],
        "audio_positional_embedding_max_pos": [t("audio_pos_embed_max_pos")],
        "frequencies_precision": "float64" if t("rope_double_precision") else "float32",
        "use_middle_indices_grid": True,
        "connector_positional_embedding_max_pos": [c("connector_rope_base_seq_len")],
        **{key: transformer[key] for key in SAME if key in transformer},
    }


def video_vae_block(vae: Block) -> dict[str, object]:
    """The official block of the convolutional video autoencoder; both lists are in encoder order."""
    absent = {"in_channels": 3, "out_channels": 3, "timestep_conditioning": False}
    v = _Reader("vae", vae, upsample_residual=True, upsample_type=None, **absent)
    base, factors = v("latent_channels", int), v("upsample_factor", INTS)
    widths = [base, *v("block_out_channels", INTS)]
    first, *down = v("layers_per_block", INTS)
    encoder = [["res_x", {"num_layers": first}]]
    kinds = v("downsample_type", NAMES)
    for kind, width, before, layers in zip(kinds, widths[1:], widths, down):
        step = {"multiplier": width // before}
        encoder.append([f"compress_{KINDS[kind]}_res", step])
        encoder.append(["res_x", {"num_layers": layers}])
    narrow, *_ = v("decoder_block_out_channels", INTS)
    kept = v.renamed(
        *("in_channels", "out_channels", "latent_channels", "patch_size"),
        *("encoder_spatial_padding_mode", "decoder_spatial_padding_mode"),
        "timestep_conditioning",
        causal_decoder="decoder_causal",
    )
    return kept | {
        "_class_name": "CausalVideoAutoencoder",
        "dims": 3,
        "norm_layer": "pixel_norm",
        "latent_log_var": "uniform",
        "encoder_base_channels": base,
        "decoder_base_channels": narrow // factors[0],
        "encoder_blocks": encoder,
        "decoder_blocks": _decoder_blocks(v, factors),
    }


def _decoder_blocks(v: "_Reader", factors: list[int]) -> list[list]:
    """diffusers lists layers and factors from pixels to latents, but kinds from latents to pixels."""
    residual = v("upsample_residual")
    residual = residual if isinstance(residual, list) else [residual] * len(factors)
    kinds = ["spatiotemporal"] * len(factors)
    if v("upsample_type") is not None:
        kinds = v("upsample_type", NAMES)
    *layers, last = v("decoder_layers_per_block", INTS)
    blocks = []
    for kind, factor, rest, count in zip(kinds[::-1], factors, residual, layers):
        blocks.append(["res_x", {"num_layers": count}])
        step = {"multiplier": factor} | ({"residual": True} if rest else {})
        blocks.append([f"compress_{KINDS[kind]}", step])
    return [*blocks, ["res_x", {"num_layers": last}]]


def diffusion_vae_block(decoder: Block) -> dict[str, object]:
    """The official block of a diffusion autoencoder, from the separate folder of its decoder."""
    d = _Reader("diffusion decoder", decoder, out_channels=3)
    strides = d("decoder_upsample_strides", tuple[INTS, ...])
    kernels = d("decoder_stage_kernels", tuple[INTS, ...])
    divisors = d("decoder_upsample_channel_reductions", INTS)
    lengths = ("head_dim", "stage_channels", "stage_depths", "t_emb_dim")
    inner = d.renamed(
        *("out_channels", "patch_size"),
        in_channels="latent_channels",
        default_num_inference_steps="decoder_num_inference_steps",
        **{key: f"decoder_{key}" for key in (*lengths, "timestep_scale_multiplier")},
    )
    inner |= {
        "_class_name": "NADiffusionDecoder",
        "stage_kernels": [*kernels, d("decoder_stage5_kernel")],
        "upsamples": [list(pair) for pair in zip(strides, divisors)],
    }
    outer = d.renamed(model_output_type="decoder_model_output_type")
    return outer | {"_class_name": "CausalDiffusionVAE", "decoder": inner}


def duration_head_config(head: Block) -> dict[str, object]:
    """The official config of the duration head."""
    h = _Reader("duration_head", head)
    widths = h.renamed(
        "audio_cross_attention_dim", cross_attention_dim="video_cross_attention_dim"
    )
    own = ("pooler_hidden_dim", "num_queries", "num_pooler_heads")
    own = h.renamed(*own, mlp_hidden="mlp_hidden_dim")
    return {"transformer": widths, "duration_head": own}


def audio_vae_block(audio: Block) -> dict[str, object]:
    """The official block of the audio autoencoder and its mel front end, flattened."""
    absent = {"double_z": True, "mid_block_add_attention": False, "is_causal": True}
    block = _Reader("audio_vae", audio, **absent).renamed(
        *("double_z", "mel_bins", "in_channels", "ch_mult", "num_res_blocks"),
        *("mid_block_add_attention", "norm_type", "causality_axis"),
        z_channels="latent_channels",
        out_ch="output_channels",
        ch="base_channels",
        sampling_rate="sample_rate",
        hop_length="mel_hop_length",
        causal="is_causal",
    )
    attention = audio.get("attn_resolutions") or []
    front = LTX_2.blocks["audio_vae"]["preprocessing"]
    mel = {key: front[name][key] for name, keys in MEL.items() for key in keys}
    return block | mel | {"stereo": True, "attn_resolutions": attention}


def vocoder_block(vocoder: Block) -> dict[str, object]:
    """The official block of the vocoder, with its bandwidth extension if it has one."""
    v = _Reader("vocoder", vocoder, final_bias=False, bwe_final_bias=False)
    if "bwe_hidden_channels" not in vocoder:
        rate = v.renamed(output_sample_rate="output_sampling_rate")
        return {"resblock": "1", "stereo": True} | _generator(v) | rate
    shared = v.renamed(activation="act_fn")
    shared |= {"resblock": "AMP1", "stereo": True, "use_tanh_at_final": False}
    extension = v.renamed(
        *("input_sampling_rate", "output_sampling_rate", "hop_length"),
        n_fft="filter_length",
        win_size="window_length",
        num_mels="num_mel_channels",
        use_bias_at_final="bwe_final_bias",
    )
    extension |= _generator(v, "bwe_") | {"apply_final_activation": False}
    own = _generator(v) | v.renamed(use_bias_at_final="final_bias")
    return {"vocoder": own | shared, "bwe": extension | shared}


def _generator(v: "_Reader", prefix: str = "") -> dict[str, object]:
    return v.renamed(
        upsample_initial_channel=f"{prefix}hidden_channels",
        upsample_rates=f"{prefix}upsample_factors",
        upsample_kernel_sizes=f"{prefix}upsample_kernel_sizes",
        resblock_kernel_sizes=f"{prefix}resnet_kernel_sizes",
        resblock_dilation_sizes=f"{prefix}resnet_dilations",
    )


def upsampler_config(upsampler: Block) -> dict[str, object]:
    """The official config of a latent upsampler."""
    absent = {"rational_spatial_scale": 2.0, "use_rational_resampler": False}
    config = _Reader("latent_upsampler", upsampler, **absent).renamed(
        *("in_channels", "mid_channels", "num_blocks_per_stage", "dims"),
        *("spatial_upsample", "temporal_upsample"),
        spatial_scale="rational_spatial_scale",
        rational_resampler="use_rational_resampler",
    )
    return {"_class_name": "LatentUpsampler"} | config


MOST_BLOCKS = 64  # of a network, and so entries of a list


class _Reader:
    """Reads values of a part's config; ``absent`` holds the defaults of keys that may be missing."""

    def __init__(self, part: str, block: Block, **absent: object):
        self.part, self.block = part, absent | dict(block)

    def __call__(self, key: str, kind: type | None = None) -> object:
        """The value of ``key``: any, or of ``kind``, where no number is below 1 and no list empty."""
        if key not in self.block:
            raise UserError(
                f"diffusers' config of the {self.part} has no {key}; fetch its config.json again."
            )
        value, owner = self.block[key], f"diffusers' config of the {self.part}"
        if isinstance(value, list) and len(value) > MOST_BLOCKS:  # each has its layers
            raise UserError(
                f"{owner}: {key} has {len(value)} entries; at most {MOST_BLOCKS} are read."
            )
        return value if kind is None else read_value(owner, True, key, value, kind)

    def renamed(self, *same: str, **others: str) -> dict[str, object]:
        """Values by their official keys: ``same`` in both, ``others`` as official key = diffusers' key."""
        keys = dict(zip(same, same)) | others
        return {official: self(key) for official, key in keys.items()}
