"""The duration head against the official seconds and frames, and the real file's names."""

import json

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten

from mlx_video.errors import UserError
from mlx_video.models.ltx.duration import (
    DurationConfig,
    DurationHead,
    frames_for,
)
from mlx_video.types import AV
from mlx_video.weights import load_into, read_config
from tests.reference import FIXTURES, MODULE_TOLERANCE, error, manifest, vectors

FILE = FIXTURES / "ltx25_tiny" / "ltx-2.5-tiny-duration-head-bf16.safetensors"
STEP = 8


@pytest.fixture(scope="module")
def head() -> DurationHead:
    model = DurationHead(DurationConfig.from_dict(read_config(FILE)))
    load_into(model, DurationHead.sanitize(dict(mx.load(str(FILE)))), dtype=mx.float32)
    return model


@pytest.fixture(scope="module")
def context() -> AV[mx.array]:
    text = vectors("text", "ltx25_tiny")
    return AV(text["a.video_embeds"], text["a.audio_embeds"])


@pytest.fixture(scope="module")
def official() -> dict[str, mx.array]:
    return vectors("duration", "ltx25_tiny")


@pytest.mark.parametrize("streams", ["", "_video_only", "_audio_only"])
def test_official_seconds(head, context, official, streams):
    given = {
        "": context,
        "_video_only": AV(video=context.video),
        "_audio_only": AV(audio=context.audio),
    }[streams]
    assert error(head(given), official[f"a.seconds{streams}"]) < MODULE_TOLERANCE


def test_official_pooling(head, context, official):
    tokens = [head.video(context.video), head.audio(context.audio)]
    pooled = head.pooler(mx.concatenate(tokens, axis=1))
    assert error(pooled, official["a.pooled"]) < MODULE_TOLERANCE


def test_a_batch_in_bfloat16(head, context, official):
    half = DurationHead(DurationConfig.from_dict(read_config(FILE)))
    half.update(head.parameters())
    half.set_dtype(mx.bfloat16)
    both = context.map(lambda x: mx.concatenate([x, 0 * x]).astype(mx.bfloat16))
    seconds = half(both)
    assert seconds.shape == (2,) and seconds.dtype == mx.float32
    assert error(seconds[:1], official["a.seconds"]) < 0.05


@pytest.mark.parametrize("fps", [24, 25, 30])
def test_official_frames(official, fps):
    seconds = official["grid.seconds"].tolist()
    frames = [frames_for(s, fps, STEP) for s in seconds]
    assert frames == official[f"grid.frames_fps{fps}"].tolist()


@pytest.mark.parametrize("fps", [24, 25, 50])
def test_official_frames_of_a_prompt(official, fps):
    seconds = official["a.seconds"].item()
    assert frames_for(seconds, fps, STEP) == official[f"a.frames_fps{fps}"].item()


def test_another_grid():
    assert frames_for(5.0, 24, step=16) == 113 and frames_for(5.0, 24, step=10) == 111


def test_full_size_takes_every_tensor_of_the_real_file():
    header = json.loads((FIXTURES / "manifests/ltx-2.5.config.json").read_text())
    file = next(v for k, v in header.items() if "duration" in k)
    model = DurationHead(DurationConfig.from_dict(file["metadata"]["config"]))
    names = manifest("ltx-2.5-duration-head")
    given = DurationHead.sanitize({k: mx.zeros(s) for k, s in names.items()})
    ours = dict(tree_flatten(model.parameters()))
    assert {k: v.shape for k, v in given.items()} == {k: v.shape for k, v in ours.items()}  # fmt: skip
    assert len(ours) == 15 and sum(v.size for v in ours.values()) == 1_903_361
    assert {DurationHead.NAMES.official(k) for k in ours} == set(names)
    assert DurationHead.sanitize(given) is given


@pytest.mark.parametrize(
    "config, words",
    [
        ({}, "holds nothing"),
        ({"transformer": {}}, "holds transformer"),
        ({"transformer": [], "duration_head": {}}, "must hold the blocks"),
        ({"transformer": {}, "duration_head": {"depth": 3}}, "unknown keys depth"),
    ],
)
def test_other_configs_are_refused(config, words):
    with pytest.raises(UserError, match=words):
        DurationConfig.from_dict(config)
