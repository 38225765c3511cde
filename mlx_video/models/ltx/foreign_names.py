"""Other projects' names for LTX-2's tensors, and their layout of convolutions, as tables.

Knows names and shapes; not files, configs or networks. Sources: the conversion scripts of diffusers and of the MLX packs
(dgrauet's mlx-forge, mlx-video-with-audio, Blaizzy's mlx-video).
"""

from typing import Mapping, NamedTuple, TypeVar

import mlx.core as mx

from mlx_video.tensor_names import TensorNames
from mlx_video.weights import Weights

X = TypeVar("X")

DIT = "model.diffusion_model."
TEXT_ENCODER = (
    "text_encoder."  # before the names of Gemma's tensors in packs of mlx-forge
)
CONNECTORS = ("video_embeddings_connector.", "audio_embeddings_connector.")
PROJECTION = "text_embedding_projection."


class Spelling(NamedTuple):
    """How a project writes the tensors of a part.

    names          official name -> theirs
    channels_last  whether convolutions are (O, ..., I), as in MLX, instead of (O, I, ...), as in PyTorch
    joined         what the official name of a tensor that holds the rows of to_q, to_k and to_v has for ".to_q."; empty
                   if each has an official tensor of its own
    """

    names: TensorNames
    channels_last: bool = False
    joined: str = ""


def to_official(weights: Mapping[str, mx.array], spelling: Spelling) -> Weights:
    """Tensors in another project's spelling, with official names and PyTorch's layout; lazy."""
    found = {}
    for key, value in weights.items():
        try:
            name = spelling.names.official(key)
        except KeyError:  # another part's, in the same file
            continue
        found[name] = _channels_first(name, value) if spelling.channels_last else value
    return _joined(found, spelling.joined) if spelling.joined else found


def _joined(weights: Weights, whole: str) -> Weights:
    """``weights`` with queries', keys' and values' rows in one tensor, whose name has ``whole``."""
    found = dict(weights)
    for query in (name for name in weights if ".to_q." in name):
        names = [
            query.replace(".to_q.", f".{part}.") for part in ("to_q", "to_k", "to_v")
        ]
        if found.keys() >= {*names}:
            rows = [found.pop(name) for name in names]
            found[query.replace(".to_q.", whole)] = mx.concatenate(rows)
    return found


def contained(weights: Mapping[str, X], container: str) -> dict[str, X]:
    """The tensors whose names begin with ``container``, without it."""
    return {
        key.removeprefix(container): value
        for key, value in weights.items()
        if key.startswith(container)
    }


def _is_transposed(name: str) -> bool:
    """Whether a vocoder's tensor is the weight of a transposed convolution, (I, O, K) in PyTorch."""
    return name.startswith("vocoder.") and ".ups." in name and name.endswith(".weight")


def _is_filter(name: str) -> bool:
    """Whether a tensor is a fixed filter, with one input channel."""
    return name.endswith((".filter", "_basis", ".kernel"))


def _channels_first(name: str, value: mx.array) -> mx.array:
    if _is_filter(name):  # some packs leave these as they are
        return value if value.ndim < 3 or value.shape[1] == 1 else mx.moveaxis(value, -1, 1)  # fmt: skip
    if value.ndim < 3 or not name.endswith(".weight"):
        return value
    return value.transpose(2, 0, 1) if _is_transposed(name) else mx.moveaxis(value, -1, 1)  # fmt: skip


# Names without a prefix


def bare(prefix: str) -> TensorNames:
    return TensorNames({prefix: ""})


# ComfyUI's files, and GGUF, may leave the transformer's prefix out; the projection's always stays.
BARE = Spelling(TensorNames({DIT: "", PROJECTION: PROJECTION}))


# MLX packs


MLX_LAYERS = {
    "*.to_out.0.*": "*.to_out.*",
    "*ff.net.0.proj.*": "*ff.proj_in.*",
    "*ff.net.2.*": "*ff.proj_out.*",
    "*.linear_1.*": "*.linear1.*",
    "*.linear_2.*": "*.linear2.*",
}
MLX_TRANSFORMER = Spelling(
    TensorNames({DIT: "", **{DIT + name: None for name in CONNECTORS}}, MLX_LAYERS),
)
# dgrauet's, and the unified files, keep the official names of the connectors' layers; prince-canuma's do not.
MLX_CONNECTORS = Spelling(
    TensorNames({**{DIT + name: name for name in CONNECTORS}, PROJECTION: PROJECTION})
)
UNIFIED_CONNECTORS = Spelling(
    TensorNames(
        {
            **{DIT + name: f"connector.{name}" for name in CONNECTORS},
            PROJECTION: PROJECTION,
        }
    )
)
PRINCE_CONNECTORS = Spelling(
    TensorNames(
        {**{DIT + name: name for name in CONNECTORS}, PROJECTION: ""}, MLX_LAYERS
    )
)


