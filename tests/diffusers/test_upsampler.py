"""The latent upsampler against diffusers on fresh random weights."""

import mlx.core as mx
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from diffusers.pipelines.ltx2.latent_upsampler import LTX2LatentUpsamplerModel

from mlx_video.models.ltx.config import UpsamplerConfig
from mlx_video.models.ltx.upsampler import LatentUpsampler
from tests.reference import MODULE_TOLERANCE, error


@pytest.mark.parametrize(
    "options",
    [
        {"spatial_scale": 2.0, "rational_resampler": True},
        {"spatial_scale": 2.0, "rational_resampler": False},
        {"spatial_scale": 1.5, "rational_resampler": True},
        {"spatial_upsample": False, "temporal_upsample": True},
    ],
)
@pytest.mark.parametrize("frames, blocks", [(1, 1), (3, 2)])
def test_upsampler(options, frames, blocks):
    torch.manual_seed(blocks)
    options = {
        "in_channels": 16,
        "mid_channels": 64,
        "num_blocks_per_stage": blocks,
        "spatial_upsample": True,
        "temporal_upsample": False,
    } | options
    names = {
        "spatial_scale": "rational_spatial_scale",
        "rational_resampler": "use_rational_resampler",
    }
    theirs = LTX2LatentUpsamplerModel(
        **{names.get(key, key): value for key, value in options.items()}
    )
    for name, parameter in theirs.named_parameters():
        if "norm" in name:
            torch.nn.init.normal_(parameter, mean=1.0)

    weights = {key: mx.array(x.numpy()) for key, x in theirs.state_dict().items()}
    ours = LatentUpsampler(UpsamplerConfig.from_dict(options))
    ours.load_weights(list(LatentUpsampler.sanitize(weights).items()))

    latent = torch.randn(2, 16, frames, 5, 6)
    with torch.no_grad():
        expected = mx.array(theirs(latent).numpy())
    assert error(ours(mx.array(latent.numpy())), expected) < MODULE_TOLERANCE
