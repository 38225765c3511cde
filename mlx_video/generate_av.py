"""Make video with sound, in one mp4, with the distilled model: ``python -m mlx_video.generate_av``."""

import sys
from functools import partial
from typing import Sequence

from mlx_video import cli
from mlx_video.generate import generate_video
from mlx_video.names import *  # noqa: F401,F403  the names that users import from here

generate_video_with_audio = partial(generate_video, audio=True)


def main(argv: Sequence[str] | None = None) -> int:
    return cli.door(__doc__, "distilled", audio=True, argv=argv)


if __name__ == "__main__":
    sys.exit(main())
