"""Pictures in: what people have, what attacks, and the official numbers."""

import struct
import sys
import warnings
import zlib
from pathlib import Path

import av
import mlx.core as mx
import numpy as np
import pillow_heif
import pytest
from PIL import Image, ImageCms

from mlx_video import pictures
from mlx_video.errors import UserError
from mlx_video.pictures import (
    compress_like_video,
    fit_image,
    read_picture,
)
from tests.media_reading import read_clip
from tests.reference import error, vectors

HEIC = b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic" + b"\x00" * 100
# Primaries of Adobe RGB (1998) as a profile has them: adapted to D50, with a gamma of 563 / 256.
ADOBE = ((0.6097, 0.3111, 0.0195), (0.2053, 0.6257, 0.0609), (0.1492, 0.0632, 0.7446))
DISPLAY_P3 = (
    (0.5151, 0.2412, -0.0011),
    (0.2920, 0.6922, 0.0419),
    (0.1571, 0.0666, 0.7841),
)


def profile(primaries: tuple, gamma: float, name: bytes = b"wide") -> bytes:
    """A minimal ICC profile of three primaries and a gamma."""

    def xyz(values) -> bytes:
        return b"XYZ \0\0\0\0" + b"".join(
            struct.pack(">i", round(v * 65536)) for v in values
        )

    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + b"\0\0"
    text = b"desc\0\0\0\0" + struct.pack(">I", len(name) + 1) + name + b"\0" * 79
    tags = {b"desc": text + b"\0" * (-len(text) % 4), b"wtpt": xyz((0.9642, 1, 0.8249))}
    tags |= dict(zip((b"rXYZ", b"gXYZ", b"bXYZ"), map(xyz, primaries)))
    tags |= dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve)
    table, data, start = struct.pack(">I", len(tags)), b"", 132 + 12 * len(tags)
    for tag, value in tags.items():
        table += tag + struct.pack(">II", start + len(data), len(value))
        data += value
    head = struct.pack(
        ">I4xI4s4s4s12x4s",
        start + len(data),
        0x02100000,
        b"mntr",
        b"RGB ",
        b"XYZ ",
        b"acsp",
    )
    head = head.ljust(68, b"\0") + xyz((0.9642, 1, 0.8249))[8:]
    return head.ljust(128, b"\0") + table + data


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds next to nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data))
            + kind
            + data
            + struct.pack(">I", zlib.crc32(kind + data))
        )

    size = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", size)
        + chunk(b"IDAT", zlib.compress(b"\0" * 99))
        + chunk(b"IEND", b"")
    )


def load_image(path: Path) -> np.ndarray:
    return read_picture(path).pixels


def some_picture(rows: int = 64, columns: int = 96) -> np.ndarray:
    row, column = np.mgrid[0:rows, 0:columns]
    return np.stack([row * 2 % 256, column % 256, 90 + 0 * row], axis=-1).astype(
        np.uint8
    )


# What people have


def test_read_turns_it_upright(tmp_path):
    pixels = np.zeros((16, 32, 3), np.uint8)
    pixels[:, :16] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise
    Image.fromarray(pixels).save(tmp_path / "photo.jpg", exif=exif, quality=95)
    found = load_image(tmp_path / "photo.jpg")
    assert found.shape == (32, 16, 3) and found.dtype == np.uint8
    assert found[:14].min() > 240 and found[18:].max() < 15


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L", "CMYK", "1"])
def test_read_of_any_mode(tmp_path, mode):
    image = Image.new("RGB", (16, 16), (255, 255, 255)).convert(mode)
    name = "image.tif" if mode == "CMYK" else "image.png"
    image.save(tmp_path / name)
    assert (load_image(tmp_path / name) == 255).all()


@pytest.mark.parametrize(
    "dtype, white, name",
    [
        (np.uint16, 65535, "ramp.png"),
        (np.uint16, 65535, "ramp.tif"),
        (np.int32, 65535, "ramp.tif"),
        (np.int32, 255, "ramp.tif"),
        (np.float32, 1, "ramp.tif"),
        (np.float32, 255, "ramp.tif"),
    ],
)
def test_read_scales_deep_greyscale(tmp_path, dtype, white, name):
    ramp = np.tile(np.linspace(0, white, 256).astype(dtype), (16, 1))
    Image.fromarray(ramp).save(tmp_path / name)
    expected = np.tile(np.arange(256)[:, None], (16, 1, 3))
    np.testing.assert_array_equal(load_image(tmp_path / name), expected)


