"""Other projects' names for LTX-2's tensors, and their layout of convolutions, as tables.

Knows names and shapes, not files, configs or networks. Sources: the conversion scripts of diffusers and of the MLX packs
(dgrauet's mlx-forge, mlx-video-with-audio, Blaizzy's mlx-video).
"""

from functools import partial
from typing import Mapping

import mlx.core as mx

from mlx_video.tensor_names import TensorNames
from mlx_video.weights import Weights

DIT = "model.diffusion_model."  # prefix of the transformer's official names
TEXT_ENCODER = "text_encoder."  # of Gemma's tensors in packs of mlx-forge
CONNECTORS = ("video_embeddings_connector.", "audio_embeddings_connector.")
PROJECTION = "text_embedding_projection."


class Spelling(TensorNames):
    """How a project writes the tensors of a part: a table from official names to theirs.

    channels_last  whether convolutions are (O, ..., I), as in MLX, instead of (O, I, ...), as in PyTorch
    joined         replaces ".to_q." in the name of an official tensor that joins the rows of to_q, to_k and to_v; empty
                   if these are separate officially
    """

    def __init__(
        self,
        prefixes: Mapping[str, str | None],
        *tables: Mapping[str, str],
        channels_last: bool = False,
        joined: str = "",
    ):
        super().__init__(prefixes, *tables)
        self.channels_last, self.joined = channels_last, joined


def to_official(weights: Mapping[str, mx.array], spelling: Spelling) -> Weights:
    """Tensors in another project's spelling under official names and in PyTorch's layout; lazy."""
    found = {}
    for key, value in weights.items():
        try:
            name = spelling.official(key)
        except KeyError:  # another part's, in the same file
            continue
        found[name] = _channels_first(name, value) if spelling.channels_last else value
    return _joined(found, spelling.joined) if spelling.joined else found


def _joined(weights: Weights, whole: str) -> Weights:
    """``weights`` with the rows of queries, keys and values joined, with ``whole`` in the name."""
    found = dict(weights)
    for query in (name for name in weights if ".to_q." in name):
        names = [query.replace(".to_q.", f".to_{part}.") for part in "qkv"]
        if found.keys() >= {*names}:
            rows = [found.pop(name) for name in names]
            found[query.replace(".to_q.", whole)] = mx.concatenate(rows)
    return found


def _is_transposed(name: str) -> bool:
    """Whether a vocoder's tensor is the weight of a transposed convolution, (I, O, K) in PyTorch."""
    return name.startswith("vocoder.") and ".ups." in name and name.endswith(".weight")


def _is_filter(name: str) -> bool:
    """Whether a tensor is a fixed filter, with one input channel."""
    return name.endswith((".filter", "_basis", ".kernel"))


def _channels_first(name: str, value: mx.array) -> mx.array:
    if value.ndim < 3 or not (name.endswith(".weight") or _is_filter(name)):
        return value
    if _is_filter(name) and value.shape[1] == 1:  # some packs leave these as they are
        return value
    return value.transpose(2, 0, 1) if _is_transposed(name) else mx.moveaxis(value, -1, 1)  # fmt: skip


# ComfyUI's files and GGUF may leave out the transformer's prefix, but never the projection's.
BARE = Spelling({DIT: "", PROJECTION: PROJECTION})


# MLX packs


MLX_LAYERS = {
    "*.to_out.0.*": "*.to_out.*",
    "*ff.net.0.proj.*": "*ff.proj_in.*",
    "*ff.net.2.*": "*ff.proj_out.*",
    "*.linear_1.*": "*.linear1.*",
    "*.linear_2.*": "*.linear2.*",
}
DIT_ALONE = {DIT: "", **{DIT + name: None for name in CONNECTORS}}
MLX_TRANSFORMER = Spelling(DIT_ALONE, MLX_LAYERS)
# dgrauet's, and the unified files, keep the official names of the connectors' layers; prince-canuma's do not.
BARE_CONNECTORS = {DIT + name: name for name in CONNECTORS}
MLX_CONNECTORS = Spelling({**BARE_CONNECTORS, PROJECTION: PROJECTION})
UNIFIED_CONNECTORS = Spelling(
    {DIT + name: f"connector.{name}" for name in CONNECTORS} | {PROJECTION: PROJECTION}
)
PRINCE_CONNECTORS = Spelling({**BARE_CONNECTORS, PROJECTION: ""}, MLX_LAYERS)


