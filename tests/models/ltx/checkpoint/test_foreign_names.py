"""Names of other projects: every tensor of the real files, written out as they write it, comes back as it was."""

from functools import cache

import mlx.core as mx
import pytest

from mlx_video.models.ltx.checkpoint import foreign_names as foreign
from mlx_video.models.ltx.checkpoint.foreign_names import to_official
from mlx_video.models.ltx.checkpoint.source import Source
from tests import layout_writers as write
from tests.reference import manifest

RELEASES = {"2": "ltx-2-19b", "2.3": "ltx-2.3-22b"}
VAE = {"2": foreign.diffusers_video_vae(4, 3), "2.3": foreign.diffusers_video_vae(4, 4)}


@cache
def whole(release: str) -> dict[str, mx.array]:
    """The real file, of zeros that nobody evaluates."""
    return {key: mx.zeros(shape) for key, shape in manifest(RELEASES[release]).items()}


CASES = [
    # spelling, writer, releases, what an official name of the part begins with
    ("MLX_TRANSFORMER", write.mlx_transformer, "2 2.3"),
    ("MLX_CONNECTORS", write.mlx_connectors, "2 2.3"),
    ("PRINCE_CONNECTORS", write.prince_connectors, "2 2.3"),
    ("MLX_VIDEO_DECODER", write.mlx_video_decoder, "2 2.3"),
    ("MLX_VIDEO_ENCODER", write.mlx_video_encoder, "2 2.3"),
    ("PRINCE_VIDEO_DECODER", write.prince_video_decoder, "2 2.3"),
    ("PRINCE_VIDEO_ENCODER", write.prince_video_encoder, "2 2.3"),
    ("MLX_AUDIO", write.forge_audio, "2 2.3"),
    ("UNIFIED_AUDIO", write.unified_audio, "2 2.3"),
    ("PRINCE_AUDIO", write.prince_audio, "2 2.3"),
    ("MLX_VOCODER", write.mlx_vocoder, "2 2.3"),
    ("FORGE_VOCODER", write.forge_vocoder, "2.3"),
    ("DIFFUSERS_TRANSFORMER", write.diffusers_transformer, "2 2.3"),
    ("DIFFUSERS_CONNECTORS", write.diffusers_connectors, "2 2.3"),
    ("diffusers_video_vae", write.diffusers_video_vae, "2 2.3"),
    ("DIFFUSERS_AUDIO", write.diffusers_audio, "2 2.3"),
    ("DIFFUSERS_VOCODER", write.diffusers_vocoder, "2 2.3"),
]
CASES = [(n, w, r) for n, w, releases in CASES for r in releases.split()]
# Statistics that no network reads and only official files hold.
UNREAD = ("mean-of-stds", "mean-of-stds_over_std-of-means", "channel")


def spelling(name: str, release: str) -> foreign.Spelling:
    return VAE[release] if name == "diffusers_video_vae" else getattr(foreign, name)


def from_official(
    weights: dict[str, mx.array], spelling: foreign.Spelling
) -> dict[str, mx.array]:
    """The inverse of ``to_official``; tensors that the project drops are left out."""
    found = {}
    for name, value in spelling.take(weights).items():
        official = spelling.official(name)
        found[name] = _last(official, value) if spelling.channels_last else value
    return found


def _last(name: str, value: mx.array) -> mx.array:
    if value.ndim < 3 or not (name.endswith(".weight") or foreign._is_filter(name)):
        return value
    if foreign._is_transposed(name):
        return value.transpose(1, 2, 0)
    return mx.moveaxis(value, 1, -1)


def shapes(weights: dict[str, mx.array]) -> dict[str, tuple[int, ...]]:
    return {key: value.shape for key, value in weights.items()}


@pytest.mark.parametrize("name, writer, release", CASES)
def test_what_others_wrote_comes_back_under_its_official_name(name, writer, release):
    official = whole(release)
    theirs = writer(official)
    back = to_official(theirs, spelling(name, release))
    assert len(back) == len(theirs) > 0
    assert shapes(back).items() <= shapes(official).items()


def test_all_parts_of_a_pack_make_the_whole_file():
    packs = {
        "forge": "MLX_TRANSFORMER MLX_CONNECTORS MLX_VIDEO_DECODER MLX_VIDEO_ENCODER MLX_AUDIO FORGE_VOCODER",
        "diffusers": "DIFFUSERS_TRANSFORMER DIFFUSERS_CONNECTORS diffusers_video_vae DIFFUSERS_AUDIO DIFFUSERS_VOCODER",
    }
    official = whole("2.3")
    writers = {name: writer for name, writer, _ in CASES}
    for names in packs.values():
        back = {}
        for name in names.split():
            back |= to_official(writers[name](official), spelling(name, "2.3"))
        absent = official.keys() - back.keys()
        assert {key.rpartition(".")[2] for key in absent} <= set(UNREAD)


def test_a_container_is_a_word_before_every_name(tmp_path):
    file, official = tmp_path / "x.safetensors", whole("2.3")
    theirs = write.in_container("vocoder.", write.mlx_vocoder(official))
    mx.save_safetensors(str(file), theirs | {"vae_decoder.x": mx.zeros(1)})
    inner = Source(file, {}, container="vocoder.").outline()
    assert inner.keys() == write.mlx_vocoder(official).keys()


def test_convolutions_move_back_value_by_value():
    official = {
        "vocoder.ups.0.weight": mx.random.normal((4, 3, 5)),
        "vocoder.conv_pre.weight": mx.random.normal((4, 3, 5)),
        "vocoder.resblocks.0.acts1.0.upsample.filter": mx.random.normal((1, 1, 12)),
        "vocoder.conv_pre.bias": mx.random.normal((4,)),
    }
    for writer in (write.mlx_vocoder, write.forge_vocoder):
        back = to_official(writer(official), foreign.MLX_VOCODER)
        assert back.keys() == official.keys()
        assert all(mx.array_equal(back[key], official[key]) for key in official)


def test_bare_names_get_their_prefix_back():
    official = manifest("ltx-2.5-22b-transformer")
    bare = {key.removeprefix("model.diffusion_model."): mx.zeros(1) for key in official}
    assert to_official(bare, foreign.BARE).keys() == official.keys()