def _statistics(prefix: str, mean: str, std: str) -> dict[str, str]:
    """The two statistics of a VAE that packs keep, under their names."""
    whole, own = f"{prefix}per_channel_statistics.", "per_channel_statistics."
    return {f"{whole}mean-of-means": own + mean, f"{whole}std-of-means": own + std}


def _autoencoder(
    prefix: str, halves: Mapping[str, str], mean: str, std: str
) -> Spelling:
    """One half of an autoencoder, or both: ``halves`` are official prefix -> theirs."""
    kept = _statistics(prefix, mean, std)
    dropped = {f"{prefix}per_channel_statistics.": None}
    return Spelling(TensorNames({**dropped, **kept, **halves}), True)


VAE_DECODER, VAE_ENCODER = {"vae.decoder.": ""}, {"vae.encoder.": ""}
MEANS = ("_mean_of_means", "_std_of_means")
MLX_VIDEO_DECODER = _autoencoder("vae.", VAE_DECODER, "mean", "std")
MLX_VIDEO_ENCODER = _autoencoder("vae.", VAE_ENCODER, *MEANS)
MLX_AUDIO = _autoencoder(
    "audio_vae.",
    {"audio_vae.decoder.": "decoder.", "audio_vae.encoder.": "encoder."},
    *MEANS,
)
UNIFIED_AUDIO = _autoencoder("audio_vae.", {"audio_vae.decoder.": ""}, *MEANS)
PRINCE_VIDEO_ENCODER = _autoencoder("vae.", VAE_ENCODER, "mean", "std")
PRINCE_AUDIO = _autoencoder(
    "audio_vae.", {"audio_vae.decoder.": ""}, "mean_of_means", "std_of_means"
)
# Its decoder wraps each convolution once more, except those wrapped twice already.
WRAPPED = {
    f"*{name}.conv.*": f"*{name}.conv.conv.*"
    for name in ("conv1", "conv2", "conv_in", "conv_out")
}
PRINCE_VIDEO_DECODER = Spelling(
    TensorNames(
        {
            "vae.per_channel_statistics.": None,
            **_statistics("vae.", "mean", "std"),
            **VAE_DECODER,
        },
        WRAPPED,
    ),
    True,
)
MLX_VOCODER = Spelling(bare("vocoder."), True)
# For LTX-2.3 and 2.5, dgrauet's drops each "vocoder." in a name.
FORGE_VOCODER = Spelling(
    TensorNames(
        {
            "vocoder.vocoder.": "",
            "vocoder.bwe_generator.": "bwe_generator.",
            "vocoder.mel_stft.": "mel_stft.",
        }
    ),
    True,
)
MLX_UPSAMPLER = Spelling(bare(""), True)
MLX_DURATION_HEAD = Spelling(bare("duration_head."))


# diffusers


