"""Safe files: typed paths, names that one run owns, files written aside, free space, errors in a sentence. Knows no format."""

import errno
import fcntl
import os
import re
import secrets
import shutil
import stat
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Iterable, Iterator, Sequence

from mlx_video.errors import DiskFullError, MissingFileError, UserError

LONGEST_NAME = 255  # bytes of a file's name on all common file systems
ASIDE = ".partial-"  # in the name of an unfinished file
LOCK = ".mlx-video.lock"
GB = 10**9
BLOCK = 2**20  # bytes written at once
FULL = (errno.ENOSPC, errno.EDQUOT)
MAKE_ROOM = "Free some space, or choose another folder."


# Paths as people type them


def typed_path(text: str | Path) -> Path:
    """The path that was typed, with ~ expanded.

    Raises ``UserError`` for a path that cannot exist: empty, with an unknown user, or too long.
    """
    if not str(text) or "\0" in str(text):
        fault = "holds a zero byte" if str(text) else "is empty"
        raise UserError(f"A path {fault}; give the name of a file or folder.")
    try:
        path = Path(text).expanduser()
    except RuntimeError:
        user = Path(text).parts[0]
        raise UserError(
            f"There is no user {short(user[1:])} here, so {short(text)} is not a path."
        ) from None
    if any(len(os.fsencode(part)) > LONGEST_NAME for part in path.parts):
        raise UserError(
            f"The name {short(path)} is too long; use at most {LONGEST_NAME} bytes."
        )
    return path


def full_path(name: str) -> str:
    """The full path of an existing file or folder; any other name, such as a repository's, unchanged."""
    path = typed_path(name)
    return str(path.resolve()) if is_there(path) else name


def is_there(path: Path) -> bool:
    """Whether ``path`` exists; raises ``UserError`` if a folder may not be entered."""
    with file_errors(path):
        return path.exists()


@contextmanager
def file_errors(path: str | Path, doing: str = "read") -> Iterator[None]:
    """Turn a system error about ``path`` ("[Errno 13] ...") into a sentence; ``doing`` is "read" or "written"."""
    try:
        yield
    except UserError:
        raise
    except FileNotFoundError:
        if doing != "read":
            raise UserError(
                f"{short(path)} cannot be {doing}: it is missing or takes no files."
            ) from None
        raise MissingFileError(f"There is no file or folder {short(path)}.") from None
    except OSError as error:
        why = (error.strerror or str(error)).lower()
        if isinstance(error, FileExistsError):  # where a folder should be made
            why = "it is a file; name a folder"
        name = re.sub(rf"\.([^/]+){ASIDE}[0-9a-f]+", r"\1", str(path))
        said = f"{short(name)} cannot be {doing}: {why}."
        if error.errno in FULL:
            raise DiskFullError(f"{said} {MAKE_ROOM}") from None
        raise UserError(said) from None


def short(text: object, most: int = 120) -> str:
    """``text`` for a message; only its end if it is longer than ``most`` characters."""
    text = str(text)
    return text if len(text) <= most else f"...{text[3 - most:]}"


def file_size(file: Path) -> int:
    """The length of a file in bytes. Raises ``UserError`` for folders, and for pipes and devices, which may block forever."""
    with file_errors(file):
        found = os.stat(file)
    if not stat.S_ISREG(found.st_mode):
        raise UserError(
            f"{short(file)} is not a regular file; give one that is not a folder, pipe or device."
        )
    return found.st_size


def read_small(path: Path, most: int = 2**20) -> str:
    """The text of a file written by hand; refuses pipes, devices and anything longer than ``most`` bytes."""
    if (size := file_size(path)) > most:
        raise UserError(
            f"{short(path)} is too large: {size:,} bytes; at most {most:,} are allowed."
        )
    try:
        with file_errors(path):
            return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{short(path)} is not UTF-8 text, from byte {error.start} on."
        ) from None


# Files written aside


@contextmanager
def written_aside(path: str | Path, overwrite: bool = False) -> Iterator[Path]:
    """A temporary file beside ``path`` that becomes ``path`` if the block succeeds and is removed if it fails.

    Raises ``UserError`` if ``path`` exists, unless ``overwrite``. If it appears while the block runs, the result is kept
    under another name, which the error states.
    """
    path = Path(path)
    if not is_there(path.parent):
        raise MissingFileError(
            f"There is no folder {short(path.parent)} to write {path.name} in."
        )
    check_free(path, overwrite)
    with _aside(path) as partial, file_errors(path, "written"):
        yield partial
        if overwrite:
            partial.replace(path)
        else:
            _take_name(partial, path)


@contextmanager
def reserved(path: Path, size: int) -> Iterator[Path]:
    """A file that reserves ``size`` bytes of the disk for ``path``; remove it before writing that.

    Raises ``UserError`` if there is no room. It holds random bytes, since some file systems compress others.
    """
    with _aside(path) as room:
        with file_errors(path, "written"), open(room, "wb") as file:
            for start in range(0, size, BLOCK):
                file.write(os.urandom(min(BLOCK, size - start)))
            os.fsync(file.fileno())
        yield room


@contextmanager
def folder_aside(folder: Path) -> Iterator[Path]:
    """A temporary folder beside ``folder`` that becomes it if the block succeeds and is removed if it fails.

    Raises ``UserError`` if ``folder`` exists and is not empty, or another process is writing it.
    """
    with file_errors(folder):
        taken = folder.exists() and (not folder.is_dir() or any(folder.iterdir()))
    if taken:
        raise UserError(
            f"{folder} already exists and is not empty; choose a new folder, or remove it first."
        )
    with folder_made(folder.parent), owned(folder, folder.name):
        scratch = folder.with_name(f".{folder.name}{ASIDE}{secrets.token_hex(8)}")
        try:
            with file_errors(folder, "written"):
                scratch.mkdir()
                yield scratch
                scratch.rename(folder)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


