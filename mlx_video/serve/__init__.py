"""The same runs over HTTP: a web page and the OpenAI Videos API. One process answers, another owns the device."""

from dataclasses import dataclass

from mlx_video.disk import GB


@dataclass(frozen=True)
class Limits:
    """What a server may use, unless it is started with other limits.

    queue   clips that may wait
    disk    bytes that clips may take
    idle    seconds without a clip after which models are unloaded
    body    bytes of one request
    margin  bytes of the disk to leave free
    """

    queue: int = 32
    disk: int = 20 * GB
    idle: float = 600
    body: int = 32 * 2**20
    margin: int = 500 * 10**6
