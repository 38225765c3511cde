"""Reads pictures safely, upright, as sRGB on white, and fits them to the video encoder. Does not know how a clip is made."""

import io
import math
import os
import struct
import sys
import warnings
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO, Iterator

import av
import mlx.core as mx
import numpy as np
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from mlx_video.clip_limits import LARGEST_SIDE
from mlx_video.disk import file_errors, file_size, short, typed_path
from mlx_video.errors import UserError

# Only these are opened, whatever the file's name: for others, such as EPS, Pillow runs programs.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
FORMAT_NAMES = "PNG, JPEG, WebP, BMP, GIF or TIFF"
HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1")
TIFF_HEADS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
ORIENTATION = 0x0112  # in EXIF; from 5 on, width and height are exchanged

SMALLEST = 16  # pixels per side; less is an icon or a mistake
LARGEST = 25_000_000  # pixels; a picture with more is shrunk
MOST_COMPRESSED = 8192  # pixels per side; of a larger one only the middle is used
MOST_DECODED = 250_000_000  # pixels; a file with more is refused, since decoding needs at least 3 bytes for each
MOST_JPEG = 1_000_000_000  # the same for a JPEG, which is shrunk while it is decoded, unless it is progressive
MOST_CROPPED = 0.5  # share of a picture that may be cut off without a notice

MEGA = 1_000_000
# Errors that Pillow raised for thousands of damaged files.
DAMAGED = (OSError, SyntaxError, ValueError, EOFError, struct.error, TypeError)
DAMAGED += (ArithmeticError, LookupError, AttributeError, RuntimeError)


@dataclass(frozen=True)
class Picture:
    """A picture that was read.

    pixels   uint8 sRGB, (H, W, 3), upright
    notices  sentences on what was done to it that the user may not expect
    """

    name: str
    pixels: np.ndarray
    notices: tuple[str, ...] = ()

    def crop(self, height: int, width: int) -> tuple[str, ...]:
        """A sentence if a clip of ``height`` x ``width`` shows less than half of it."""
        rows, columns = self.pixels.shape[:2]
        shapes = sorted((columns / rows, width / height))
        lost = 1 - shapes[0] / shapes[1]
        if lost <= MOST_CROPPED:
            return ()
        return (
            f"{self.name} is {columns}x{rows} and the clip {width}x{height}, so {lost:.0%} of the picture is cut off. "
            "Crop it yourself, or choose a width and height of its shape.",
        )

    def fitted(self, height: int, width: int, crf: int) -> mx.array:
        """For the video encoder: (1, 3, 1, height, width) in [-1, 1], with the traces of H.264."""
        pixels = self.pixels
        if max(pixels.shape) > MOST_COMPRESSED:  # too much for H.264, or for memory
            pixels = _middle(pixels, width / height)
        return fit_image(compress_like_video(pixels, crf), height, width)


def read_picture(path: str | Path) -> Picture:
    """Read a picture file.

    Applies EXIF rotation and colour profile, makes transparency white, takes the first frame of an animation and shrinks
    pictures above 25 megapixels. Raises ``MissingFileError``, or ``UserError`` if the file is not a picture, smaller than
    16 pixels on a side, or too large to decode.
    """
    path = typed_path(path)
    name = short(path)
    file_size(path)  # raises if it is not a file
    with file_errors(path), open(path, "rb") as file:
        image, size = _decoded(file, name)
    notices, profile = [], image.info.get("icc_profile")
    if image.mode in ("P", "PA", "1"):  # which cannot be scaled
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    image = _eight_bit(_shrunk(image))
    if image.size != size:
        notices.append(
            f"{name} has {_pixels(*size)}; it is read at {image.width}x{image.height}."
        )
    image, alpha = _split_alpha(image)
    image = _in_srgb(image, profile, name, notices)
    if alpha is not None:
        notices.append(f"{name} is partly transparent; it is laid on white.")
        image = Image.composite(image, Image.new("RGB", image.size, "white"), alpha)
    return Picture(name, np.array(image), tuple(notices))


