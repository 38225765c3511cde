"""The files that a run writes: their names, whether they can be written, and how much space they need."""

import os
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Mapping, Sequence

from mlx_video import disk
from mlx_video.disk import is_there, short, typed_path
from mlx_video.errors import UserError
from mlx_video.request import Request
from mlx_video.types import CLIP_SUFFIXES, FRAME_FILES, SILENT_SUFFIXES, VideoPixelShape

LONGEST_NAME = 200  # bytes of a file name, leaving room for the names beside it
LATENTS, STATE = ".latents.safetensors", ".state.safetensors"
# The most bytes per pixel of a frame in practice: H.264 at our quality, and PNG.
CLIP_BYTES, PNG_BYTES = 0.5, 3.5
WAV_BYTES = 2 * 2 * 48000  # per second, at most
SPARE = disk.GB // 50  # for the record and for other programs


@dataclass(frozen=True)
class Output:
    """The files that a run may write. Latents, state and record are beside the clip.

    overwrite  whether to replace an existing clip, record, sound and frames; latents and states are never replaced
    """

    path: Path
    audio: Path | None = None
    frames: Path | None = None
    overwrite: bool = False

    @property
    def record(self) -> Path:
        """x.json beside x.mp4; but x.gif.json beside x.gif, which may be another clip."""
        if self.path.suffix.lower() == ".mp4":
            return self.path.with_suffix(".json")
        return self.path.with_name(f"{self.path.name}.json")

    @property
    def latents(self) -> Path:
        """Where sampled latents stay until they are decoded."""
        return self.path.with_suffix(LATENTS)

    @property
    def state(self) -> Path:
        """Where the state of unfinished sampling stays."""
        return self.path.with_suffix(STATE)

    def remembered(self) -> dict[str, str]:
        """Metadata for latents and state, with relative paths, so that finishing them writes the same files."""
        folder = self.path.parent.absolute()
        paths = {"output": self.path, "audio": self.audio, "frames": self.frames}
        return {k: os.path.relpath(p.absolute(), folder) for k, p in paths.items() if p}

    @classmethod
    def recalled(cls, left: Path, words: Mapping[str, str]) -> "Output":
        """The output that ``remembered`` stored in the file ``left``; by default named after ``left``."""
        named = {k: typed_path(words[k]) for k in ("output", "audio", "frames") if words.get(k)}  # fmt: skip
        usual = f"{left.name.partition('.')[0]}.mp4"
        name = named.pop("output", Path()).name or usual
        return cls(left.with_name(name), **{k: left.parent / p for k, p in named.items()})  # fmt: skip

    def check(self, request: Request) -> None:
        """Raise ``UserError`` if a file could not be written after a long run, or would replace an input of the clip."""
        if self.audio and not request.audio:
            raise UserError(
                f"--output-audio {short(self.audio)} needs a clip with sound; add --audio."
            )
        _check_target(self.path, CLIP_SUFFIXES, self.overwrite)
        _check_target(self.record, (".json",), self.overwrite)
        if self.audio:
            _check_target(self.audio, (".wav",), self.overwrite)
        if self.frames:
            self._check_frames(self.frames)
        for file in (file for given in request.inputs for file in given.files):
            if self._replaces(Path(file).resolve()):
                raise UserError(
                    f"{short(file)} is an input of this clip and would be replaced; choose another --save-frames or "
                    "--output-audio."
                )

    def _replaces(self, file: Path) -> bool:
        frames = self.frames and file.parent == self.frames.resolve()
        own = (path and path.resolve() for path in (self.path, self.record, self.audio))
        return bool(frames and file.match(FRAME_FILES)) or file in own

    def _check_frames(self, folder: Path) -> None:
        if is_there(folder) and not folder.is_dir():
            raise UserError(f"--save-frames {short(folder)} is a file; name a folder.")
        _check_folder(folder, folder)
        if folder.is_dir() and any(folder.glob("*.png")) and not self.overwrite:
            raise UserError(
                f"{short(folder)} holds PNG files; choose another --save-frames, or add --overwrite to replace "
                f"its {FRAME_FILES}."
            )

    def notices(self, audio: bool) -> tuple[str, ...]:
        """Warnings about what the files cannot hold; ``audio`` = whether the clip has sound."""
        suffix = self.path.suffix.lower()
        if not audio or suffix not in SILENT_SUFFIXES:
            return ()
        return (
            f"{short(self.path)} will be silent, because {suffix} files have no sound. Use .mp4 to keep it.",
        )

    @property
    def left(self) -> tuple[Path, str] | None:
        """A file that an unfinished run left under this name, and the command that finishes it."""
        ways = {self.latents: "decode", self.state: "generate --resume"}
        for file, command in ways.items():
            if os.path.lexists(file):
                return file, f"mlx-video {command} {shlex.quote(str(file))}"
        return None

    def check_unfinished(self) -> None:
        """Raise ``UserError`` if an unfinished run left work under this name, which is never replaced."""
        if self.left:
            file, command = self.left
            raise UserError(
                f"{short(file)} was left by a run that did not finish. Finish it with `{command}`, or choose another name, "
                "or remove it."
            )

    def check_space(self, shape: VideoPixelShape, latents: int) -> None:
        """Raise ``DiskFullError`` if a disk lacks the space for a run of ``shape``; ``latents`` in bytes."""
        pixels = shape.frames * shape.height * shape.width
        sizes = [(self.path.parent, pixels * CLIP_BYTES + 2 * latents + SPARE)]
        if self.audio:
            sizes.append((self.audio.parent, shape.seconds * WAV_BYTES))
        if self.frames:
            sizes.append((self.frames, pixels * PNG_BYTES))
        disk.check_space((_existing(f.absolute()), size) for f, size in sizes)


