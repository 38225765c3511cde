"""Checkpoints written out as other projects write them: each writer follows that project's own conversion, step by step.

These are not read from our tables, which they test. No real file of these layouts can be had here; the names are those
that the projects' published converters produce.
"""

import json
from pathlib import Path
from typing import Callable

import mlx.core as mx

Weights = dict[str, mx.array]
DIT = "model.diffusion_model."


def _replaced(key: str, *pairs: tuple[str, str]) -> str:
    for old, new in pairs:
        key = key.replace(old, new)
    return key


def _moved(value: mx.array, transposed: bool = False) -> mx.array:
    """PyTorch's layout of a convolution in MLX's."""
    if value.ndim == 3 and transposed:
        return value.transpose(1, 2, 0)
    return mx.moveaxis(value, 1, -1) if value.ndim > 2 else value


def _taken(weights: Weights, rename: Callable[[str], str | None]) -> Weights:
    named = ((rename(key), key, value) for key, value in weights.items())
    return {new: (key, value) for new, key, value in named if new is not None}


# MLX packs


def mlx_transformer(weights: Weights) -> Weights:
    """As mlx-forge, mlx-video-with-audio and Blaizzy's mlx-video write it."""

    def rename(key: str) -> str | None:
        if not key.startswith(DIT) or "_embeddings_connector." in key:
            return None
        return _replaced(
            key.replace(DIT, ""),
            (".to_out.0.", ".to_out."),
            (".ff.net.0.proj.", ".ff.proj_in."),
            (".ff.net.2.", ".ff.proj_out."),
            (".audio_ff.net.0.proj.", ".audio_ff.proj_in."),
            (".audio_ff.net.2.", ".audio_ff.proj_out."),
            (".linear_1.", ".linear1."),
            (".linear_2.", ".linear2."),
        )

    return {new: value for new, (_, value) in _taken(weights, rename).items()}


def mlx_connectors(weights: Weights) -> Weights:
    return {
        key.replace(DIT, ""): value
        for key, value in weights.items()
        if "_embeddings_connector." in key or key.startswith("text_embedding_proj")
    }


def prince_connectors(weights: Weights) -> Weights:
    return {
        _replaced(
            key,
            (DIT, ""),
            ("text_embedding_projection.", ""),
            (".ff.net.0.proj.", ".ff.proj_in."),
            (".ff.net.2.", ".ff.proj_out."),
            (".to_out.0.", ".to_out."),
        ): value
        for key, value in weights.items()
        if "_embeddings_connector." in key or key.startswith("text_embedding_proj")
    }


def _vae(prefix: str, half: str, mean: str, std: str, strip: str):
    def rename(key: str) -> str | None:
        if key == f"{prefix}per_channel_statistics.mean-of-means":
            return f"per_channel_statistics.{mean}"
        if key == f"{prefix}per_channel_statistics.std-of-means":
            return f"per_channel_statistics.{std}"
        starts = key.startswith(f"{prefix}{half}.")
        return key.removeprefix(strip) if starts else None

    def write(weights: Weights) -> Weights:
        return {
            new: _moved(value) if key.endswith(".weight") else value
            for new, (key, value) in _taken(weights, rename).items()
        }

    return write


mlx_video_decoder = _vae("vae.", "decoder", "mean", "std", "vae.decoder.")
mlx_video_encoder = _vae(
    "vae.", "encoder", "_mean_of_means", "_std_of_means", "vae.encoder."
)
prince_video_encoder = _vae("vae.", "encoder", "mean", "std", "vae.encoder.")
unified_audio = _vae(
    "audio_vae.", "decoder", "_mean_of_means", "_std_of_means", "audio_vae.decoder."
)
prince_audio = _vae(
    "audio_vae.", "decoder", "mean_of_means", "std_of_means", "audio_vae.decoder."
)


def forge_audio(weights: Weights) -> Weights:
    means = ("_mean_of_means", "_std_of_means")
    halves = (
        _vae("audio_vae.", h, *means, "audio_vae.") for h in ("decoder", "encoder")
    )
    return {key: value for write in halves for key, value in write(weights).items()}


