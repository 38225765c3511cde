"""The vocoder against diffusers on fresh random weights."""

import mlx.core as mx
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from diffusers.pipelines.ltx2.vocoder import LTX2Vocoder

from mlx_video.models.ltx.audio_vae import Vocoder
from mlx_video.models.ltx.vae_config import VocoderConfig
from tests.reference import MODULE_TOLERANCE, error

OFFICIAL_NAMES = {
    "conv_in.": "vocoder.conv_pre.",
    "conv_out.": "vocoder.conv_post.",
    "upsamplers.": "vocoder.ups.",
    "resnets.": "vocoder.resblocks.",
}


def official_name(key: str) -> str:
    for theirs, official in OFFICIAL_NAMES.items():
        if key.startswith(theirs):
            return official + key.removeprefix(theirs)
    return key


@torch.no_grad()
@pytest.mark.parametrize(
    "config",
    [
        VocoderConfig(
            upsample_initial_channel=64,
            upsample_rates=(6, 5, 2, 2, 2),
            upsample_kernel_sizes=(16, 15, 8, 4, 4),
            resblock_kernel_sizes=(3, 7, 11),
            resblock_dilation_sizes=((1, 3, 5),) * 3,
        ),
        VocoderConfig(
            upsample_initial_channel=24,
            upsample_rates=(4, 3),
            upsample_kernel_sizes=(8, 9),
            resblock_kernel_sizes=(5, 3),
            resblock_dilation_sizes=((1, 2), (4, 7)),
            output_sample_rate=16000,
        ),
    ],
)
def test_vocoder(config):
    torch.manual_seed(len(config.upsample_rates))
    theirs = LTX2Vocoder(
        hidden_channels=config.upsample_initial_channel,
        upsample_factors=config.upsample_rates,
        upsample_kernel_sizes=config.upsample_kernel_sizes,
        resnet_kernel_sizes=config.resblock_kernel_sizes,
        resnet_dilations=config.resblock_dilation_sizes,
        output_sampling_rate=config.output_sample_rate,
    ).eval()
    weights = {
        official_name(key): mx.array(value.numpy())
        for key, value in theirs.state_dict().items()
    }
    ours = Vocoder(config)
    ours.load_weights(list(Vocoder.sanitize(weights).items()))
    log_mel = torch.randn(2, 2, 13, 64)
    expected = mx.array(theirs(log_mel).numpy())
    assert error(ours(mx.array(log_mel.numpy())), expected) < MODULE_TOLERANCE
    assert ours.sample_rate == config.output_sample_rate