def test_read_keeps_a_dark_16_bit_picture_dark(tmp_path):
    Image.fromarray(np.full((16, 16), 200, np.uint16)).save(tmp_path / "dark.png")
    assert load_image(tmp_path / "dark.png").max() == 1


def test_transparency_is_laid_on_white_and_said(tmp_path):
    Image.new("RGBA", (16, 16), (200, 100, 50, 128)).save(tmp_path / "a.png")
    picture = read_picture(tmp_path / "a.png")
    expected = np.broadcast_to([227, 177, 152], (16, 16, 3))
    np.testing.assert_allclose(picture.pixels, expected, atol=1)
    assert picture.notices == (
        f"{tmp_path}/a.png is partly transparent; it is laid on white.",
    )
    Image.new("RGBA", (16, 16), (200, 100, 50, 255)).save(tmp_path / "opaque.png")
    assert read_picture(tmp_path / "opaque.png").notices == ()


@pytest.mark.parametrize("mode", ["LA", "P", "RGB"])
def test_transparency_of_other_modes(tmp_path, mode):
    """Grey with alpha, a palette with a transparent colour, and one colour that counts as transparent."""
    image = Image.new(mode, (16, 16), (0, 0) if mode == "LA" else 0)
    image.save(
        tmp_path / "a.png",
        **({} if mode == "LA" else {"transparency": (0, 0, 0) if mode == "RGB" else 0}),
    )
    assert (load_image(tmp_path / "a.png") == 255).all()


@pytest.mark.parametrize(
    "primaries, gamma, expected",
    [(ADOBE, 563 / 256, (0, 201, 37)), (DISPLAY_P3, 2.2, (0, 205, 0))],
)
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_colour_profiles_become_srgb(tmp_path, primaries, gamma, expected, mode):
    colour = (60, 200, 60, 255)[: len(mode)]
    Image.new(mode, (16, 16), colour).save(
        tmp_path / "wide.png", icc_profile=profile(primaries, gamma)
    )
    picture = read_picture(tmp_path / "wide.png")
    np.testing.assert_allclose(picture.pixels[0, 0], expected, atol=2)
    assert picture.notices == ()


def test_srgb_stays_as_it_is(tmp_path):
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.fromarray(some_picture()).save(tmp_path / "srgb.png", icc_profile=srgb)
    np.testing.assert_array_equal(load_image(tmp_path / "srgb.png"), some_picture())


@pytest.mark.parametrize("data", [b"nonsense", profile(ADOBE, 2.2)[:200]])
def test_a_broken_profile_is_ignored_and_said(tmp_path, data):
    Image.fromarray(some_picture()).save(tmp_path / "odd.png", icc_profile=data)
    picture = read_picture(tmp_path / "odd.png")
    np.testing.assert_array_equal(picture.pixels, some_picture())
    assert picture.notices == (
        f"The colour profile of {tmp_path}/odd.png cannot be read and is ignored.",
    )


def test_a_grey_picture_with_a_profile_of_colours(tmp_path):
    """Such files exist; the profile does not fit, and the grey is right."""
    Image.new("L", (16, 16), 77).save(
        tmp_path / "grey.png", icc_profile=profile(ADOBE, 2.2)
    )
    assert (load_image(tmp_path / "grey.png") == 77).all()


@pytest.mark.parametrize(
    "name", ["a.jpg", "a.png", "a.webp", "a.bmp", "a.gif", "a.tif", "A.JPG"]
)
def test_every_format_that_the_help_names(tmp_path, name):
    Image.new("RGB", (32, 16), (250, 10, 10)).save(tmp_path / name)
    np.testing.assert_allclose(load_image(tmp_path / name)[5, 5], (250, 10, 10), atol=6)


def test_of_an_animation_the_first_frame(tmp_path):
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("white", "black")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert (load_image(tmp_path / "a.gif") == 255).all()


