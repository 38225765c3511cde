"""What Lightricks has published, as data."""

from dataclasses import dataclass

from mlx_video.types import AudioScale, Geometry, VideoScale


@dataclass(frozen=True)
class Release:
    """One published model.

    repository  on the hub
    geometry    that its files state; a request is checked against it before they are fetched
    """

    repository: str
    geometry: Geometry


LTX_2 = Release(
    repository="Lightricks/LTX-2",
    geometry=Geometry(
        video=VideoScale(time=8, height=32, width=32),
        channels=128,
        audio=AudioScale(
            sample_rate=16000,
            hop=160,
            mel_frames=4,
            channels=8,
            bins=16,
            output_rate=24000,
        ),
    ),
)
RELEASES = (LTX_2,)
