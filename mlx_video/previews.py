"""Shows a clip while it is sampled: one latent frame of the last step's prediction, decoded.

Knows what a picture may cost, not how a clip is sampled.
"""

import time
from contextlib import AbstractContextManager, ExitStack
from typing import Iterator, NamedTuple

import mlx.core as mx
import numpy as np

from mlx_video.conditioning.latent import LatentState
from mlx_video.models.ltx.loading.components import Components
from mlx_video.models.ltx.ltx import LTXModel
from mlx_video.models.ltx.patchify import unpatchify_video
from mlx_video.models.ltx.video_vae.decoding import decode_stream
from mlx_video.postprocess import to_uint8
from mlx_video.sampling.samplers import Denoise
from mlx_video.types import AV, VideoLatentShape

SHARE = 0.03  # of the time spent sampling that all pictures together may take


class Preview(NamedTuple):
    """The middle of the clip so far: ``picture`` is uint8 RGB (H, W, 3); stages and steps count from 1."""

    stage: int
    step: int
    picture: np.ndarray


class Previews(AbstractContextManager):
    """Makes a picture after a step if ``SHARE`` allows another; the decoder stays loaned after the first.

    model  the transformer that samples; ``None`` = show nothing

    Time for pictures includes loading the decoder and the listener's work. The cost of the next picture is estimated from
    the previous step until two of its size were made (the first prepares the device), then from the last picture.
    """

    def __init__(self, components: Components, model: LTXModel | None):
        self.components, self.model = components, model
        self._loan, self._decoder = ExitStack(), None
        self._sampled = self._spent = 0.0  # seconds of steps, and of pictures
        self._costs: dict[VideoLatentShape, float | None] = {}

    def __exit__(self, *_) -> None:
        self._decoder = None
        self._loan.close()

    def begin(self, stage: int, grid: VideoLatentShape) -> None:
        """Begin stage ``stage``, counted from 0, with latents of this shape."""
        self.stage, self._grid = stage, grid
        self._began = time.perf_counter()

    def watching(self, denoise: Denoise) -> Denoise:
        """``denoise``, but its last prediction of the video is kept."""

        def watched(
            states: AV[LatentState], sigma: float, step: int = 0
        ) -> AV[mx.array]:
            x0s = denoise(states, sigma, step)
            self._tokens = states.map(lambda state: state.latent.shape[1])
            self._x0 = states.video.masked(x0s.video)
            return x0s

        return watched

    def after(self, step: int) -> Iterator[Preview]:
        """The picture after an evaluated step, if it is time for one."""
        began = time.perf_counter()
        seconds, self._began = began - self._began, began
        self._sampled += seconds
        if self.model is None:
            return
        if min(self._grid[3:]) < self.components.geometry.least:
            return  # as a first stage may be
        if self._spent + self._cost(seconds) > SHARE * self._sampled:
            return
        if self._decoder is None:
            lent = self.components.lend("video_decoder")
            self._decoder = self._loan.enter_context(lent)
        yield Preview(self.stage + 1, step, self._picture())
        self._began = time.perf_counter()
        taken = self._began - began
        self._spent += taken
        warm = self._grid in self._costs
        self._costs[self._grid] = taken if warm else None

    def _cost(self, step: float) -> float:
        """Estimated seconds for a picture, if the last step took ``step``."""
        if (measured := self._costs.get(self._grid)) is not None:
            return measured
        decoder = self._decoder or self.components.sketch("video_decoder")
        frame = decoder.operations(self._grid._replace(frames=1))
        return step * frame / self.model.operations(self._tokens, context=0)

    def _picture(self) -> np.ndarray:
        middle = self._grid.frames // 2
        latent = unpatchify_video(self._x0, self._grid)[:, :, middle : middle + 1]
        (pixels,) = decode_stream(self._decoder, latent)
        return np.array(to_uint8(pixels[0])[0])
