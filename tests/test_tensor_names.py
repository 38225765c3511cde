"""Names of tensors: every official one has one of ours, and the way back."""

import pytest

from mlx_video.tensor_names import TensorNames

NAMES = TensorNames(
    {
        "model.net.": "",
        "model.net.guest.": None,
        "model.statistics.": "statistics.",
        "statistics.": "statistics.",
    },
    {"*.to_out.0.*": "*.to_out.*", "*.net.2.*": "*.proj_out.*"},
    {"block.*.audio_*": "block.*.audio.*", "block.*.*": "block.*.video.*"},
)


@pytest.mark.parametrize(
    "official, ours",
    [
        ("model.net.block.3.audio_ff.net.2.bias", "block.3.audio.ff.proj_out.bias"),
        ("model.net.block.3.attn.to_out.0.weight", "block.3.video.attn.to_out.weight"),
        ("model.net.head.weight", "head.weight"),
        ("model.statistics.mean", "statistics.mean"),
    ],
)
def test_both_ways(official, ours):
    assert NAMES.ours(official) == ours
    assert NAMES.official(ours) == official


def test_a_second_official_name_leads_to_the_same_tensor():
    assert NAMES.ours("statistics.mean") == "statistics.mean"


@pytest.mark.parametrize("name", ["model.net.guest.weight", "vae.weight"])
def test_what_belongs_to_others_has_no_name_here(name):
    assert NAMES.ours(name) is None


def test_take():
    weights = {"model.net.head.weight": 1, "model.net.guest.weight": 2, "vae.x": 3}
    assert NAMES.take(weights) == {"head.weight": 1}


def test_ours_are_recognised():
    assert NAMES.take({"head.weight": 1}) is None


def test_patterns_must_keep_the_same_pieces():
    with pytest.raises(ValueError, match="as many"):
        TensorNames({"": ""}, {"*.a.*": "*.b"})


def test_a_name_outside_the_network():
    with pytest.raises(KeyError, match="elsewhere.x"):
        TensorNames({"model.": "net."}).official("elsewhere.x")
