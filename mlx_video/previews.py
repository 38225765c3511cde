"""Shows a clip while it is sampled: one latent frame of the last step's prediction, decoded.

Knows what a picture may cost, not how a clip is sampled.
"""

import time
from contextlib import AbstractContextManager, ExitStack
from typing import Iterator, NamedTuple

import mlx.core as mx
import numpy as np

from mlx_video import backend
from mlx_video.conditioning.latent import LatentState
from mlx_video.models.ltx.loading.components import Components
from mlx_video.models.ltx.ltx import LTXModel
from mlx_video.models.ltx.patchify import unpatchify_video
from mlx_video.models.ltx.video_vae.decoding import WHOLE, decode_stream
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

    Time for pictures includes loading the decoder and what the listener does before it goes on. The cost of the next picture
    is estimated from the previous step until two of its size were made (the first prepares the device), then from the last
    picture.

    A GPU lags behind Python, so while it still computes a step, the picture that will probably follow is built: queuing it
    later takes a fraction of the time. If it is not due after all, it is dropped without being computed.
    """

    def __init__(self, components: Components, model: LTXModel | None):
        self.components, self.model = components, model
        self._loan, self._decoder = ExitStack(), None
        self._sampled = self._spent = 0.0  # seconds of steps, and of pictures
        self._last = 0.0  # seconds of the last step
        self._costs: dict[VideoLatentShape, float | None] = {}
        self._x0 = self._picture = None  # of the current step

    def __exit__(self, *_) -> None:
        self._decoder = None
        self._loan.close()

    def begin(self, stage: int, grid: VideoLatentShape) -> None:
        """Begin stage ``stage``, counted from 0, with latents of this shape."""
        self.stage, self._grid = stage, grid
        self._began = time.perf_counter()

    def watching(self, denoise: Denoise, steps: int) -> Denoise:
        """``denoise`` of a stage of ``steps``, but its last prediction of the video is kept until ``after`` the step."""

        def watched(
            states: AV[LatentState], sigma: float, step: int = 0
        ) -> AV[mx.array]:
            x0s = denoise(states, sigma, step)
            if step + 1 < steps:  # the last has no picture
                self._tokens = states.map(lambda state: state.latent.shape[1])
                self._x0 = states.video.masked(x0s.video)
                self._picture = self._built() if self._expected() else None
            return x0s

        return denoise if self.model is None else watched

    def after(self, step: int) -> Iterator[Preview]:
        """The picture after an evaluated step, if it is time for one."""
        began = time.perf_counter()
        self._last, self._began = began - self._began, began
        self._sampled += self._last
        if self.model is None:
            return
        due, picture = self._due(self._sampled), self._picture
        if due and picture is None:
            if self._decoder is None:
                lent = self.components.lend("video_decoder")
                self._decoder = self._loan.enter_context(lent)
            picture = self._built()
        self._x0 = self._picture = None
        if not due:
            return
        yield Preview(self.stage + 1, step, np.array(picture))
        self._began = time.perf_counter()
        taken = self._began - began
        self._spent += taken
        warm = self._grid in self._costs
        self._costs[self._grid] = taken if warm else None

    def _expected(self) -> bool:
        """Whether a picture should be built before the step is computed: it will be due if the step takes as long as the last."""
        if self._decoder is None or self._decoder.FRAME != WHOLE or backend.eager:
            return False  # an eager CPU would compute it
        return self._due(self._sampled + self._last)

    def _due(self, sampled: float) -> bool:
        """Whether there is time for a picture after so many seconds of sampling."""
        if min(self._grid[3:]) < self.components.geometry.least:
            return False  # as a first stage may be
        return self._spent + self._cost() <= SHARE * sampled

    def _cost(self) -> float:
        """Estimated seconds for a picture."""
        if (measured := self._costs.get(self._grid)) is not None:
            return measured
        decoder = self._decoder or self.components.sketch("video_decoder")
        frame = decoder.operations(self._grid._replace(frames=1))
        return self._last * frame / self.model.operations(self._tokens, context=0)

    def _built(self) -> mx.array:
        """The picture of the last prediction, uint8 (H, W, 3), still lazy if the decoder can compute a frame as a whole."""
        middle = self._grid.frames // 2
        latent = unpatchify_video(self._x0, self._grid)[:, :, middle : middle + 1]
        if self._decoder.FRAME == WHOLE:
            pixels = self._decoder(latent)
        else:
            (pixels,) = decode_stream(self._decoder, latent)
        return to_uint8(pixels[0])[0]
