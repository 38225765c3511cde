"""A checkpoint's geometry, read from the configs of its autoencoders and vocoder. Reads no tensors."""

from typing import Mapping

from mlx_video.errors import UserError
from mlx_video.models.ltx.checkpoint.source import Source
from mlx_video.models.ltx.loading.parts import PARTS
from mlx_video.models.ltx.loading.schema import LARGEST, short_repr
from mlx_video.models.ltx.vae_config import MEL_BINS
from mlx_video.types import AudioScale, Geometry, VideoScale

SOUND = ("audio_decoder", "vocoder")  # the parts that make sound


def read_geometry(sources: Mapping[str, Source]) -> Geometry | None:
    """The geometry of the parts in ``sources``; ``None`` if the video decoder is not among them.

    Raises ``UserError`` if the parts contradict each other: the clip would have a wrong size, length or pitch.
    """
    if "video_decoder" not in sources:
        return None
    decoder = PARTS["video_decoder"].config(sources["video_decoder"])
    if "video_encoder" in sources:
        encoder = PARTS["video_encoder"].config(sources["video_encoder"])
        if encoder.encoder_scale != decoder.decoder_scale:
            raise UserError(
                f"{sources['video_encoder'].path}: the video encoder's latents stand for {_cell(encoder.encoder_scale)}, "
                f"the decoder's for {_cell(decoder.decoder_scale)}. Use parts of one checkpoint."
            )
    audio = _audio(sources) if all(name in sources for name in SOUND) else None
    geometry = Geometry(
        decoder.decoder_scale, decoder.latent_channels, audio, decoder.least_cells
    )
    if "transformer" in sources:
        _check_tokens(geometry, sources["transformer"])
    return geometry


def _audio(sources: Mapping[str, Source]) -> AudioScale:
    """The audio's scale; raises ``UserError`` if a mel frame differs between vocoder and decoder."""
    config, vocoder = (PARTS[name].config(sources[name]) for name in SOUND)
    rate, hop = config.sampling_rate, config.hop_length
    if vocoder.hop > LARGEST:
        raise UserError(
            f"{sources['vocoder'].path}: its vocoder would make {short_repr(vocoder.hop)} samples of a mel frame. "
            "The file may be damaged."
        )
    if config.mel_bins != MEL_BINS:
        raise UserError(
            f"{sources['audio_decoder'].path}: its audio decoder makes {config.mel_bins} mel bins (mel_bins), but the vocoder "
            f"reads {MEL_BINS}. Use parts of one checkpoint."
        )
    if rate * vocoder.hop != vocoder.output_sample_rate * hop:
        raise UserError(
            f"{sources['vocoder'].path}: the vocoder makes {vocoder.hop} samples of each of the {rate / hop:g} mel frames a "
            f"second (sampling_rate {rate}, hop_length {hop}), which is {rate / hop * vocoder.hop:g} Hz, but its "
            f"output_sample_rate is {vocoder.output_sample_rate} Hz: the sound would play at the wrong speed and pitch."
        )
    latent = config.time_factor, config.z_channels, config.latent_bins
    return AudioScale(rate, hop, *latent, vocoder.output_sample_rate)


def _check_tokens(geometry: Geometry, transformer: Source) -> None:
    config, audio = PARTS["transformer"].config(transformer), geometry.audio
    widths = {"in_channels": (config.in_channels, geometry.channels)}
    if audio:
        widths["audio_in_channels"] = config.audio_in_channels, audio.token_width
    for key, (stated, made) in widths.items():
        if stated != made:
            raise UserError(
                f"{transformer.path}: the transformer's {key} is {stated}, but a latent of its autoencoder has {made} "
                "numbers. Use parts of one checkpoint."
            )


def _cell(scale: VideoScale) -> str:
    time, height, width = map(short_repr, scale)
    return f"{time} frames of {width}x{height} pixels"
