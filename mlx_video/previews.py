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
LEAST = 0.02  # seconds to build and launch a decoder, measured with an H200, whatever it decodes


class Preview(NamedTuple):
    """The middle of the clip so far: ``picture`` is uint8 RGB (H, W, 3); stages and steps count from 1."""

    stage: int
    step: int
    picture: np.ndarray


class Previews(AbstractContextManager):
    """Makes a picture after a step if ``SHARE`` allows another; the decoder stays loaned after the first.

    model  the transformer that samples; ``None`` = show nothing

    Time for pictures includes what the listener does before it goes on, but not loading the decoder, which the run needs
    anyway. The cost of the next picture is estimated from the current step until two of its size were made (the first
    prepares the device), then from the last picture.

    A GPU lags behind Python. So where it is time for a picture before a step is done, it is queued behind the step, and the
    device waits neither for its network to be built nor for its launch.
    """

    def __init__(self, components: Components, model: LTXModel | None):
        self.components, self.model = components, model
        self._loan, self._decoder = ExitStack(), None
        self._sampled = self._spent = 0.0  # seconds of steps, and of pictures
        self._costs: dict[VideoLatentShape, float | None] = {}
        self._x0 = self._picture = None  # of the current step

    def __exit__(self, *_) -> None:
        self._decoder = self._x0 = self._picture = None
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
            return x0s

        return denoise if self.model is None else watched

    def queue(self) -> None:
        """Queue the picture of a step that is queued, if it is time for one already."""
        if self._x0 is None or self._decoder is None:
            return
        if backend.eager or self._decoder.FRAME != WHOLE:
            return  # it would be computed here and now
        if self._due(time.perf_counter() - self._began):
            self._picture = self._built()
            mx.async_eval(self._picture)

    def after(self, step: int) -> Iterator[Preview]:
        """The picture after an evaluated step, if it is time for one."""
        if self.model is None:
            return
        began = time.perf_counter()
        seconds, self._began = began - self._began, began
        picture = self._picture
        if picture is None and self._due(seconds):
            if self._decoder is None:
                lent = self.components.lend("video_decoder")
                self._decoder = self._loan.enter_context(lent)
                began = time.perf_counter()
            picture = self._built()
        self._x0 = self._picture = None
        self._sampled += seconds
        if picture is None:
            return
        yield Preview(self.stage + 1, step, np.array(picture))
        self._began = time.perf_counter()
        taken = self._began - began
        self._spent += taken
        warm = self._grid in self._costs
        self._costs[self._grid] = taken if warm else None

    def _due(self, seconds: float) -> bool:
        """Whether there is time for a picture, if the current step has taken ``seconds``."""
        if min(self._grid[3:]) < self.components.geometry.least:
            return False  # as a first stage may be
        allowed = SHARE * (self._sampled + seconds)
        return self._spent + self._cost(seconds) <= allowed

    def _cost(self, step: float) -> float:
        """Estimated seconds for a picture, if the current step takes ``step``."""
        if (measured := self._costs.get(self._grid)) is not None:
            return measured
        decoder = self._decoder or self.components.sketch("video_decoder")
        frame = decoder.operations(self._grid._replace(frames=1))
        return max(LEAST, step * frame / self.model.operations(self._tokens, context=0))

    def _built(self) -> mx.array:
        """The picture of the last prediction, uint8 (H, W, 3), still lazy if the decoder can compute a frame as a whole."""
        middle = self._grid.frames // 2
        latent = unpatchify_video(self._x0, self._grid)[:, :, middle : middle + 1]
        if self._decoder.FRAME == WHOLE:
            pixels = self._decoder(latent)
        else:
            (pixels,) = decode_stream(self._decoder, latent)
        return to_uint8(pixels[0])[0]