def prince_video_decoder(weights: Weights) -> Weights:
    """Its decoder has each convolution in a wrapper of its own."""

    def wrapped(key: str) -> str:
        if ".conv.conv." in key:
            return key
        return _replaced(
            key,
            (".conv.weight", ".conv.conv.weight"),
            (".conv.bias", ".conv.conv.bias"),
        )

    return {wrapped(k): v for k, v in mlx_video_decoder(weights).items()}


def mlx_vocoder(weights: Weights) -> Weights:
    """As mlx-video-with-audio and Blaizzy's mlx-video do; filters stay as they are."""
    return {
        key[len("vocoder.") :]: (
            _moved(value, "ups" in key) if "weight" in key else value
        )
        for key, value in weights.items()
        if key.startswith("vocoder.")
    }


def forge_vocoder(weights: Weights) -> Weights:
    """As mlx-forge does: every "vocoder." goes, and filters are moved too."""

    def moved(key: str, value: mx.array) -> mx.array:
        last = key.rsplit(".", 1)[-1]
        if value.ndim >= 3 and (last == "filter" or last.endswith("_basis")):
            return _moved(value)
        return _moved(value, "ups" in key) if "weight" in key else value

    return {
        key.replace("vocoder.", ""): moved(key, value)
        for key, value in weights.items()
        if key.startswith("vocoder.")
    }


def in_container(container: str, weights: Weights) -> Weights:
    return {f"{container}{key}": value for key, value in weights.items()}


# diffusers


def diffusers_transformer(weights: Weights) -> Weights:
    def rename(key: str) -> str | None:
        if not key.startswith(DIT) or "_embeddings_connector." in key:
            return None
        key = _replaced(
            key.removeprefix(DIT),
            ("patchify_proj", "proj_in"),
            ("av_ca_video_scale_shift_adaln_single", "av_cross_attn_video_scale_shift"),
            ("av_ca_a2v_gate_adaln_single", "av_cross_attn_video_a2v_gate"),
            ("av_ca_audio_scale_shift_adaln_single", "av_cross_attn_audio_scale_shift"),
            ("av_ca_v2a_gate_adaln_single", "av_cross_attn_audio_v2a_gate"),
            (
                "scale_shift_table_a2v_ca_video",
                "video_a2v_cross_attn_scale_shift_table",
            ),
            (
                "scale_shift_table_a2v_ca_audio",
                "audio_a2v_cross_attn_scale_shift_table",
            ),
            ("q_norm", "norm_q"),
            ("k_norm", "norm_k"),
            ("prompt_adaln_single", "prompt_adaln"),
        )
        for old, new in (("adaln_single.", "time_embed."), ("audio_adaln_single.", "audio_time_embed.")):  # fmt: skip
            if key.startswith(old):
                key = key.replace(old, new)
        return key

    return {new: value for new, (_, value) in _taken(weights, rename).items()}


def diffusers_connectors(weights: Weights) -> Weights:
    return {
        _replaced(
            key,
            (DIT, ""),
            ("text_embedding_projection.", ""),
            ("video_aggregate_embed", "video_text_proj_in"),
            ("audio_aggregate_embed", "audio_text_proj_in"),
            ("aggregate_embed", "text_proj_in"),
            ("video_embeddings_connector", "video_connector"),
            ("audio_embeddings_connector", "audio_connector"),
            ("transformer_1d_blocks", "transformer_blocks"),
            ("q_norm", "norm_q"),
            ("k_norm", "norm_k"),
        ): value
        for key, value in weights.items()
        if "_embeddings_connector." in key or key.startswith("text_embedding_proj")
    }


