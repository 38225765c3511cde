"""Configs: what is left out means what it does officially, and a wrong kind or size is refused in a sentence that names it."""

import json
from pathlib import Path
from typing import Iterator

import pytest

from mlx_video.errors import UserError
from mlx_video.models.ltx.checkpoint.source import Source
from mlx_video.models.ltx.config import LTXModelConfig, LTXModelType, LTXRopeType
from mlx_video.models.ltx.loading.components import Components
from mlx_video.models.ltx.loading.parts import PARTS
from mlx_video.models.ltx.vae_config import DiffusionDecoderConfig
from tests.checkpoints import MODEL, rewrite, tiny_folder
from tests.reference import FIXTURES, UPSCALER, checkpoint

_, CONFIG = checkpoint()
BLOCKS = {
    name: CONFIG[part.block] if part.block else checkpoint(UPSCALER)[1]
    for name, part in PARTS.items()
    if part.config
}
WRONG = [None, True, "8", [], {}, [[1]], {"a": 1}, 10**9, 10**400, -1, 1.5, float("nan")]  # fmt: skip


def changes(block: object) -> Iterator[object]:
    """``block`` with one value at a time replaced, at every depth, by each of ``WRONG``."""
    items = block.items() if isinstance(block, dict) else enumerate(block)
    for key, value in items:
        inner = changes(value) if isinstance(value, (dict, list)) else ()
        for other in (*WRONG, *inner):
            changed = block.copy()
            changed[key] = other
            yield changed


@pytest.mark.parametrize("name", BLOCKS)
def test_any_other_value_is_taken_or_refused_in_a_sentence(name):
    refused = 0
    for block in changes(json.loads(json.dumps(BLOCKS[name]))):
        try:
            PARTS[name].config(Source(Path("model.safetensors"), block))
        except UserError as error:
            refused += 1
            assert str(error).startswith("model.safetensors: ")
            assert len(str(error)) < 400 and "\n" not in str(error)
    assert refused > 5 * len(WRONG)


@pytest.mark.parametrize(
    "name, change, sentence",
    [
        ("transformer", {"num_layers": "48"}, "num_layers must be a whole number; got '48'"),  # fmt: skip
        ("transformer", {"num_layers": 10**9}, "num_layers must be from 0 to 1,024; got 1000000000"),  # fmt: skip
        ("transformer", {"attention_head_dim": 10**9}, "attention_head_dim must be from 1 to 1,048,576"),  # fmt: skip
        ("transformer", {"norm_eps": float("inf")}, "norm_eps must be a finite number"),
        ("transformer", {"rope_type": "spiral"}, "rope_type must be split or interleaved; got 'spiral'"),  # fmt: skip
        ("video_decoder", {"decoder_blocks": [["res_x", {"num_layers": 10**9}]]}, "decoder_blocks.num_layers must be from 0"),  # fmt: skip
        ("vocoder", {"upsample_rates": [2] * 5000}, "the length of upsample_rates must"),  # fmt: skip
        ("vocoder", {"stereo": 1}, "stereo must be true or false; got 1"),
        ("vocoder", {"upsample_initial_channel": 1}, "upsample_initial_channel 1 cannot be halved"),  # fmt: skip
        ("audio_decoder", {"model": {"params": {"ddconfig": BLOCKS["audio_decoder"]["model"]["params"]["ddconfig"] | {"ch_mult": []}}}}, "ch_mult must name at least one"),  # fmt: skip
        ("vocoder", {"resblock_kernel_sizes": [3]}, "resblock_kernel_sizes has 1 entries"),  # fmt: skip
        ("transformer", {"positional_embedding_max_pos": []}, "positional_embedding_max_pos must be a list of 3"),  # fmt: skip
        ("transformer", {"frequencies_precision": "double"}, "frequencies_precision must be float64 or float32"),  # fmt: skip
        ("connectors", {"connector_positional_embedding_max_pos": [1, 2]}, "max_pos must be a list of 1"),  # fmt: skip
    ],
)
def test_the_sentence_names_the_key_and_the_rule(name, change, sentence):
    block = BLOCKS[name] | change
    with pytest.raises(UserError, match=f"model.safetensors: .*{sentence}"):
        PARTS[name].config(Source(Path("model.safetensors"), block))


def test_what_a_config_lacks_is_named():
    block = {k: v for k, v in BLOCKS["transformer"].items() if k != "num_layers"}
    with pytest.raises(UserError, match="the config lacks num_layers"):
        PARTS["transformer"].config(Source(Path("model.safetensors"), block))


def test_two_values_of_one_audio_key_are_refused():
    block = json.loads(json.dumps(BLOCKS["audio_decoder"]))
    block["preprocessing"]["audio"]["sampling_rate"] = 22050
    with pytest.raises(
        UserError, match="sampling_rate has two values, 16000 and 22050"
    ):
        PARTS["audio_decoder"].config(Source(Path("model.safetensors"), block))


@pytest.mark.parametrize(
    "block, change, sentence",
    [
        ("transformer", {"num_attention_heads": 1000, "attention_head_dim": 10**6}, "LTXModel asks for layers larger than an array can be"),
        ("vocoder", {"upsample_rates": [10**6] * 5}, "samples of a mel frame"),
        ("vae", {"decoder_blocks": [["compress_all", {"multiplier": 1000}]] * 900}, "the decoder's for a number of more than 70 digits"),
    ],
)  # fmt: skip
def test_sizes_that_only_together_are_absurd_are_refused_too(
    block, change, sentence, tmp_path
):
    folder = tiny_folder(tmp_path / "model")
    rewrite(folder / MODEL, config=lambda config: config[block].update(change))
    with pytest.raises(UserError, match=f"{MODEL}.*{sentence}") as error:
        Components.open(folder).check(["transformer"])
    assert len(str(error.value)) < 400


def test_stages_of_a_diffusion_decoder_belong_together():
    file = FIXTURES / "ltx25_tiny" / "ltx-2.5-tiny-video-vae-bf16.safetensors"
    block = dict(checkpoint(file)[1]["vae"])
    assert DiffusionDecoderConfig.from_dict(block).stage_depths
    for key in ("stage_channels", "stage_depths", "upsamples"):
        changed = block | {"decoder": block["decoder"] | {key: []}}
        with pytest.raises(UserError, match="equally many"):
            DiffusionDecoderConfig.from_dict(changed)


# The transformer's


def test_the_config_without_arguments_is_that_of_the_19b():
    header = json.loads((FIXTURES / "manifests/ltx-2-19b.config.json").read_text())
    assert LTXModelConfig() == LTXModelConfig.from_dict(header["config"]["transformer"])
    assert LTXModelConfig().rope_type is LTXRopeType.SPLIT
    assert LTXModelConfig(model_type=LTXModelType.VideoOnly).double_precision_rope


def test_a_file_that_is_silent_means_what_the_official_code_does():
    sizes = dict.fromkeys(LTXModelConfig.REQUIRED, 8)
    silent = LTXModelConfig.from_dict(sizes)
    assert silent.rope_type is LTXRopeType.INTERLEAVED
    assert not silent.double_precision_rope
    assert silent.av_ca_timestep_scale_multiplier == 1.0
    for name in LTXModelConfig.REQUIRED:
        with pytest.raises(UserError, match=f"the config lacks {name}"):
            LTXModelConfig.from_dict({k: v for k, v in sizes.items() if k != name})
