"""The headers of Lightricks' files as tests/fixtures/manifests knows them: file -> (metadata, tensor -> (dtype, shape))."""

import json
from pathlib import Path

from mlx_video.models.ltx.checkpoint.releases import Release
from tests.reference import FIXTURES

MANIFESTS = FIXTURES / "manifests"
WHOLE = {"LTX-2": "ltx-2-19b", "LTX-2.3": "ltx-2.3-22b"}
SPLIT = {
    "vae/ltx-2.5-video-vae-bf16.safetensors": "ltx-2.5-video-vae-diffusion.partial",
    "vae/ltx-2.5-audio-vae-bf16.safetensors": "ltx-2.5-audio-vae",
    "vae/ltx-2.5-video-vae-conv-bf16.safetensors": "ltx-2.5-video-vae-conv",
    "model_patches/ltx-2.5-duration-head-bf16.safetensors": "ltx-2.5-duration-head",
}
TRANSFORMER_2_5 = (
    "diffusion_models/ltx-2.5-22b-{dev,distilled}-transformer-bf16.safetensors"
)
GEMMA_3_12B = {
    "model_type": "gemma3_text",
    "hidden_size": 3840,
    "num_hidden_layers": 48,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 256,
    "intermediate_size": 15360,
    "vocab_size": 262208,
}
VERSION = {"gemma_version": "gemma4-12b-ltx-v1"}
# As manifests/ltx-2.5.config.json tells of the real file.
GEMMA_4_12B = {
    "model_type": "gemma4_unified",
    "text_config": {
        "model_type": "gemma4_unified_text",
        "attention_k_eq_v": True,
        "final_logit_softcapping": 30.0,
        "global_head_dim": 512,
        "head_dim": 256,
        "hidden_size": 3840,
        "intermediate_size": 15360,
        "layer_types": 8 * (5 * ["sliding_attention"] + ["full_attention"]),
        "num_attention_heads": 16,
        "num_global_key_value_heads": 1,
        "num_hidden_layers": 48,
        "num_key_value_heads": 8,
        "sliding_window": 1024,
        "vocab_size": 262144,
    },
}


def headers(release: Release) -> dict[str, tuple[dict, dict]]:
    """Of every file of ``release``; "transformer" stands for either variant's, and Gemma 3 is one file."""
    upscalers = _json("ltx-2-upscalers.config")
    found = {}
    for file in (release.upsampler, release.temporal_upsampler):
        config = upscalers[Path(file).name]["config"]
        found[file] = _metadata({"config": config}), _tensors(Path(file).stem)
    if name := WHOLE.get(release.name):
        version = {"model_version": "2.3.0"} if "2.3" in name else {}
        config = _json(f"{name}.config")["config"]
        found["transformer"] = _metadata({"config": config} | version), _tensors(name)
        found["text_encoder"] = (
            _metadata({"gemma_config": GEMMA_3_12B}),
            _tensors("gemma-3-12b-it", "language_model"),
        )
    else:
        configs = _json("ltx-2.5.config")
        found["transformer"] = (
            _metadata(configs[TRANSFORMER_2_5]["metadata"]),
            _tensors("ltx-2.5-22b-transformer"),
        )
        for file, name in SPLIT.items():
            found[file] = _metadata(configs[file]["metadata"]), _tensors(name)
        found["text_encoder"] = (
            _metadata({"gemma_config": {"model_type": None, **VERSION, **GEMMA_4_12B}}),
            _tensors("ltx-2.5-gemma4-text-encoder"),
        )
    lora = Path(release.distilled_lora).stem.removesuffix("-1.1").removesuffix("-bf16")
    version = {"model_version": "2.5.0"} if "2.5" in lora else {}
    found[release.distilled_lora] = version, _tensors(lora)
    return found


def _json(name: str) -> dict:
    return json.loads((MANIFESTS / f"{name}.json").read_text())


def _metadata(stated: dict) -> dict[str, str]:
    return {k: v if isinstance(v, str) else json.dumps(v) for k, v in stated.items()}


def _tensors(name: str, prefix: str = "") -> dict[str, tuple[str, list[int]]]:
    """Without what has no known size, such as a packed tokenizer."""
    found = _json(name)["tensors"].items()
    return {
        key: (dtype, shape)
        for key, (shape, dtype) in found
        if key.startswith(prefix) and min(shape, default=1) > 0
    }