def _decoded(file: BinaryIO, name: str) -> tuple[Image.Image, tuple[int, int]]:
    """The picture in ``file``, upright, and its size as stored: a large JPEG is shrunk while it is decoded."""
    head = file.read(12)
    file.seek(0)
    heic = head[4:8] == b"ftyp" and head[8:12] in HEIC_BRANDS
    formats = _heif(name) if heic else FORMATS
    try:
        with _our_pillow(head[:4] in TIFF_HEADS):
            image = Image.open(file, formats=formats)
            _check_size(image, name)
            turned = image.getexif().get(ORIENTATION, 1) >= 5
            size = image.size[::-1] if turned else image.size
            scale = next((s for s in (1, 2, 4) if s >= _excess(image)), 8)
            image.draft(None, (image.width // scale, image.height // scale))
            image.load()
            ImageOps.exif_transpose(image, in_place=True)
            return image, size
    except UserError:
        raise
    except UnidentifiedImageError:
        if name.lower().endswith((".heic", ".heif")):
            _heif(name)
        raise UserError(
            f"{name} is not a readable image; give a {FORMAT_NAMES} file."
        ) from None
    except DAMAGED:
        raise UserError(
            f"{name} is not a readable image: it is damaged or cut short. Give a whole {FORMAT_NAMES} file."
        ) from None


@contextmanager
def _our_pillow(tiff: bool) -> Iterator[None]:
    """Run Pillow without warnings, without its TIFF library's output on stderr, and without a size limit.

    Its limit refuses photos that can be shrunk while decoding; ours is in ``_check_size``.
    """
    with warnings.catch_warnings(action="ignore"), ExitStack() as later:
        later.callback(setattr, Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
        Image.MAX_IMAGE_PIXELS = None
        if tiff:
            sys.stderr.flush()
            stderr = os.dup(2)
            later.callback(os.close, stderr)
            later.callback(os.dup2, stderr, 2)
            with open(os.devnull, "w") as nowhere:
                os.dup2(nowhere.fileno(), 2)
        yield


def _heif(name: str) -> tuple[str]:
    """The format of HEIC photos, which Pillow reads with another package."""
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        raise UserError(
            f"{name} is a HEIC photo. Install support with `pip install pillow-heif`, or export it as JPEG."
        ) from None
    register_heif_opener()
    return ("HEIF",)


def _check_size(image: Image.Image, name: str) -> None:
    """Raise ``UserError`` for a picture that is too small, or too large to decode."""
    width, height = image.size
    if min(width, height) < SMALLEST:
        raise UserError(
            f"{name} is {width}x{height} pixels; a picture needs at least {SMALLEST} on each side."
        )
    shrinks = image.format in ("JPEG", "MPO") and not image.info.get("progressive")
    most = MOST_JPEG if shrinks else MOST_DECODED
    if width * height > most:
        raise UserError(
            f"{name} claims {_pixels(width, height)}; at most {most // MEGA} megapixels are read. Shrink it first."
        )


def _pixels(width: int, height: int) -> str:
    return f"{width}x{height} pixels ({width * height / MEGA:.0f} megapixels)"


def _excess(image: Image.Image) -> int:
    """How many times smaller a picture must be on each side; 1 = small enough."""
    return math.ceil(math.sqrt(image.width * image.height / LARGEST))


def _eight_bit(image: Image.Image) -> Image.Image:
    """Deeper greyscale (modes I;16, I and F) scaled to mode L, since Pillow would clip it to white; others unchanged.

    White is 65535 in I;16; elsewhere the smallest of 1 (F only), 255, 65535 and 2^31 - 1 that no pixel exceeds.
    """
    if image.mode[0] not in "IF":
        return image
    with np.errstate(invalid="ignore"):  # of NaN, which becomes 0
        levels = np.nan_to_num(np.asarray(image).astype(np.float64))
    whites = (1, 255, 65535, 2**31 - 1)[image.mode != "F" :]
    held = (white for white in whites if levels.max() <= white)
    white = 65535 if image.mode.startswith("I;16") else next(held, levels.max())
    return Image.fromarray(np.rint(levels.clip(0) / white * 255).astype(np.uint8))


def _shrunk(image: Image.Image) -> Image.Image:
    """``image``, shrunk to the limit by averaging neighbouring pixels."""
    scale = _excess(image)
    if scale == 1:
        return image
    if image.mode.startswith("I;16"):  # Pillow cannot reduce it
        size = (image.width // scale, image.height // scale)
        return image.resize(size, Image.Resampling.BOX)
    return image.reduce(scale)


def _split_alpha(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """The colours, and the opacity of each pixel; ``None`` = all opaque."""
    if not image.has_transparency_data:
        return image, None
    grey = image.mode in ("L", "LA", "La")
    image = image.convert("RGBA")
    alpha, colours = image.getchannel("A"), image.convert("RGB")
    colours = colours.getchannel(0) if grey else colours
    return colours, alpha if alpha.getextrema()[0] < 255 else None


def _in_srgb(
    image: Image.Image, profile: bytes | None, name: str, notices: list[str]
) -> Image.Image:
    """``image`` in sRGB, by the file's ICC profile if it has one."""
    if not profile:
        return image.convert("RGB")
    try:
        own = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if "sRGB" in ImageCms.getProfileDescription(own):
            return image.convert("RGB")  # converting would only round
        srgb = ImageCms.createProfile("sRGB")
        return ImageCms.profileToProfile(image, own, srgb, outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, ValueError):
        notices.append(f"The colour profile of {name} cannot be read and is ignored.")
        return image.convert("RGB")


# For the video encoder


def _middle(image: np.ndarray, shape: float) -> np.ndarray:
    """The part of a picture that a clip of proportion ``shape`` (width / height) shows, within a pixel or two."""
    rows, columns = image.shape[:2]
    height = min(rows, math.ceil(columns / shape))
    width = min(columns, math.ceil(rows * shape))
    top, left = (rows - height) // 2, (columns - width) // 2
    return image[top : top + height, left : left + width]


def compress_like_video(image: np.ndarray, crf: int) -> np.ndarray:
    """A picture compressed as an H.264 frame: uint8 (H, W, 3), with odd edges cut off.

    The model was trained on video frames and freezes for a picture without their artefacts. The official ``crf`` (constant
    rate factor) is 33 for LTX-2 and 2.3, and 18 for 2.5; 0 leaves the picture unchanged.
    """
    if crf == 0:
        return image
    height, width = (side // 2 * 2 for side in image.shape[:2])
    if max(height, width) > LARGEST_SIDE:
        raise UserError(
            f"The picture is {width}x{height} pixels; it must be at most {LARGEST_SIDE} on a side."
        )
    encoder = av.CodecContext.create("libx264", "w")
    encoder.width, encoder.height, encoder.pix_fmt = width, height, "yuv420p"
    encoder.time_base = Fraction(1)
    encoder.options = {"crf": str(crf), "preset": "veryfast"}
    decoder = av.CodecContext.create("h264", "r")
    frame = av.VideoFrame.from_ndarray(image[:height, :width], format="rgb24")
    packets = encoder.encode(frame) + encoder.encode(None)
    frames = [out for packet in (*packets, None) for out in decoder.decode(packet)]
    return frames[0].to_ndarray(format="rgb24")


def fit_image(image: np.ndarray, height: int, width: int) -> mx.array:
    """Scale a picture to cover ``height`` x ``width`` and cut out the middle: (1, 3, 1, height, width) in [-1, 1]."""
    # Plain bilinear, as in the official code; Pillow's also smooths when shrinking.
    rows, columns = image.shape[:2]
    scale = max(height / rows, width / columns)
    image = _resize_rows(image, math.ceil(rows * scale), height)
    image = image.swapaxes(0, 1)
    image = _resize_rows(image, math.ceil(columns * scale), width)
    return mx.array(image.T[None, :, None]) / 127.5 - 1


def _resize_rows(image: np.ndarray, total: int, kept: int) -> np.ndarray:
    """The middle ``kept`` of ``total`` rows, each interpolated from two rows of ``image`` (pixel centres at 1/2)."""
    rows = len(image)
    wanted = np.arange(kept) + (total - kept) // 2
    at = np.maximum((wanted + 0.5) * rows / total - 0.5, 0)
    low = at.astype(int)
    high = np.minimum(low + 1, rows - 1)
    share = (at - low).astype(np.float32)[:, None, None]
    return image[low] * (1 - share) + image[high] * share