def clip_path(typed: str | Path, prompt: str, seed: int) -> Path:
    """The typed file; in a folder (it ends in / or exists), a name after the prompt and the seed."""
    path = typed_path(typed)
    if str(typed).endswith("/") or path.is_dir() and not path.suffix:
        return named_after(path, prompt, seed)
    return path


def named_after(folder: Path, prompt: str, seed: int) -> Path:
    """A free name in ``folder`` for a clip of ``prompt``: a-red-ball-7.mp4, or a-red-ball-7-2.mp4 if that is taken."""
    words = re.sub(r"[^\w]+", "-", prompt.lower()).strip("-_")
    while len(os.fsencode(words)) > 60:
        words = words[:-1]
    stem, number = f"{words.rstrip('-_') or 'clip'}-{seed}", 2
    path = folder / f"{stem}.mp4"
    while any(map(os.path.lexists, _all_of(path))):
        path = path.with_stem(f"{stem}-{number}")
        number += 1
    return path


def _all_of(path: Path) -> tuple[Path, ...]:
    output = Output(path)
    return output.path, output.record, output.latents, output.state, disk.lock_of(path)


def _check_target(path: Path, suffixes: Sequence[str], overwrite: bool) -> None:
    if path.name.lower() in suffixes:
        raise UserError(
            f"{short(path)} is a suffix without a name; try clip{path.name}."
        )
    if path.suffix.lower() not in suffixes:
        raise UserError(
            f"{short(path)} does not end in {disk.any_of(suffixes)}; try {short(path.with_suffix(suffixes[0]))}."
        )
    _check_folder(path.parent, path)
    if len(os.fsencode(path.name)) > LONGEST_NAME:
        raise UserError(
            f"The name {path.name[:40]}... is too long; use at most {LONGEST_NAME} bytes."
        )
    if path.is_dir():
        raise UserError(f"{short(path)} is a folder; choose another --output-path.")
    disk.check_free(path, overwrite)


def _check_folder(folder: Path, path: Path) -> None:
    """Raise ``UserError`` if ``path`` cannot be written in ``folder``, which is created if it is missing."""
    there = _existing(folder)
    if not there.is_dir():
        raise UserError(
            f"{short(there)} is a file, so it cannot contain {path.name}; choose a folder."
        )
    if not os.access(there, os.W_OK | os.X_OK):
        raise UserError(
            f"The folder {short(there)} is not writable: permission denied. Choose another."
        )


def _existing(folder: Path) -> Path:
    """``folder``, or its nearest parent that exists."""
    while not is_there(folder):
        folder = folder.parent
    return folder
