"""Bad inputs of what surrounds a run: what is typed, what a run left, a text encoder's files, and the hub's cache."""

import json
import os
import shutil
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from unittest.mock import patch

import mlx.core as mx

from mlx_video import hub
from mlx_video.models.ltx.checkpoint.layouts import identify
from mlx_video.models.ltx.checkpoint.source import Source
from mlx_video.models.ltx.loading.parts import PARTS
from mlx_video.models.ltx.tokenizer import PromptTokenizer
from mlx_video.recipes import Defaults
from mlx_video.record import Job
from mlx_video.resume import STAGE, STEP, load_state
from mlx_video.weights import INDEX
from tests.checkpoints import tiny_folder
from tests.fuzz import Random, junk, maker, typed, usual_record, wrong_for
from tests.reference import CHECKPOINT, UPSCALER

SMALL = "--model {} -n 9 -W 64 -H 64 --no-audio -p cat".format(CHECKPOINT).split()
LATENTS, SOUND = (1, 128, 2, 2, 2), (1, 8, 10, 16)


@cache
def text_encoder() -> Path:
    """A whole text encoder, to be copied and broken."""
    return tiny_folder(Path(mkdtemp()) / "model") / "text_encoder"


BYTES = [b"", b"{", b"[1]", b"null", b'{"a": 1}', b"\xff\xfe", b"\x00" * 99, b"5", b"<html>", b'{"model": {}}', b"[" * 99_999]  # fmt: skip


@maker
def tokenizer(rng: Random, folder: Path):
    """A tokenizer's file that is none, is cut off, or states what cannot be."""
    home = Path(shutil.copytree(text_encoder(), folder / "gemma"))
    name = rng.choice(["tokenizer.json", "tokenizer.model", "tokenizer_config.json"])
    file = home / name
    whole = file.read_bytes() if file.exists() else b""
    content = rng.choice([*BYTES, rng.randbytes(50)])
    if name == "tokenizer_config.json":
        length = rng.choice(["x", [], {"a": 1}, -1, True, -0.5, [1]])
        content = json.dumps({"model_max_length": length}).encode()
    elif name == "tokenizer.model":
        (home / "tokenizer.json").unlink()
        content = rng.choice([*BYTES[1:], rng.randbytes(50), b"\x0a\xff\xff\xff\x7f"])
    elif rng.random() < 0.5:
        content = whole[: rng.randrange(len(whole) - 2)]
    file.write_bytes(content)
    return f"{name} {content[:30]}", folder.name, lambda: PromptTokenizer.load(home).encode("a cat")  # fmt: skip


@maker
def gemma(rng: Random, folder: Path):
    """A text encoder's config with a value of a wrong kind or size, or no config at all."""
    home = Path(shutil.copytree(text_encoder(), folder / "gemma"))
    file = home / "config.json"
    config = json.loads(file.read_text())
    text = config.get("text_config", config)
    keys = ["hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim", "rms_norm_eps", "num_hidden_layers", "vocab_size", "sliding_window", "model_type", "query_pre_attn_scalar"]  # fmt: skip
    key = rng.choice(keys)
    if rng.random() < 0.3:
        told = content = rng.choice(BYTES)
        file.write_bytes(content)
    else:
        usual = text.get(key, 1)
        wrong = [wrong_for(rng, usual)] * 2
        wrong += [] if isinstance(usual, str) else [0, -1, -(10**30)]
        text[key] = rng.choice(wrong)
        told = f"{key} = {text[key]}"
        file.write_text(json.dumps(config))
    return str(told)[:80], folder.name, lambda: PARTS["text_encoder"].config(Source.of(home))  # fmt: skip


@maker
def subjects(rng: Random, folder: Path):
    """What a small model knows, in a file of wrong kinds."""
    home = Path(shutil.copytree(text_encoder(), folder / "gemma"))
    known = {"name": "small", "draws": "a cat", "things": ["cat"]}
    key = rng.choice(list(known))
    known[key] = rng.choice([None, 5, 1.5, True, {}, {"a": 1}, [3], [None]])
    (home / "knows.json").write_text(json.dumps(known))
    return f"{key} = {known[key]}", folder.name, lambda: PromptTokenizer.load(home)