DIFFUSERS_NORMS = {"*.q_norm.*": "*.norm_q.*", "*.k_norm.*": "*.norm_k.*"}
DIFFUSERS_TABLES = {
    "*.scale_shift_table_a2v_ca_video": "*.video_a2v_cross_attn_scale_shift_table",
    "*.scale_shift_table_a2v_ca_audio": "*.audio_a2v_cross_attn_scale_shift_table",
}
DIFFUSERS_TOP = {
    "patchify_proj.*": "proj_in.*",
    "audio_patchify_proj.*": "audio_proj_in.*",
    "av_ca_video_scale_shift_adaln_single.*": "av_cross_attn_video_scale_shift.*",
    "av_ca_audio_scale_shift_adaln_single.*": "av_cross_attn_audio_scale_shift.*",
    "av_ca_a2v_gate_adaln_single.*": "av_cross_attn_video_a2v_gate.*",
    "av_ca_v2a_gate_adaln_single.*": "av_cross_attn_audio_v2a_gate.*",
    "prompt_adaln_single.*": "prompt_adaln.*",
    "audio_prompt_adaln_single.*": "audio_prompt_adaln.*",
    "adaln_single.*": "time_embed.*",
    "audio_adaln_single.*": "audio_time_embed.*",
}
DIFFUSERS_TRANSFORMER = Spelling(
    TensorNames(
        {DIT: "", **{DIT + name: None for name in CONNECTORS}},
        DIFFUSERS_TOP,
        DIFFUSERS_NORMS | DIFFUSERS_TABLES,
    )
)
DIFFUSERS_CONNECTORS = Spelling(
    TensorNames(
        {
            f"{PROJECTION}aggregate_embed.": "text_proj_in.",
            f"{PROJECTION}video_aggregate_embed.": "video_text_proj_in.",
            f"{PROJECTION}audio_aggregate_embed.": "audio_text_proj_in.",
            f"{DIT}video_embeddings_connector.": "video_connector.",
            f"{DIT}audio_embeddings_connector.": "audio_connector.",
        },
        {"*transformer_1d_blocks.*": "*transformer_blocks.*"},
        DIFFUSERS_NORMS,
    )
)
DIFFUSERS_AUDIO = Spelling(
    TensorNames(
        {
            "audio_vae.per_channel_statistics.": None,
            "audio_vae.per_channel_statistics.mean-of-means": "latents_mean",
            "audio_vae.per_channel_statistics.std-of-means": "latents_std",
            "audio_vae.": "",
        }
    )
)
DIFFUSERS_GENERATOR = {
    "*conv_pre.*": "*conv_in.*",
    "*conv_post.*": "*conv_out.*",
    "*act_post.*": "*act_out.*",
    "*ups.*": "*upsamplers.*",
    "*resblocks.*": "*resnets.*",
}
DIFFUSERS_VOCODER = Spelling(
    TensorNames(
        {"vocoder.": ""},
        DIFFUSERS_GENERATOR,
        {"*.downsample.lowpass.filter": "*.downsample.filter"},
    )
)
DIFFUSERS_DIFFUSION = Spelling(
    TensorNames(
        {
            "vae.per_channel_statistics.mean-of-means": "latents_mean",
            "vae.per_channel_statistics.std-of-means": "latents_std",
            "vae.": "",
        },
        {
            "*.t_embedder.mlp.0.*": "*.t_embedder.timestep_embedder.linear_1.*",
            "*.t_embedder.mlp.2.*": "*.t_embedder.timestep_embedder.linear_2.*",
            "*.attn.proj.*": "*.attn.to_out.0.*",
        },
        DIFFUSERS_NORMS,
    ),
    joined=".qkv.",
)
DIFFUSERS_DURATION_HEAD = Spelling(
    TensorNames(
        {"duration_head.": ""},
        {"attention_pooler.cross_attn.out_proj.*": "attention_pooler.to_out.*"},
    ),
    joined=".cross_attn.in_proj_",
)


def diffusers_video_vae(down: int, up: int) -> Spelling:
    """diffusers groups each resampling with the layers before or after it; officially they form one list.

    down, up  how many resamplings the encoder and the decoder have
    """
    blocks = {}
    for i in range(down):
        theirs = f"encoder.down_blocks.{i}"
        blocks[f"encoder.down_blocks.{2 * i + 1}.*"] = f"{theirs}.downsamplers.0.*"
        blocks[f"encoder.down_blocks.{2 * i}.*"] = f"{theirs}.*"
    blocks[f"encoder.down_blocks.{2 * down}.*"] = "encoder.mid_block.*"
    for i in range(up):
        theirs = f"decoder.up_blocks.{i}"
        blocks[f"decoder.up_blocks.{2 * i + 1}.*"] = f"{theirs}.upsamplers.0.*"
        blocks[f"decoder.up_blocks.{2 * i + 2}.*"] = f"{theirs}.*"
    blocks["decoder.up_blocks.0.*"] = "decoder.mid_block.*"
    statistics = {
        "vae.per_channel_statistics.": None,
        "vae.per_channel_statistics.mean-of-means": "latents_mean",
        "vae.per_channel_statistics.std-of-means": "latents_std",
    }
    names = {**statistics, "vae.": ""}
    return Spelling(TensorNames(names, blocks, {"*.res_blocks.*": "*.resnets.*"}))
