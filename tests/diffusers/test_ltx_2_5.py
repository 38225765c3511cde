"""The diffusion decoder and the duration head of LTX-2.5 against diffusers' on fresh random weights, float32."""

import json
from dataclasses import fields

import mlx.core as mx
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from diffusers import LTX2VideoDiffusionDecoderModel
from diffusers.pipelines.ltx2.duration_head import LTX2DurationHead

from mlx_video.models.ltx.checkpoint import foreign_names
from mlx_video.models.ltx.checkpoint.foreign_configs import (
    diffusion_vae_block,
    duration_head_config,
)
from mlx_video.models.ltx.checkpoint.foreign_names import to_official
from mlx_video.models.ltx.duration import DurationConfig, DurationHead
from mlx_video.models.ltx.vae_config import DiffusionDecoderConfig
from mlx_video.models.ltx.video_vae import DiffusionDecoder
from mlx_video.types import AV
from tests.reference import MODULE_TOLERANCE, error


def array(x: torch.Tensor) -> mx.array:
    return mx.array(x.detach().numpy())


def loaded(ours, theirs, spelling):
    """``ours`` with the weights of ``theirs``, through the names by which a folder of diffusers is read."""
    tensors = {key: array(x) for key, x in theirs.state_dict().items()}
    weights = type(ours).sanitize(to_official(tensors, spelling))
    ours.load_weights(list(weights.items()))
    return ours


def config_of(model) -> dict:
    """As its config.json holds it."""
    shown = {k: v for k, v in model.config.items() if not k.startswith("_")}
    return json.loads(json.dumps(shown))


@pytest.mark.parametrize("frames, height, width", [(2, 3, 4), (3, 4, 3)])
def test_diffusion_decoder(frames, height, width):
    """Where windows shift at the borders, as they do there; the official way is held to Lightricks' numbers."""
    torch.manual_seed(0)
    theirs = LTX2VideoDiffusionDecoderModel(
        latent_channels=8,
        decoder_head_dim=16,
        decoder_stage_channels=(128, 64, 32, 32, 16),
        decoder_stage_depths=(1, 1, 1, 1, 2),
        decoder_stage_kernels=((3, 3, 3),) * 4,
        decoder_stage5_kernel=(5, 5, 5),
        decoder_t_emb_dim=32,
    ).eval()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
    theirs.latents_mean.normal_()
    theirs.latents_std.uniform_(0.5, 2)
    config = DiffusionDecoderConfig.from_dict(diffusion_vae_block(config_of(theirs)))
    ours = DiffusionDecoder(config, repeat_columns=False)
    loaded(ours, theirs, foreign_names.DIFFUSERS_DIFFUSION)
    latent = torch.randn(1, 8, frames, height, width)
    mean, std = (
        x.view(1, -1, 1, 1, 1) for x in (theirs.latents_mean, theirs.latents_std)
    )
    with torch.no_grad():
        decoder = theirs.decoder
        features = decoder.forward_stages_1_to_3(latent * std + mean)
        context = decoder.forward_stage_4(features)
        noise = torch.randn(1, 3, 8 * (frames - 1) + 1, 32 * height, 32 * width)
        expected = array(decoder.denoise(context, noise, 1))
    pixels = ours(array(latent), noise=array(noise))
    assert error(pixels, expected) < MODULE_TOLERANCE


@pytest.mark.parametrize("queries", [1, 2])
def test_duration_head(queries):
    torch.manual_seed(queries)
    theirs = LTX2DurationHead(24, 16, 32, queries, 4, 12).eval()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
    config = DurationConfig.from_dict(duration_head_config(config_of(theirs)))
    assert len(fields(config)) == len(config_of(theirs))
    ours = DurationHead(config)
    loaded(ours, theirs, foreign_names.DIFFUSERS_DURATION_HEAD)
    video, audio = torch.randn(2, 9, 24), torch.randn(2, 9, 16)
    for given in (AV(video, audio), AV(video), AV(None, audio)):
        with torch.no_grad():
            expected = array(theirs(*(x for x in (given.video, given.audio))))
        assert error(ours(given.map(array)), expected) < MODULE_TOLERANCE
