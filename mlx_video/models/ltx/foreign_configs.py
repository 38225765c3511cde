"""diffusers' config of each part as the official one, key by key. Reads no files."""

from typing import Iterable, Mapping

from mlx_video.errors import UserError
from mlx_video.formats.safetensors import clip

Block = Mapping[str, object]

# Values that diffusers' configs leave out, since they never vary.
MOST = 64  # entries of a list
STFT_LENGTH, HIGHEST_MEL = 1024, 8000  # samples, Hz
KINDS = {"spatial": "space", "temporal": "time", "spatiotemporal": "all"}


def transformer_block(transformer: Block, connectors: Block) -> dict[str, object]:
    """The official block of the transformer and the connectors."""
    t, c = _Reader(transformer, "transformer"), _Reader(connectors, "connectors")
    block = {
        "_class_name": "AVTransformer3DModel",
        "rope_type": t("rope_type"),
        "positional_embedding_theta": t("rope_theta"),
        "positional_embedding_max_pos": [t(k) for k in ("pos_embed_max_pos", "base_height", "base_width")],
        "audio_positional_embedding_max_pos": [t("audio_pos_embed_max_pos")],
        "av_ca_timestep_scale_multiplier": t("cross_attn_timestep_scale_multiplier"),
        "frequencies_precision": "float64" if t("rope_double_precision") else "float32",
        "use_middle_indices_grid": True,
        "apply_gated_attention": t("gated_attn", False),
        "cross_attention_adaln": t("cross_attn_mod", False),
        "caption_channels": c("caption_channels", 3840),
        "caption_proj_before_connector": c("per_modality_projections", False),
        "connector_apply_gated_attention": c("video_gated_attn", False),
        "connector_positional_embedding_max_pos": [c("connector_rope_base_seq_len")],
    }  # fmt: skip
    block |= {key: t(key) for key in SAME if key in transformer}
    for key in CONNECTOR_KEYS:
        block[f"connector_{key}"] = c(f"video_connector_{key}")
    if block["caption_proj_before_connector"]:  # else audio's equal video's
        for key in CONNECTOR_KEYS[:2]:
            block[f"audio_connector_{key}"] = c(f"audio_connector_{key}")
    return block


SAME = (
    *("num_layers", "norm_eps", "timestep_scale_multiplier"),
    *("in_channels", "out_channels", "num_attention_heads", "attention_head_dim"),
    *("cross_attention_dim", "audio_num_attention_heads", "audio_attention_head_dim"),
    *("audio_in_channels", "audio_out_channels", "audio_cross_attention_dim"),
    *("ff_bias", "audio_ff_bias", "use_keyframes_abs_pos_embedding"),
    "use_prompt_adaln_single",
)
CONNECTOR_KEYS = (
    *("num_attention_heads", "attention_head_dim"),
    *("num_layers", "num_learnable_registers"),
)