@contextmanager
def folder_made(folder: Path) -> Iterator[None]:
    """Make a folder and its missing parents; if the block fails, remove those of them that are empty."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        with file_errors(folder, "made"):
            folder.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        for path in missing:
            with suppress(OSError):
                path.rmdir()
        raise


def check_free(path: Path, overwrite: bool = False) -> None:
    """Raise ``UserError`` if ``path`` exists, even as a dangling link, unless ``overwrite``."""
    if os.path.lexists(path) and not overwrite:
        raise UserError(
            f"{short(path)} exists; choose another name, or replace it with --overwrite (in Python overwrite=True)."
        )


@contextmanager
def _aside(path: Path) -> Iterator[Path]:
    """A new file with the usual permissions under a name that cannot be guessed; removed afterwards if it is still there."""
    token = secrets.token_hex(8)
    partial = path.with_name(f".{path.name}{ASIDE}{token}{path.suffix}")
    with file_errors(path.parent, "written to"):
        os.close(os.open(partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    try:
        yield partial
    finally:
        partial.unlink(missing_ok=True)


def _take_name(partial: Path, path: Path) -> None:
    """Rename ``partial`` to ``path``, or to path-2, path-3, ... if another program took that meanwhile."""
    name, number = path, 1
    while not _linked(partial, name):
        number += 1
        name = path.with_stem(f"{path.stem}-{number}")
    if name != path:
        raise UserError(
            f"Another program wrote {short(path)} during this run; the run's own result is in {short(name)}."
        )


def _linked(partial: Path, name: Path) -> bool:
    """Atomically rename ``partial`` to ``name`` if that is free; returns whether it was."""
    try:
        os.link(partial, name)
    except FileExistsError:
        return False
    except OSError:  # a file system without hard links
        if os.path.lexists(name):
            return False
        partial.rename(name)
    return True


# Names that a run owns


@contextmanager
def owned(path: Path, name: str | None = None) -> Iterator[None]:
    """Own the name ``path``, with any suffix, while the block runs; only one run at a time can.

    Removes what dead runs left in that folder. ``name`` replaces the path's stem.
    """
    lock = lock_of(path, name)
    file = locked(lock)
    if file is None:
        raise UserError(
            f"Another run is writing {short(path)}; choose another name, or wait for it to finish."
        )
    try:
        _clean_up(path.parent, lock)
        yield
    finally:
        lock.unlink(missing_ok=True)
        os.close(file)


def lock_of(path: Path, name: str | None = None) -> Path:
    """The lock file for ``path`` with any suffix, or for ``name`` instead."""
    return path.with_name(f".{name or path.stem}{LOCK}")


def locked(lock: Path) -> int | None:
    """An open file that holds the lock until the process ends; ``None`` = another process holds it."""
    while True:
        with file_errors(lock.parent, "written to"):
            file = os.open(lock, os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW, 0o666)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(file)
            return None
        except OSError:
            return file  # a file system without locks
        # Another run may have removed the file after we opened it and before we locked it.
        if lock.exists() and os.path.samestat(os.fstat(file), os.stat(lock)):
            return file
        os.close(file)


def _clean_up(folder: Path, ours: Path) -> None:
    """Remove the locks of dead runs, and the unfinished files of those runs and of the last owner of ``ours``."""
    for lock in folder.glob(f".*{LOCK}"):
        file = None if lock == ours else locked(lock)
        if lock == ours or file is not None:
            for left in _unfinished(folder, lock.name.removesuffix(LOCK)):
                with suppress(OSError):  # of a folder
                    left.unlink()
                shutil.rmtree(left, ignore_errors=True)
        if file is not None:
            lock.unlink(missing_ok=True)
            os.close(file)


def _unfinished(folder: Path, name: str) -> Iterator[Path]:
    """What was written aside for ".name": ".name.mp4.partial-...", but not ".name.more.mp4.partial-..."."""
    own = rf"{re.escape(name)}(\.[^.]*)?(\.safetensors)?{re.escape(ASIDE)}.*"
    return (file for file in folder.iterdir() if re.fullmatch(own, file.name))


# Room


def check_space(needs: Iterable[tuple[Path, float]]) -> None:
    """Raise ``DiskFullError`` if the disk of a folder has too little space for the bytes to write there."""
    disks: dict[int, tuple[Path, float]] = {}
    for folder, size in needs:
        disk = os.stat(folder).st_dev
        disks[disk] = folder, size + disks.get(disk, (folder, 0))[1]
    for folder, size in disks.values():
        free = shutil.disk_usage(folder).free
        if free < size:
            raise DiskFullError(
                f"{short(folder)} has {amount(free)} free, and this run may write {amount(size)} there. {MAKE_ROOM}"
            )


def amount(size: float) -> str:
    """A number of bytes, for a message."""
    return f"{size / GB:.2f} GB" if size >= GB / 100 else f"{size / 1e6:.2f} MB"


def duration(seconds: float) -> str:
    """A length of time, for a message."""
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


def any_of(words: Sequence[str]) -> str:
    """Words as a sentence lists them: ".mp4, .mov or .gif"."""
    return " or ".join([", ".join(words[:-1])] * (len(words) > 1) + [words[-1]])