@maker
def shards(rng: Random, folder: Path):
    """A repository in the hub's cache, whose index is none."""
    repo = folder / "models--a--b"
    snapshot = repo / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True), (repo / "refs").mkdir()
    (repo / "refs/main").write_text("0" * 40)
    found = rng.choice([junk(rng, dict), {}, {"weight_map": junk(rng, dict)}, {"weight_map": {"a": junk(rng, str)}}, {"weight_map": {"a": "../../x"}}])  # fmt: skip
    text = rng.choice([json.dumps(found), "{", "[" * 99_999, ""])
    (snapshot / INDEX).write_text(text)

    def read() -> None:
        with patch("huggingface_hub.constants.HF_HUB_CACHE", str(folder)):
            hub.plan("a/b", [INDEX])

    return text[:60], folder.name, read


@maker
def defaults(rng: Random, folder: Path):
    """Defaults in a converted folder that are of wrong kinds, unknown, or out of bounds."""
    good = {"width": 64, "height": 64, "frames": 9, "fps": 24.0, "steps": 4, "audio": False, "negative_prompt": "x"}  # fmt: skip
    key = rng.choice(list(good))
    value = wrong_for(rng, good[key])
    if rng.random() < 0.2:
        key, value = "no_such", 1
    text = rng.choice([{key: value}, {key: value}, junk(rng, dict, str, type(None))])
    (folder / "config.json").write_text(json.dumps({"defaults": text}))
    for name in ("transformer", "vocoder"):
        (folder / name).mkdir()
        (folder / name / "config.json").write_text("{}")
    names = key if isinstance(text, dict) and text else ""
    return str(text), names, lambda: Defaults.from_dict(identify(folder).defaults)


def left(file: Path, video: mx.array | None, record: str | None, **words: str) -> Path:
    """A file as a run leaves it."""
    tensors = {"x": mx.zeros(3)} if video is None else {"video": video}
    metadata = words | ({} if record is None else {"mlx_video": record})
    mx.save_safetensors(str(file), tensors, metadata)
    return file


@maker
def latents(rng: Random, folder: Path):
    """Latents that do not fit their record, hold no numbers, or nothing."""
    file, record = folder / "a.latents.safetensors", usual_record()
    good = mx.random.normal(LATENTS, key=mx.random.key(rng.randrange(99)))
    how = rng.choice(["shape", "zeros", "nan", "none", "record", "sound", "pipe", "text", "whole", "wild"])  # fmt: skip
    video = {
        "shape": lambda: mx.ones(rng.choice([(), (3,), (1, 128, 3, 2, 2), (1, 64, 2, 2, 2), (2, 128, 2, 2, 2), (0, 128, 2, 2, 2)])),
        "zeros": lambda: mx.zeros(LATENTS),
        "nan": lambda: good * float("nan"),
        "wild": lambda: good * 1e6,
        "none": lambda: None,
        "whole": lambda: mx.ones(LATENTS, mx.int32),
    }.get(how, lambda: good)()  # fmt: skip
    if how == "record":
        record = rng.choice([None, "", "{", "[]", record[:200], record.replace('"recipe"', '"recipes"')])  # fmt: skip
    elif how == "sound":
        data = json.loads(record)
        data["job"]["request"]["audio"] = True
        record = json.dumps(data)
    if how == "pipe":
        os.mkfifo(file)
    elif how == "text":
        file.write_bytes(rng.choice(BYTES))
    else:
        left(file, video, record)
    words = ["decode", str(file), "-o", str(folder / "x.mp4"), "--yes", "--quiet"]
    return how, folder.name, lambda: typed(words)


@maker
def state(rng: Random, folder: Path):
    """A state of a step that is not, or with latents that are not the run's."""
    file, record = folder / "a.state.safetensors", usual_record()
    words = {STAGE: "0", STEP: "3"}
    key = rng.choice([STAGE, STEP])
    if rng.random() < 0.7:
        words[key] = rng.choice(["-1", "99", "x", "", "1.5", "nan", "1e3", "0x1"])
    else:
        del words[key]
    left(file, mx.zeros((1, 8, 128)), record, **words)
    job = Job.from_record(file)
    return f"{key} = {words.get(key)}", folder.name, lambda: load_state(file, job)