# Officially all blocks stand in one list; the pairs are those of the conversion script.
DIFFUSERS_VAE = {
    "encoder.down_blocks.0.": "encoder.down_blocks.0.",
    "encoder.down_blocks.1.": "encoder.down_blocks.0.downsamplers.0.",
    "encoder.down_blocks.2.": "encoder.down_blocks.1.",
    "encoder.down_blocks.3.": "encoder.down_blocks.1.downsamplers.0.",
    "encoder.down_blocks.4.": "encoder.down_blocks.2.",
    "encoder.down_blocks.5.": "encoder.down_blocks.2.downsamplers.0.",
    "encoder.down_blocks.6.": "encoder.down_blocks.3.",
    "encoder.down_blocks.7.": "encoder.down_blocks.3.downsamplers.0.",
    "encoder.down_blocks.8.": "encoder.mid_block.",
    "decoder.up_blocks.0.": "decoder.mid_block.",
    "decoder.up_blocks.1.": "decoder.up_blocks.0.upsamplers.0.",
    "decoder.up_blocks.2.": "decoder.up_blocks.0.",
    "decoder.up_blocks.3.": "decoder.up_blocks.1.upsamplers.0.",
    "decoder.up_blocks.4.": "decoder.up_blocks.1.",
    "decoder.up_blocks.5.": "decoder.up_blocks.2.upsamplers.0.",
    "decoder.up_blocks.6.": "decoder.up_blocks.2.",
    "decoder.up_blocks.7.": "decoder.up_blocks.3.upsamplers.0.",
    "decoder.up_blocks.8.": "decoder.up_blocks.3.",
}


def diffusers_video_vae(weights: Weights) -> Weights:
    def rename(key: str) -> str | None:
        if not key.startswith("vae."):
            return None
        key = key.removeprefix("vae.")
        if key.startswith("per_channel_statistics."):
            kept = {"mean-of-means": "latents_mean", "std-of-means": "latents_std"}
            return kept.get(key.removeprefix("per_channel_statistics."))
        for official, theirs in DIFFUSERS_VAE.items():
            if key.startswith(official):
                key = theirs + key.removeprefix(official)
                break
        return key.replace("res_blocks", "resnets")

    return {new: value for new, (_, value) in _taken(weights, rename).items()}


def diffusers_audio(weights: Weights) -> Weights:
    def rename(key: str) -> str | None:
        if not key.startswith("audio_vae."):
            return None
        key = key.removeprefix("audio_vae.")
        if key.startswith("per_channel_statistics."):
            kept = {"mean-of-means": "latents_mean", "std-of-means": "latents_std"}
            return kept.get(key.removeprefix("per_channel_statistics."))
        return key

    return {new: value for new, (_, value) in _taken(weights, rename).items()}


def diffusers_vocoder(weights: Weights) -> Weights:
    return {
        _replaced(
            key.removeprefix("vocoder."),
            ("ups.", "upsamplers."),
            ("resblocks", "resnets"),
            ("conv_pre", "conv_in"),
            ("conv_post", "conv_out"),
            ("act_post", "act_out"),
            ("downsample.lowpass.filter", "downsample.filter"),
        ): value
        for key, value in weights.items()
        if key.startswith("vocoder.")
    }


# Whole checkpoints


def save(file: Path, weights: Weights, **metadata: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    mx.save_safetensors(str(file), {k: mx.contiguous(v) for k, v in weights.items()}, metadata)  # fmt: skip


def write_json(file: Path, value: object) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(value))


def write_forge(folder: Path, weights: Weights, blocks: dict, contain: bool) -> Path:
    """dgrauet's: flat files, whose names may stand before their tensors; a config.json that is wrong, one that is right."""
    files = {
        "transformer-distilled": mlx_transformer(weights),
        "connector": mlx_connectors(weights),
        "vae_decoder": mlx_video_decoder(weights),
        "vae_encoder": mlx_video_encoder(weights),
        "audio_vae": forge_audio(weights),
        "vocoder": forge_vocoder(weights),
    }
    for name, tensors in files.items():
        container = f"{name.partition('-')[0]}." if contain else ""
        save(folder / f"{name}.safetensors", in_container(container, tensors))
    write_json(
        folder / "config.json", {"cross_attention_adaln": True, "num_layers": 48}
    )
    write_json(folder / "embedded_config.json", blocks)
    write_json(folder / "split_model.json", {"source": "Lightricks/LTX-2"})
    return folder