def ramp(rows: int, columns: int) -> Image.Image:
    """Darker to the left than to the right, in 64 steps."""
    levels = np.arange(columns) * 64 // columns * 4
    return Image.fromarray(np.broadcast_to(levels.astype(np.uint8), (rows, columns)))


@pytest.mark.slow
@pytest.mark.parametrize("columns, rows", [(17000, 1000), (40000, 300), (9000, 64)])
def test_of_a_panorama_the_middle_is_used_in_full_detail(tmp_path, columns, rows):
    """More columns than H.264 takes, of which the clip shows few; that is said."""
    ramp(rows, columns).save(tmp_path / "wide.png")
    picture = read_picture(tmp_path / "wide.png")
    assert picture.pixels.shape == (rows, columns, 3) and picture.notices == ()
    (cropped,) = picture.crop(512, 768)
    assert f"is {columns}x{rows} and the clip 768x512, so 9" in cropped
    fitted = picture.fitted(64, 96, crf=1)
    exact = fit_image(picture.pixels, 64, 96)
    assert fitted.shape == (1, 3, 1, 64, 96)
    assert mx.abs(fitted - exact).max().item() < 0.05


def test_a_tall_one_likewise(tmp_path):
    Image.new("RGB", (100, 20000), "red").save(tmp_path / "tall.png")
    assert read_picture(tmp_path / "tall.png").fitted(64, 96, 33).shape == (
        1,
        3,
        1,
        64,
        96,
    )