def _vae(
    prefix: str, mean: str, std: str, halves: Mapping[str, str] = {"": ""}
) -> dict[str, str | None]:
    """Names of an autoencoder's ``halves``, and of its two statistics; other official statistics are dropped."""
    whole = f"{prefix}.per_channel_statistics."
    kept = {f"{whole}mean-of-means": mean, f"{whole}std-of-means": std}
    named = {f"{prefix}.{half}": theirs for half, theirs in halves.items()}
    return {whole: None, **kept, **named}


def _means(mean: str, std: str) -> tuple[str, str]:
    return f"per_channel_statistics.{mean}", f"per_channel_statistics.{std}"


DECODER, ENCODER = {"decoder.": ""}, {"encoder.": ""}
BOTH = {"decoder.": "decoder.", "encoder.": "encoder."}
PLAIN, OF_MEANS = _means("mean", "std"), _means("_mean_of_means", "_std_of_means")
PRINCE_MEANS = _means("mean_of_means", "std_of_means")
# Its decoder wraps each convolution once more, except those wrapped twice already.
WRAPPED = {
    f"*{name}.conv.*": f"*{name}.conv.conv.*"
    for name in ("conv1", "conv2", "conv_in", "conv_out")
}
_mlx = partial(Spelling, channels_last=True)
MLX_VIDEO_DECODER = _mlx(_vae("vae", *PLAIN, DECODER))
MLX_VIDEO_ENCODER = _mlx(_vae("vae", *OF_MEANS, ENCODER))
MLX_AUDIO = _mlx(_vae("audio_vae", *OF_MEANS, BOTH))
UNIFIED_AUDIO = _mlx(_vae("audio_vae", *OF_MEANS, DECODER))
PRINCE_VIDEO_DECODER = _mlx(_vae("vae", *PLAIN, DECODER), WRAPPED)
PRINCE_VIDEO_ENCODER = _mlx(_vae("vae", *PLAIN, ENCODER))
PRINCE_AUDIO = _mlx(_vae("audio_vae", *PRINCE_MEANS, DECODER))
MLX_VOCODER = _mlx({"vocoder.": ""})
# For LTX-2.3 and 2.5, dgrauet's pack drops each "vocoder." in a name.
FORGE_VOCODER = _mlx(
    {"vocoder.vocoder.": ""}
    | {f"vocoder.{name}.": f"{name}." for name in ("bwe_generator", "mel_stft")}
)
MLX_UPSAMPLER = _mlx({"": ""})
MLX_DURATION_HEAD = Spelling({"duration_head.": ""})


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
    DIT_ALONE, DIFFUSERS_TOP, DIFFUSERS_NORMS | DIFFUSERS_TABLES
)
DIFFUSERS_CONNECTORS = Spelling(
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
DIFFUSERS_MEANS = ("latents_mean", "latents_std")
DIFFUSERS_AUDIO = Spelling(_vae("audio_vae", *DIFFUSERS_MEANS))
DIFFUSERS_GENERATOR = {
    "*conv_pre.*": "*conv_in.*",
    "*conv_post.*": "*conv_out.*",
    "*act_post.*": "*act_out.*",
    "*ups.*": "*upsamplers.*",
    "*resblocks.*": "*resnets.*",
}
DIFFUSERS_VOCODER = Spelling(
    {"vocoder.": ""},
    DIFFUSERS_GENERATOR,
    {"*.downsample.lowpass.filter": "*.downsample.filter"},
)
DIFFUSERS_DIFFUSION = Spelling(
    _vae("vae", *DIFFUSERS_MEANS),
    {
        "*.t_embedder.mlp.0.*": "*.t_embedder.timestep_embedder.linear_1.*",
        "*.t_embedder.mlp.2.*": "*.t_embedder.timestep_embedder.linear_2.*",
        "*.attn.proj.*": "*.attn.to_out.0.*",
    },
    DIFFUSERS_NORMS,
    joined=".qkv.",
)
DIFFUSERS_DURATION_HEAD = Spelling(
    {"duration_head.": ""},
    {"attention_pooler.cross_attn.out_proj.*": "attention_pooler.to_out.*"},
    joined=".cross_attn.in_proj_",
)


def diffusers_video_vae(down: int, up: int) -> Spelling:
    """diffusers groups each resampling with the layers before or after it; officially, all are one list.

    down, up  the number of resamplings in the encoder and the decoder
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
    names = _vae("vae", *DIFFUSERS_MEANS)
    return Spelling(names, blocks, {"*.res_blocks.*": "*.resnets.*"})