def write_prince(folder: Path, weights: Weights, blocks: dict) -> Path:
    """Blaizzy's and prince-canuma's: one folder a part, with configs that guess."""
    homes = {
        "transformer": mlx_transformer(weights),
        "text_projections": prince_connectors(weights),
        "vae/decoder": prince_video_decoder(weights),
        "vae/encoder": prince_video_encoder(weights),
        "audio_vae/decoder": prince_audio(weights),
        "vocoder": mlx_vocoder(weights),
    }
    for home, tensors in homes.items():
        save(folder / home / "model.safetensors", tensors)
        names = dict.fromkeys(tensors, "model.safetensors")
        write_json(
            folder / home / "model.safetensors.index.json", {"weight_map": names}
        )
    sizes = ("num_layers", "num_attention_heads", "attention_head_dim")
    own = {key: blocks["transformer"][key] for key in sizes}
    write_json(
        folder / "transformer/config.json",
        own | {"model_type": "ltx av model", "rope_type": "split"},
    )
    write_json(folder / "vae/decoder/config.json", {"ch": 128, "out_ch": 2})
    return folder


def write_unified(folder: Path, weights: Weights) -> Path:
    """notapalindrome's: everything in one file, each part under a word of its own."""
    connectors = {
        (
            key if key.startswith("text_embedding_projection.") else f"connector.{key}"
        ): value
        for key, value in mlx_connectors(weights).items()
    }
    parts = {
        "transformer.": mlx_transformer(weights),
        "vae_decoder.": mlx_video_decoder(weights),
        "vae_encoder.": mlx_video_encoder(weights),
        "audio_vae.": unified_audio(weights),
        "vocoder.": mlx_vocoder(weights),
    }
    whole = dict(connectors)
    for container, tensors in parts.items():
        whole |= in_container(container, tensors)
    save(folder / "model.safetensors", whole)
    write_json(folder / "config.json", {"model_type": "AudioVideo", "num_layers": 48})
    return folder


def write_comfy(folder: Path, weights: Weights, blocks: dict, bare: bool) -> Path:
    """ComfyUI's: the transformer alone, with bare names or not, and the rest in folders beside it."""
    transformer = {
        key.removeprefix(DIT) if bare else key: value
        for key, value in weights.items()
        if key.startswith(DIT) and "_embeddings_connector." not in key
    }
    connectors = {
        key: value
        for key, value in weights.items()
        if "_embeddings_connector." in key or key.startswith("text_embedding_proj")
    }
    others = {
        "vae": ("vae/video_vae", ["vae"]),
        "audio_vae": ("vae/audio_vae", ["audio_vae", "vocoder"]),
    }
    config = json.dumps({"transformer": blocks["transformer"]})
    save(
        folder / "diffusion_models/ltx-distilled.safetensors",
        transformer,
        config=config,
    )
    save(folder / "text_encoders/embeddings_connector.safetensors", connectors)
    for name, kept in others.values():
        tensors = {
            k: v
            for k, v in weights.items()
            if k.startswith(tuple(f"{w}." for w in kept))
        }
        config = json.dumps({w: blocks[w] for w in kept})
        save(folder / f"{name}.safetensors", tensors, config=config)
    return folder


def write_diffusers(folder: Path, weights: Weights, configs: dict[str, dict]) -> Path:
    """diffusers': one folder a part, each with its config."""
    homes = {
        "transformer": diffusers_transformer(weights),
        "connectors": diffusers_connectors(weights),
        "vae": diffusers_video_vae(weights),
        "audio_vae": diffusers_audio(weights),
        "vocoder": diffusers_vocoder(weights),
    }
    for home, tensors in homes.items():
        save(folder / home / "diffusion_pytorch_model.safetensors", tensors)
        write_json(folder / home / "config.json", configs[home])
    write_json(folder / "model_index.json", {"_class_name": "LTX2Pipeline"})
    return folder


def diffusers_diffusion(weights: Weights) -> Weights:
    """diffusers' decoder of LTX-2.5, of the bare names of its official file: queries, keys and values apart."""
    found = {}
    for key, value in weights.items():
        statistics = {"mean-of-means": "latents_mean", "std-of-means": "latents_std"}
        if name := statistics.get(key.removeprefix("per_channel_statistics.")):
            found[name] = value
        if not key.startswith("decoder.") or "coarse_" in key:
            continue
        key = _replaced(
            key,
            ("t_embedder.mlp.0.", "t_embedder.timestep_embedder.linear_1."),
            ("t_embedder.mlp.2.", "t_embedder.timestep_embedder.linear_2."),
            (".attn.proj.", ".attn.to_out.0."),
            (".attn.q_norm.", ".attn.norm_q."),
            (".attn.k_norm.", ".attn.norm_k."),
        )
        if ".qkv." in key:
            for part, rows in zip("qkv", mx.split(value, 3)):
                found[key.replace(".qkv.", f".to_{part}.")] = rows
        else:
            found[key] = value
    return found


