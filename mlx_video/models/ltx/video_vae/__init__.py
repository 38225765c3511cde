"""The video autoencoders: 8 frames of 32 x 32 pixels to one cell of 128 channels, and back."""

from mlx_video.models.ltx.video_vae.decoder import VideoDecoder
from mlx_video.models.ltx.video_vae.diffusion import DiffusionDecoder
from mlx_video.models.ltx.video_vae.encoder import VideoEncoder

__all__ = ["DiffusionDecoder", "VideoDecoder", "VideoEncoder"]