def video_vae_block(vae: Block) -> dict[str, object]:
    """The official block of the convolutional video autoencoder; both lists are in encoder order."""
    v = _Reader(vae, "vae")
    base, factors = v.whole("latent_channels"), v.list("upsample_factor", int)
    widths = [base, *v.list("block_out_channels", int)]
    first, *down = v.list("layers_per_block", int)
    encoder = [["res_x", {"num_layers": first}]]
    kinds = v.list("downsample_type", str, KINDS)
    for kind, width, before, layers in zip(kinds, widths[1:], widths, down):
        step = {"multiplier": width // before}
        encoder.append([f"compress_{KINDS[kind]}_res", step])
        encoder.append(["res_x", {"num_layers": layers}])
    return {
        "_class_name": "CausalVideoAutoencoder",
        "dims": 3,
        "in_channels": v("in_channels", 3),
        "out_channels": v("out_channels", 3),
        "latent_channels": base,
        "patch_size": v("patch_size"),
        "norm_layer": "pixel_norm",
        "latent_log_var": "uniform",
        "causal_decoder": v("decoder_causal"),
        "timestep_conditioning": v("timestep_conditioning", False),
        "encoder_base_channels": base,
        "decoder_base_channels": v.list("decoder_block_out_channels", int)[0] // factors[0],
        "encoder_blocks": encoder,
        "decoder_blocks": _decoder_blocks(v, factors),
        "encoder_spatial_padding_mode": v("encoder_spatial_padding_mode"),
        "decoder_spatial_padding_mode": v("decoder_spatial_padding_mode"),
    }  # fmt: skip


def _decoder_blocks(v: "_Reader", factors: list[int]) -> list[list]:
    """diffusers lists layers and factors from pixels to latents, but kinds from latents to pixels."""
    residual = v("upsample_residual", True)
    residual = residual if isinstance(residual, list) else [residual] * len(factors)
    kinds = ["spatiotemporal"] * len(factors)
    if v("upsample_type", None) is not None:
        kinds = v.list("upsample_type", str, KINDS)
    *layers, last = v.list("decoder_layers_per_block", int)
    blocks = []
    for kind, factor, rest, count in zip(kinds[::-1], factors, residual, layers):
        blocks.append(["res_x", {"num_layers": count}])
        step = {"multiplier": factor} | ({"residual": True} if rest else {})
        blocks.append([f"compress_{KINDS[kind]}", step])
    return [*blocks, ["res_x", {"num_layers": last}]]


def diffusion_vae_block(decoder: Block) -> dict[str, object]:
    """The official block of a diffusion autoencoder, of which diffusers keeps the decoder in a folder of its own."""
    d = _Reader(decoder, "diffusion decoder")
    strides, divisors = d("decoder_upsample_strides"), d.list("decoder_upsample_channel_reductions", int)  # fmt: skip
    kernels = d("decoder_stage_kernels")
    for key, value in (("decoder_upsample_strides", strides), ("decoder_stage_kernels", kernels)):  # fmt: skip
        if not isinstance(value, list):
            raise d.wrong(key, "a list", value)
    return {
        "_class_name": "CausalDiffusionVAE",
        "model_output_type": d("decoder_model_output_type"),
        "decoder": {
            "_class_name": "NADiffusionDecoder",
            "in_channels": d("latent_channels"),
            "out_channels": d("out_channels", 3),
            "patch_size": d("patch_size"),
            "head_dim": d("decoder_head_dim"),
            "stage_channels": d("decoder_stage_channels"),
            "stage_depths": d("decoder_stage_depths"),
            "stage_kernels": [*kernels, d("decoder_stage5_kernel")],
            "upsamples": [list(pair) for pair in zip(strides, divisors)],
            "t_emb_dim": d("decoder_t_emb_dim"),
            "timestep_scale_multiplier": d("decoder_timestep_scale_multiplier"),
            "default_num_inference_steps": d("decoder_num_inference_steps"),
        },
    }


def duration_head_config(head: Block) -> dict[str, object]:
    """The official config of the duration head."""
    h = _Reader(head, "duration_head")
    widths = ("cross_attention_dim", "audio_cross_attention_dim")
    theirs = ("video_cross_attention_dim", "audio_cross_attention_dim")
    own = {k: h(k) for k in ("pooler_hidden_dim", "num_queries", "num_pooler_heads")}
    return {
        "transformer": {k: h(their) for k, their in zip(widths, theirs)},
        "duration_head": own | {"mlp_hidden": h("mlp_hidden_dim")},
    }


def audio_vae_block(audio: Block) -> dict[str, object]:
    """The official block of the audio autoencoder and its mel front end."""
    a = _Reader(audio, "audio_vae")
    rate, bins = a("sample_rate"), a("mel_bins")
    model = {
        "double_z": a("double_z", True),
        "mel_bins": bins,
        "z_channels": a("latent_channels"),
        "resolution": a("resolution", 256),
        "downsample_time": False,
        "in_channels": a("in_channels"),
        "out_ch": a("output_channels"),
        "ch": a("base_channels"),
        "ch_mult": a("ch_mult"),
        "num_res_blocks": a("num_res_blocks"),
        "attn_resolutions": a("attn_resolutions", None) or [],
        "dropout": a("dropout", 0.0),
        "mid_block_add_attention": a("mid_block_add_attention", False),
        "norm_type": a("norm_type"),
        "causality_axis": a("causality_axis"),
    }
    stft = {"filter_length": STFT_LENGTH, "hop_length": a("mel_hop_length")}
    stft |= {"win_length": STFT_LENGTH, "causal": a("is_causal", True)}
    mel = {"n_mel_channels": bins, "mel_fmin": 0, "mel_fmax": HIGHEST_MEL}
    return {
        "model": {"params": {"ddconfig": model, "sampling_rate": rate}},
        "preprocessing": {
            "audio": {"sampling_rate": rate, "stereo": True},
            "stft": stft,
            "mel": mel,
        },
    }


def vocoder_block(vocoder: Block) -> dict[str, object]:
    """The official block of the vocoder, with its bandwidth extension if it has one."""
    v = _Reader(vocoder, "vocoder")
    if "bwe_hidden_channels" not in vocoder:
        rate = {"output_sample_rate": v("output_sampling_rate")}
        return {"resblock": "1", "stereo": True, **_generator(v, ""), **rate}
    shared = {
        "resblock": "AMP1",
        "stereo": True,
        "use_tanh_at_final": False,
        "activation": v("act_fn"),
    }
    extension = {
        "apply_final_activation": False,
        "use_bias_at_final": v("bwe_final_bias", False),
        "input_sampling_rate": v("input_sampling_rate"),
        "output_sampling_rate": v("output_sampling_rate"),
        "hop_length": v("hop_length"),
        "n_fft": v("filter_length"),
        "win_size": v("window_length"),
        "num_mels": v("num_mel_channels"),
    }
    final = {"use_bias_at_final": v("final_bias", False)}
    return {
        "vocoder": {**_generator(v, ""), **shared, **final},
        "bwe": {**_generator(v, "bwe_"), **shared, **extension},
    }


def _generator(v: "_Reader", prefix: str) -> dict[str, object]:
    return {
        "upsample_initial_channel": v(f"{prefix}hidden_channels"),
        "upsample_rates": v(f"{prefix}upsample_factors"),
        "upsample_kernel_sizes": v(f"{prefix}upsample_kernel_sizes"),
        "resblock_kernel_sizes": v(f"{prefix}resnet_kernel_sizes"),
        "resblock_dilation_sizes": v(f"{prefix}resnet_dilations"),
    }


def upsampler_config(upsampler: Block) -> dict[str, object]:
    """The official config of a latent upsampler."""
    u = _Reader(upsampler, "latent_upsampler")
    same = ("in_channels", "mid_channels", "num_blocks_per_stage", "dims")
    same += ("spatial_upsample", "temporal_upsample")
    return {
        "_class_name": "LatentUpsampler",
        **{key: u(key) for key in same},
        "spatial_scale": u("rational_spatial_scale", 2.0),
        "rational_resampler": u("use_rational_resampler", False),
    }


class _Reader:
    """Reads values of a config; those without a default must be there."""

    def __init__(self, block: Block, name: str):
        self.block, self.name = block, name

    def __call__(self, key: str, *default: object):
        if key in self.block:
            return self.block[key]
        if not default:
            raise UserError(
                f"diffusers' config of the {self.name} has no {key}; fetch its config.json again."
            )
        return default[0]

    def whole(self, key: str) -> int:
        """A whole number above 0."""
        value = self(key)
        if type(value) is not int or value < 1:
            raise self.wrong(key, "a whole number above 0", value)
        return value

    def list(self, key: str, kind: type, known: Iterable[str] = ()) -> list:
        """A list of whole numbers above 0, or of ``known`` words; never empty."""
        values = self(key)
        good = isinstance(values, list) and 0 < len(values) <= MOST
        for value in values if good else ():
            fits = type(value) is kind and (value in known if known else value > 0)
            good = good and fits
        if not good:
            kinds = ", ".join(known) or "whole numbers above 0"
            raise self.wrong(key, f"a list of {kinds}", values)
        return values

    def wrong(self, key: str, words: str, value: object) -> UserError:
        return UserError(
            f"diffusers' config of the {self.name}: {key} must be {words}; got {clip(value)}."
        )
