"""The vocoder of LTX-2.3 and 2.5 against diffusers on fresh random weights."""

import mlx.core as mx
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from diffusers.pipelines.ltx2.vocoder import LTX2VocoderWithBWE

from mlx_video.models.ltx.audio_vae import BigVGANVocoder
from mlx_video.models.ltx.vae_config import BigVGANVocoderConfig
from tests.reference import MODULE_TOLERANCE, error

OFFICIAL_NAMES = {
    ".conv_in.": ".conv_pre.",
    ".conv_out.": ".conv_post.",
    ".upsamplers.": ".ups.",
    ".resnets.": ".resblocks.",
    ".act_out.": ".act_post.",
    ".downsample.filter": ".downsample.lowpass.filter",
}


def official_name(key: str) -> str:
    for theirs, official in OFFICIAL_NAMES.items():
        key = key.replace(theirs, official)
    return f"vocoder.{key}"


@torch.no_grad()
def test_bigvgan():
    torch.manual_seed(0)
    sizes = {
        "hidden_channels": 32,
        "upsample_kernel_sizes": [8, 4, 9],
        "upsample_factors": [4, 2, 5],
        "resnet_kernel_sizes": [3, 7],
        "resnet_dilations": [[1, 3], [2, 5]],
    }
    bwe = {
        "hidden_channels": 16,
        "upsample_kernel_sizes": [12, 7],
        "upsample_factors": [4, 5],
        "resnet_kernel_sizes": [5],
        "resnet_dilations": [[1, 2, 3]],
    }
    # Officially the first generator clips what it makes; diffusers' default does not.
    theirs = LTX2VocoderWithBWE(
        **sizes,
        **{f"bwe_{key}": value for key, value in bwe.items()},
        final_act_fn="clamp",
        filter_length=64,
        hop_length=10,
        window_length=64,
        num_mel_channels=64,
        input_sampling_rate=16000,
        output_sampling_rate=32000,
    ).eval()
    state = theirs.state_dict()
    for key, value in state.items():
        if "mel_stft" in key:
            value.normal_(std=0.1)
    weights = {official_name(k): mx.array(v.numpy()) for k, v in state.items()}
    ours = BigVGANVocoder(config(sizes, bwe))
    ours.load_weights(list(BigVGANVocoder.sanitize(weights).items()))
    log_mel = torch.randn(2, 2, 13, 64)
    expected = mx.array(theirs(log_mel).numpy())
    assert error(ours(mx.array(log_mel.numpy())), expected) < MODULE_TOLERANCE
    assert ours.sample_rate == 32000


def config(vocoder: dict, bwe: dict) -> BigVGANVocoderConfig:
    def official(sizes: dict) -> dict:
        return {
            "upsample_initial_channel": sizes["hidden_channels"],
            "upsample_rates": sizes["upsample_factors"],
            "upsample_kernel_sizes": sizes["upsample_kernel_sizes"],
            "resblock_kernel_sizes": sizes["resnet_kernel_sizes"],
            "resblock_dilation_sizes": sizes["resnet_dilations"],
            "use_tanh_at_final": False,
            "use_bias_at_final": False,
        }

    extension = official(bwe) | {
        "apply_final_activation": False,
        "input_sampling_rate": 16000,
        "output_sampling_rate": 32000,
        "hop_length": 10,
        "n_fft": 64,
        "num_mels": 64,
    }
    return BigVGANVocoderConfig.from_dict(
        {"vocoder": official(vocoder), "bwe": extension}
    )
