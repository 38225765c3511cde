"""The video autoencoders: pixels to latents and back (LTX-2: 8 frames of 32 x 32 pixels per cell of 128 channels)."""

from mlx_video.models.ltx.video_vae.decoder import VideoDecoder
from mlx_video.models.ltx.video_vae.diffusion import DiffusionDecoder
from mlx_video.models.ltx.video_vae.encoder import VideoEncoder

__all__ = ["DiffusionDecoder", "VideoDecoder", "VideoEncoder"]