@pytest.mark.parametrize(
    "name, turned", [("a.jpg", True), ("a.png", False), ("a.tif", False)]
)
@pytest.mark.parametrize("mode", ["RGB", "P", "I;16"])
def test_a_picture_beyond_the_bounds_is_shrunk(
    tmp_path, monkeypatch, name, turned, mode
):
    """As one of 200 megapixels would be, a JPEG while it is decoded."""
    monkeypatch.setattr(pictures, "LARGEST", 10_000)
    mode = "RGB" if name == "a.jpg" else mode
    image = Image.new("RGB", (400, 200), "red")
    exif = Image.Exif()
    exif[0x0112] = 6 if turned else 1
    if mode == "I;16":
        image = Image.fromarray(np.full((200, 400), 40000, np.uint16))
    else:
        image = image.convert(mode)
    image.save(tmp_path / name, exif=exif)
    picture = read_picture(tmp_path / name)
    scale = 4 if turned else 3
    width, height = (
        -(-side // scale) for side in ((200, 400) if turned else (400, 200))
    )
    if mode == "I;16":
        width, height = 400 // scale, 200 // scale
    assert picture.pixels.shape == (height, width, 3)
    expected = 156 if mode == "I;16" else 254
    assert int(picture.pixels[9, 9, 0]) == pytest.approx(expected, abs=2)
    assert f"(0 megapixels); it is read at {width}x{height}." in picture.notices[0]


def test_ordinary_photos_keep_their_pixels(tmp_path):
    Image.fromarray(some_picture(300, 500)).save(tmp_path / "photo.png")
    picture = read_picture(tmp_path / "photo.png")
    np.testing.assert_array_equal(picture.pixels, some_picture(300, 500))
    assert picture.notices == () and picture.crop(512, 768) == ()


@pytest.mark.parametrize(
    "height, width, said", [(40, 40, 0), (33, 66, 0), (20, 66, 1), (66, 20, 1)]
)
def test_a_crop_is_said_where_it_takes_most(tmp_path, height, width, said):
    Image.new("RGB", (66, 48)).save(tmp_path / "a.png")
    assert len(read_picture(tmp_path / "a.png").crop(height, width)) == said


# What attacks, and what is no picture


def test_nothing_but_the_named_formats_is_opened(tmp_path, monkeypatch):
    """For EPS, Pillow would run Ghostscript, whatever the file is called."""
    started = []
    monkeypatch.setattr("subprocess.Popen", lambda *a, **k: started.append(a))
    monkeypatch.setattr("subprocess.check_call", lambda *a, **k: started.append(a))
    eps = (
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\nshowpage\n"
    )
    (tmp_path / "cat.png").write_bytes(eps)
    with pytest.raises(
        UserError, match="cat.png is not a readable image; give a PNG, JPEG"
    ):
        read_picture(tmp_path / "cat.png")
    assert not started
    Image.new("RGB", (16, 16)).save(tmp_path / "cat.ppm")
    with pytest.raises(UserError, match="cat.ppm is not a readable image"):
        read_picture(tmp_path / "cat.ppm")


@pytest.mark.parametrize("width, height", [(65500, 65500), (250_001, 1000)])
def test_a_bomb_is_refused_before_it_is_decoded(tmp_path, width, height):
    (tmp_path / "bomb.png").write_bytes(png_header(width, height))
    with pytest.raises(
        UserError,
        match=f"bomb.png claims {width}x{height} pixels .*at most 250 megapixels",
    ):
        read_picture(tmp_path / "bomb.png")


def test_a_progressive_jpeg_is_not_decoded_small(tmp_path, monkeypatch):
    """It takes the memory of all its pixels."""
    monkeypatch.setattr(pictures, "MOST_DECODED", 2000)
    Image.new("RGB", (64, 64)).save(tmp_path / "a.jpg", progressive=True)
    with pytest.raises(UserError, match="a.jpg claims 64x64"):
        read_picture(tmp_path / "a.jpg")
    Image.new("RGB", (64, 64)).save(tmp_path / "a.jpg")
    assert load_image(tmp_path / "a.jpg").shape == (64, 64, 3)


@pytest.mark.parametrize("width, height", [(1, 1), (3, 3), (15, 400)])
def test_a_tiny_picture_is_refused_by_name(tmp_path, width, height):
    Image.new("RGB", (width, height)).save(tmp_path / "dot.png")
    with pytest.raises(
        UserError, match=f"dot.png is {width}x{height} pixels; .* at least 16"
    ):
        read_picture(tmp_path / "dot.png")


def test_no_image_to_load(tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no file .*lost.png"):
        load_image(tmp_path / "lost.png")
    with pytest.raises(UserError, match="is not a regular file"):
        load_image(tmp_path)
    (tmp_path / "text.png").write_bytes(b"text")
    with pytest.raises(UserError, match="text.png is not a readable image.*PNG, JPEG"):
        load_image(tmp_path / "text.png")


@pytest.mark.slow
def test_damaged_files_are_told_in_a_sentence(tmp_path):
    """Cut short or with bytes flipped, each format is read or refused; nothing that Pillow says comes through."""
    rng = np.random.default_rng(0)
    for suffix in ("png", "jpg", "webp", "bmp", "gif", "tif"):
        file = tmp_path / f"whole.{suffix}"
        Image.fromarray(some_picture()).save(file)
        whole = bytearray(file.read_bytes())
        for trial in range(40):
            data = (
                whole[: rng.integers(1, len(whole))] if trial < 10 else bytearray(whole)
            )
            for place in rng.integers(0, min(len(data), 400), 5 if trial >= 10 else 0):
                data[place] = rng.integers(256)
            (tmp_path / f"bad.{suffix}").write_bytes(data)
            with warnings.catch_warnings(action="error"):
                refused(tmp_path / f"bad.{suffix}")


def refused(path: Path) -> None:
    try:
        assert load_image(path).dtype == np.uint8
    except UserError as said:
        assert path.name in str(said) and len(str(said)) < 400
        assert str(said).endswith((" file.", "on each side.", "Shrink it first."))


@pytest.mark.parametrize("content", [HEIC, b"broken"])
def test_heic_without_its_reader_says_what_to_do(content, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    (tmp_path / "photo.heic").write_bytes(content)
    with pytest.raises(
        UserError, match="photo.heic is a HEIC photo.*pip install pillow-heif.*JPEG"
    ):
        read_picture(tmp_path / "photo.heic")


def test_heic(tmp_path):
    pillow_heif.from_pillow(Image.new("RGB", (64, 32), (200, 30, 30))).save(
        tmp_path / "photo.heic"
    )
    np.testing.assert_allclose(
        load_image(tmp_path / "photo.heic")[9, 9], (200, 30, 30), atol=6
    )
    (tmp_path / "bad.heic").write_bytes(HEIC)
    with pytest.raises(UserError, match="bad.heic is not a readable image"):
        read_picture(tmp_path / "bad.heic")


# As the video encoder wants them


@pytest.mark.parametrize("crf", [18, 33])
def test_compression_is_the_official_one(crf):
    """Other builds of x264 may differ in a few pixels."""
    v = vectors("image", "ltx25_tiny")
    actual = compress_like_video(np.array(v["image"]), crf).astype(int)
    differs = np.abs(actual - np.array(v[f"crf{crf}"]))
    assert actual.shape == (74, 110, 3)
    assert (differs > 0).mean() < 0.01 and differs.max() <= 4


@pytest.mark.parametrize("crf", [0, 18, 33])
def test_conditioning_tensor_is_the_official_one(crf):
    v = vectors("image", "ltx25_tiny")
    picture = pictures.Picture("image", np.array(v["image"]))
    actual = picture.fitted(64, 96, crf)
    assert (mx.abs(actual - v[f"crf{crf}.tensor"]) > 1e-5).mean().item() < 0.01
    assert error(actual, v[f"crf{crf}.tensor"]) < 0.04


def test_compress_like_video():
    image = some_picture()[:63, :95]
    mild, strong = (compress_like_video(image, crf) for crf in (18, 51))
    assert mild.shape == strong.shape == (62, 94, 3) and mild.dtype == np.uint8
    errors = [np.abs(x.astype(int) - image[:62, :94]).mean() for x in (mild, strong)]
    assert 0 < errors[0] < 2 < errors[1]
    np.testing.assert_array_equal(compress_like_video(image, 18), mild)


def test_compress_like_video_is_the_trip_through_a_file(tmp_path):
    path, image = tmp_path / "image.mp4", np.array(vectors("sampling")["image.in"])
    with av.open(str(path), "w") as mp4:
        options = {"crf": "33", "preset": "veryfast"}
        stream = mp4.add_stream("libx264", rate=1, options=options)
        stream.height, stream.width, stream.pix_fmt = *image.shape[:2], "yuv420p"
        mp4.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        mp4.mux(stream.encode(None))
    expected = read_clip(path).frames[0]
    np.testing.assert_array_equal(compress_like_video(image, 33), expected)


def test_h264_has_a_longest_side():
    with pytest.raises(UserError, match="is 16386x2 pixels; it must be at most 16384"):
        compress_like_video(np.zeros((2, 16386, 3), np.uint8), 33)


def test_fit_image_is_the_official_resize():
    v = vectors("sampling")
    actual = fit_image(np.array(v["image.in"]), 64, 96)
    assert actual.dtype == mx.float32
    assert mx.abs(actual - v["image.resized_64x96"]).max() < 1e-6


def test_pillows_own_size_limit_neither_stops_us_nor_is_changed(tmp_path, monkeypatch):
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert read_picture(tmp_path / "a.png").pixels.shape == (32, 32, 3)
    assert Image.MAX_IMAGE_PIXELS == 100


@pytest.mark.parametrize("rows, columns", [(200, 50), (50, 200), (7, 7)])
def test_fit_image_covers_and_centres(rows, columns):
    """A ramp from -1 to 1 along the longer side keeps its middle; nothing is stretched."""
    ramp = np.linspace(0, 255, max(rows, columns)).round().astype(np.uint8)
    ramp = ramp[:, None] if rows > columns else ramp[None]
    image = np.broadcast_to(ramp[..., None], (rows, columns, 3))
    fitted = fit_image(image, 64, 64)
    assert fitted.shape == (1, 3, 1, 64, 64)
    assert abs(fitted.mean().item()) < 0.02
    slope = (fitted.max() - fitted.min()).item()
    expected = 2 * min(rows, columns) / max(rows, columns)
    assert slope == pytest.approx(expected, rel=0.05)


def test_fit_image_of_its_own_size_is_exact():
    image = some_picture()
    fitted = np.array(fit_image(image, 64, 96))[0, :, 0]
    np.testing.assert_allclose(fitted.transpose(1, 2, 0), image / 127.5 - 1, atol=1e-6)
