"""Requests that are wrong in one way each, drawn from a seed."""

import json
import random
from collections.abc import Callable, Iterator
from typing import NamedTuple

Draw = Callable[[random.Random], object]

TEXTS = ("", " ", "\n\t", "x" * 9000, None, 7, [], {}, True, ["a"])
NUMBERS = (-1, 0.5, 1e400, -(2**70), 2**70, "x", "", [], {}, "NaN", "1e999")
HUGE = (10**6, 10**12, 2**64)
NAMES = (
    "colour",
    "Prompt",
    "__proto__",
    "prompt ",
    "images[]",
    "\u0000",
    "id",
    "status",
    "callback_url",
)
PATHS = (
    "../x",
    "/etc/passwd",
    "..%2f..%2fvideos.sqlite",
    "video_" + "0" * 32,
    "%00",
    "a" * 500,
    "'; DROP TABLE videos",
)
SIZES = (
    "1x1x1",
    "0x0",
    "axb",
    "99999x99999",
    "-64x64",
    "64",
    "64×64",
    " 64x64",
    "1e3x1e3",
    "x",
    "64x",
    [64, 64],
)


class Bad(NamedTuple):
    """``kind`` says what is wrong; the rest are httpx's arguments."""

    kind: str
    method: str
    path: str
    how: dict


def bad_requests(count: int, seed: int) -> Iterator[Bad]:
    draw = random.Random(seed)
    kinds = list(KINDS)
    for number in range(count):
        kind = kinds[number % len(kinds)]
        yield Bad(kind, *KINDS[kind](draw))


def _field(names: str, values: tuple) -> Callable:
    def made(draw: random.Random):
        body = {"prompt": "a red ball"} | {
            draw.choice(names.split()): draw.choice(values)
        }
        return _create(body)

    return made


def _create(body: object, path: str = "/v1/videos"):
    # By hand, as json.dumps of a client may write what is no JSON: NaN, Infinity.
    return "POST", path, _json(json.dumps(body))


def _json(text: str | bytes) -> dict:
    return {"content": text, "headers": {"Content-Type": "application/json"}}


def _form(draw: random.Random):
    file = draw.choice(
        (
            b"",
            b"\x89PNG\r\n\x1a\n" + b"x" * 50,
            b"%!PS",
            b"GIF89a",
            b"<svg/>",
            draw.randbytes(400),
        )
    )
    name = draw.choice(("../../etc/passwd", "a.png", "", "\u0000.png", "x" * 300))
    field = draw.choice(("input_reference", "input_reference[]", "file", "images"))
    return (
        "POST",
        "/v1/videos",
        {"data": {"prompt": "a"}, "files": {field: (name, file)}},
    )


def _broken_form(draw: random.Random):
    kind = draw.choice(
        (
            "multipart/form-data",
            "multipart/form-data; boundary=x",
            "multipart/form-data; boundary=",
        )
    )
    body = draw.choice(
        (
            b"",
            b"--x\r\n",
            b"--x\r\nContent-Disposition: form-data\r\n\r\na\r\n--x--",
            draw.randbytes(60),
        )
    )
    return "POST", "/v1/videos", {"content": body, "headers": {"Content-Type": kind}}


def _no_json(draw: random.Random):
    text = draw.choice(
        (
            "{",
            "[" * 5000,
            "null",
            "[]",
            "7",
            '"a"',
            "",
            b"\xff\xfe",
            "{'prompt': 'a'}",
            '{"prompt": "\\ud800"}',
        )
    )
    return "POST", draw.choice(("/v1/videos", "/v1/estimates")), _json(text)


def _unknown_video(draw: random.Random):
    method, end = draw.choice(
        (
            ("GET", ""),
            ("DELETE", ""),
            ("GET", "/content"),
            ("GET", "/preview"),
            ("GET", "/events"),
            ("POST", "/cancel"),
            ("POST", "/remix"),
        )
    )
    how = _json('{"prompt": "b"}') if end == "/remix" else {}
    return method, f"/v1/videos/{draw.choice(PATHS)}{end}", how


def _query(draw: random.Random):
    name, value = draw.choice(
        (
            ("limit", "0"),
            ("limit", "101"),
            ("limit", "x"),
            ("limit", "1e3"),
            ("order", "up"),
            ("after", "video_none"),
            ("after", "x" * 200),
            ("after", "' OR 1=1"),
        )
    )
    return "GET", "/v1/videos", {"params": {name: value}}


def _lora(draw: random.Random):
    strength = draw.choice((1e9, -5, "x", None, [], 1))
    name = draw.choice(("blue", "../x", "", "x" * 200)) if strength == 1 else "sepia"
    return _create(
        {
            "prompt": "a",
            "loras": draw.choice(({name: strength}, [name], name, {name: {}})),
        }
    )


def _outside(draw: random.Random):
    headers = draw.choice(
        (
            {"Host": "evil.example"},
            {"Origin": "http://evil.example"},
            {"Origin": "null"},
            {"Sec-Fetch-Site": "cross-site"},
            {"Host": ""},
        )
    )
    return draw.choice(("GET", "POST")), "/v1/videos", {"headers": headers}


def _method(draw: random.Random):
    return draw.choice(
        (
            ("PUT", "/v1/videos", {}),
            ("PATCH", "/v1/videos/x", {}),
            ("POST", "/health", {}),
            ("DELETE", "/v1/models", {}),
        )
    )


def _picture_field(draw: random.Random):
    reference = draw.choice(
        (
            {"image_url": "http://169.254.169.254/"},
            {"file_id": "file_1"},
            "file:///etc/passwd",
            7,
            {},
        )
    )
    images = draw.choice(
        ([{"path": "/etc/passwd"}], [{"frame": 8}], "x", {"path": "x"})
    )
    return _create(
        {"prompt": "a"}
        | draw.choice(({"input_reference": reference}, {"images": images}))
    )


KINDS: dict[str, Callable] = {
    "prompt": _field("prompt", TEXTS),
    "number": _field("seed num_frames fps steps width height seconds", NUMBERS),
    "huge": _field("num_frames fps steps width height seconds", HUGE),
    "small": _field("width height fps num_frames", (0, 1e-9, -0.0)),
    "size": _field("size", SIZES),
    "text": _field("negative_prompt model recipe", (7, [], {}, "x" * 9000, True)),
    "sound": _field("generate_sound", ("perhaps", 7, [], {}, -1)),
    "name": lambda draw: _create({"prompt": "a", draw.choice(NAMES): 1}),
    "model": lambda draw: _create(
        {"prompt": "a", "model": draw.choice(("sora-2", "", *PATHS[:4]))}
    ),
    "recipe": _field("recipe", ("dev", "DISTILLED", "", "dfr")),
    "lora": _lora,
    "picture": _picture_field,
    "file": _form,
    "form": _broken_form,
    "json": _no_json,
    "video": _unknown_video,
    "query": _query,
    "outside": _outside,
    "method": _method,
}