OUTPUTS = {
    "-o": ["", ".mp4", ".json", "x", "x.txt", "x.MP5", "file/x.mp4", "~nosuchuser/x.mp4", "a\0b.mp4", "y" * 300 + ".mp4", "z" * 230 + ".mp4", "taken.mp4", "folder.mp4", "dangling.mp4", "unfinished.mp4", "/proc/x.mp4", "record.mp4"],
    "--save-frames": ["", "file", "file/x", "~nosuchuser", "full", "y" * 300, "/proc/x"],
    "--output-audio": ["", "x.wav", "x.mp3", "folder", ".wav", "~nosuchuser/x.wav"],
    "--from-record": ["none.json", "", "folder", "file", "taken.mp4", "~nosuchuser", "/dev/null"],
    "--resume": ["none.state.safetensors", "", "folder", "file", "taken.mp4", "/dev/null"],
}  # fmt: skip


@maker
def output(rng: Random, folder: Path):
    """A name of a file to write or to go on from that cannot be."""
    for name in ("file", "taken.mp4", "record.json", "unfinished.latents.safetensors"):
        (folder / name).write_text("x")
    for name in ("full", "folder.mp4", "folder"):
        (folder / name).mkdir()
    (folder / "full" / "frame_0000.png").write_text("x")
    (folder / "dangling.mp4").symlink_to("nowhere")
    option = rng.choice(sorted(OUTPUTS))
    value = rng.choice(OUTPUTS[option])
    given = value if not value or value[0] in "/~" else str(folder / value)
    fresh = option not in ("--from-record", "--resume")
    words = ["generate", *(SMALL if fresh else ()), option, given]
    words += [] if option == "-o" or not fresh else ["-o", str(folder / "n.mp4")]
    names = "proc" if value.startswith("/proc") else Path(value).stem[-40:]
    return f"{option} {value[:60]!r}", "" if "\0" in value else names, lambda: typed(words)  # fmt: skip


PROMPTS = ["", " ", "\n", "a\x1b[2Jb", "a\x00b", "a\udcffb", "a\u202eb", "word " * 3000, "x" * 200_000]  # fmt: skip


@maker
def prompt(rng: Random, folder: Path):
    """A prompt that says nothing, steers a terminal, is no text, or longer than any may be."""
    text = rng.choice(PROMPTS)
    words = ["plan", *SMALL[:-2], "-p", text]
    if text.strip() and rng.random() < 0.5:
        words[-2:] = ["--variant", "dev", "--stg-blocks", "1", "-p", "cat"]
        words += ["--negative-prompt", text]
    return repr(text[:20]), "prompt", lambda: typed(words)


CONVERT = [
    ["-q", "--q-bits", "{}"],
    ["-q", "--q-group-size", "{}"],
    ["--q-bits", "8"],
    ["--dtype", "int8"],
    ["--variant", "x"],
    ["--hf-path", ""],
    ["--hf-path", "none"],
    ["--hf-path", "/dev/null"],
    ["--hf-path", str(UPSCALER)],
    ["--mlx-path", ""],
    ["--mlx-path", "/proc/x"],
    ["--mlx-path", "~nosuchuser/x"],
    ["--mlx-path", str(UPSCALER)],
]


@maker
def convert(rng: Random, folder: Path):
    """A conversion that makes no sense."""
    number = rng.choice(["0", "1", "9", "-8", "x", "1.5", "", "99999999999999999999"])
    more = [word.format(number) for word in rng.choice(CONVERT)]
    words = ["convert"]
    if "--hf-path" not in more:
        words += ["--hf-path", str(CHECKPOINT)]
    if "--mlx-path" not in more:
        words += ["--mlx-path", str(folder / "new")]
    return " ".join(more), "error: ", lambda: typed([*words, *more])


@maker
def info(rng: Random, folder: Path):
    """A file that is of no use, which ``info`` has to say with its exit code too."""
    file = folder / rng.choice(["a.safetensors", "a.gguf", "config.json", "a.png"])
    content = rng.choice([*BYTES, rng.randbytes(64)])
    raw = bytearray(CHECKPOINT.read_bytes()) if rng.random() < 0.5 else None
    if raw:
        raw[rng.randrange(8)] ^= 1 << rng.randrange(8)
        content = bytes(raw[: len(raw) - rng.choice([0, 0, 1, 999])])
    file.write_bytes(content)
    return str(content[:20]), folder.name, lambda: typed(["info", str(file)])