def diffusers_duration_head(weights: Weights) -> Weights:
    found = {}
    for key, value in weights.items():
        key = key.removeprefix("duration_head.")
        if ".cross_attn.in_proj_" in key:
            for part, rows in zip("qkv", mx.split(value, 3)):
                new = key.replace(".cross_attn.in_proj_", f".to_{part}.")
                found[new] = rows
        else:
            found[key.replace(".cross_attn.out_proj.", ".to_out.")] = value
    return found


def forge_text_encoder(folder: Path, weights: Weights, config: str) -> None:
    """Its name before every tensor; what was packed as bytes, and the config, are files beside it."""
    packed = {
        "tokenizer_json": "tokenizer.json",
        "hf_asset__tokenizer_config.json": "tokenizer_config.json",
        "hf_asset__chat_template.jinja": "chat_template.jinja",
        "hf_asset__generation_config.json": "generation_config.json",
        "hf_asset__processor_config.json": "processor_config.json",
    }
    folder.mkdir(exist_ok=True)
    for key, name in packed.items():
        if key in weights:
            (folder / name).write_bytes(bytes(memoryview(weights[key])))
    write_json(folder / "text_encoder_config.json", json.loads(config))
    rest = {k: v for k, v in weights.items() if k not in packed}
    save(folder / "text_encoder.safetensors", in_container("text_encoder.", rest))


def int8_convrot(
    weights: Weights, group: int, chosen: Callable[[str], bool]
) -> Weights:
    """As ComfyUI's tools and Lightricks write int8: rows scaled, groups of columns turned by a Hadamard matrix."""
    four = mx.array([[1, 1, 1, -1], [1, 1, -1, 1], [1, -1, 1, 1], [-1, 1, 1, 1]]) / 2
    turn = mx.ones((1, 1))
    while len(turn) < group:
        turn = mx.kron(turn, four)
    note = {"format": "int8_tensorwise", "convrot": True, "convrot_groupsize": group}
    found = {}
    for key, value in weights.items():
        whole = value.ndim == 2 and value.shape[1] % group == 0
        if not key.endswith(".weight") or not whole or not chosen(key):
            found[key] = value
            continue
        turned = mx.unflatten(value.astype(mx.float32), 1, (-1, group)) @ turn
        turned = turned.flatten(1)
        scale = mx.abs(turned).max(axis=1, keepdims=True) / 127
        found[key] = mx.round(turned / scale).astype(mx.int8)
        found[f"{key}_scale"] = scale
        name = key.removesuffix(".weight")
        text = list(json.dumps(note).encode())
        found[f"{name}.comfy_quant"] = mx.array(text, mx.uint8)
    return found


def write_forge_25(folder: Path, files: dict[str, Weights], blocks: dict) -> Path:
    """dgrauet's of LTX-2.5: two video autoencoders, each in two files; ``files`` are the official ones by role."""
    conv, diffusion = (in_container("vae.", files[n]) for n in ("conv", "diffusion"))
    written = {
        "transformer-distilled": mlx_transformer(files["transformer"]),
        "connector": mlx_connectors(files["transformer"]),
        "vae_decoder_conv": mlx_video_decoder(conv),
        "vae_encoder_conv": mlx_video_encoder(conv),
        "vae_decoder_av": mlx_video_decoder(diffusion),
        "vae_encoder_av": mlx_video_encoder(diffusion),
        "audio_vae": forge_audio(files["audio"]),
        "vocoder": forge_vocoder(files["audio"]),
    }
    for name, tensors in written.items():
        save(folder / f"{name}.safetensors", tensors)
    write_json(folder / "config.json", {"model_version": "2.5.0"})
    write_json(folder / "embedded_config.json", blocks)
    return folder
