"""The video autoencoder against diffusers on fresh random weights: LTX-2's layout, LTX-2.3's, and a causal one."""

import re
from dataclasses import dataclass, replace

import mlx.core as mx
import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from diffusers import AutoencoderKLLTX2Video

from mlx_video.models.ltx.vae_config import VideoVAEConfig
from mlx_video.models.ltx.video_vae import VideoDecoder, VideoEncoder
from tests.reference import MODULE_TOLERANCE, error

KINDS = {"spatial": "space", "temporal": "time", "spatiotemporal": "all"}


@dataclass(frozen=True)
class Layout:
    """One autoencoder in both vocabularies. ``down`` and ``up``: (kind, multiplier, residual layers after it).

    ``up`` is in the order of decoding. Both start with ``first`` layers at ``channels`` or at the latents' grid.
    """

    down: tuple
    up: tuple
    first: int = 1
    channels: int = 8
    patch_size: int = 4
    residual: bool = False
    padding: tuple[str, str] = ("zeros", "zeros")
    causal_decoder: bool = False

    def theirs(self) -> AutoencoderKLLTX2Video:
        widths = list(np.cumprod([self.channels] + [m for _, m, _ in self.down])[1:])
        factors = [multiplier for _, multiplier, _ in self.up]
        # The channels before each upsampling, which divides them by its factor.
        before = list(np.cumprod([self.channels] + factors[::-1])[1:])
        return AutoencoderKLLTX2Video(
            latent_channels=self.channels,
            block_out_channels=tuple(map(int, widths)),
            down_block_types=("LTX2VideoDownBlock3D",) * len(self.down),
            layers_per_block=(self.first, *(layers for _, _, layers in self.down)),
            downsample_type=tuple(kind for kind, _, _ in self.down),
            spatio_temporal_scaling=(True,) * len(self.down),
            decoder_block_out_channels=tuple(map(int, before)),
            decoder_layers_per_block=(
                *(layers for _, _, layers in self.up[::-1]),
                self.first,
            ),
            decoder_spatio_temporal_scaling=(True,) * len(self.up),
            decoder_inject_noise=(False,) * (len(self.up) + 1),
            upsample_type=tuple(kind for kind, _, _ in self.up),
            upsample_residual=(self.residual,) * len(self.up),
            upsample_factor=tuple(factors[::-1]),
            timestep_conditioning=False,
            patch_size=self.patch_size,
            encoder_causal=True,
            decoder_causal=self.causal_decoder,
            encoder_spatial_padding_mode=self.padding[0],
            decoder_spatial_padding_mode=self.padding[1],
        ).eval()

    def ours(self) -> VideoVAEConfig:
        down = [["res_x", self.first]]
        for kind, multiplier, layers in self.down:
            down.append([f"compress_{KINDS[kind]}_res", {"multiplier": multiplier}])
            down.append(["res_x", layers])
        up = [["res_x", self.first]]
        for kind, multiplier, layers in self.up:
            block = {"multiplier": multiplier, "residual": self.residual}
            up.append([f"compress_{KINDS[kind]}", block])
            up.append(["res_x", layers])
        return VideoVAEConfig.from_dict(
            {
                "encoder_blocks": down,
                "decoder_blocks": up[::-1],
                "latent_channels": self.channels,
                "encoder_base_channels": self.channels,
                "decoder_base_channels": self.channels,
                "patch_size": self.patch_size,
                "encoder_spatial_padding_mode": self.padding[0],
                "decoder_spatial_padding_mode": self.padding[1],
                "causal_decoder": self.causal_decoder,
                "timestep_conditioning": False,
            }
        )


SPACE, TIME, ALL = KINDS
LTX2 = Layout(
    down=((SPACE, 2, 2), (TIME, 2, 1), (ALL, 2, 1), (ALL, 2, 1)),
    up=((ALL, 2, 1), (ALL, 2, 2), (ALL, 2, 1)),
    residual=True,
    padding=("zeros", "reflect"),
)
LTX23 = Layout(
    down=((SPACE, 2, 2), (TIME, 2, 1), (ALL, 2, 1), (ALL, 1, 1)),
    up=((ALL, 2, 1), (ALL, 1, 2), (TIME, 2, 1), (SPACE, 2, 1)),
    first=2,
)
CAUSAL = Layout(
    down=((ALL, 1, 1), (SPACE, 2, 1)),
    up=((SPACE, 1, 1), (ALL, 2, 2)),
    patch_size=2,
    padding=("reflect", "reflect"),
    causal_decoder=True,
)
LAYOUTS = [LTX2, LTX23, CAUSAL]


def official_name(key: str, stages: int) -> str:
    """diffusers groups a resampling block with residual blocks; officially all stand in one list, in order."""
    block = r"(encoder|decoder)\.(?:mid_block|(down|up)_blocks\.(\d+))\.(.*)"
    if match := re.fullmatch(block, key):
        side, _, index, rest = match.groups()
        rest, resamples = re.subn(r"(down|up)samplers\.0\.", "", rest)
        if side == "encoder":
            slot = 2 * stages if index is None else 2 * int(index) + resamples
            key = f"encoder.down_blocks.{slot}.{rest}"
        else:
            slot = 0 if index is None else 2 * int(index) + 2 - resamples
            key = f"decoder.up_blocks.{slot}.{rest}"
    return "vae." + key.replace("resnets.", "res_blocks.")


def statistics(channels: int) -> dict[str, mx.array]:
    prefix = "vae.per_channel_statistics."
    return {
        prefix + "mean-of-means": mx.random.normal((channels,)),
        prefix + "std-of-means": mx.random.uniform(0.5, 2, (channels,)),
    }


def both(layout: Layout):
    """diffusers' model, our encoder and our decoder, with the same weights, and the latents' statistics."""
    torch.manual_seed(len(layout.up))
    theirs, stages = layout.theirs(), len(layout.down)
    official = statistics(layout.channels) | {
        official_name(key, stages): mx.array(value.numpy())
        for key, value in theirs.state_dict().items()
        if not key.startswith("latents_")
    }
    parts = VideoEncoder(layout.ours()), VideoDecoder(layout.ours())
    for part in parts:
        part.load_weights(list(part.sanitize(official).items()))
    return theirs, *parts


def random(shape: tuple[int, ...]) -> tuple[torch.Tensor, mx.array]:
    x = torch.randn(shape)
    return x, mx.array(x.numpy())


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("frames", [1, 17])
def test_encode(layout, frames):
    theirs, encoder, _ = both(layout)
    pixels, ours = random((2, 3, frames, 64, 96))
    with torch.no_grad():
        means = theirs.encode(pixels).latent_dist.mode()
    expected = encoder.per_channel_statistics.normalize(mx.array(means.numpy()))
    assert error(encoder(ours), expected) < MODULE_TOLERANCE


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("frames", [1, 3])
@pytest.mark.parametrize("causal", [None, True])
def test_decode(layout, frames, causal):
    theirs, _, decoder = both(layout)
    if causal is not None:
        decoder.config = replace(decoder.config, causal_decoder=causal)
    _, latent = random((2, layout.channels, frames, 2, 3))
    z = decoder.per_channel_statistics.un_normalize(latent)
    with torch.no_grad():
        pixels = theirs.decode(torch.from_numpy(np.array(z)), causal=causal)
    expected = mx.array(pixels.sample.numpy())
    assert error(decoder(latent), expected) < MODULE_TOLERANCE
