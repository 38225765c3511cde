"""The Hugging Face hub: which files a run needs of a repository, how large they are, and where they are in the cache.

The only module that uses huggingface_hub, which resumes, verifies and caches. Knows repositories, not tensors.
"""

from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import filter as matching
from pathlib import Path
from typing import Callable, Iterator, Mapping, Sequence

import huggingface_hub as hf
from huggingface_hub import constants

from mlx_video.disk import is_there, short, typed_path
from mlx_video.errors import MissingFileError, UserError
from mlx_video.weights import shard_names

MODEL_REPO = "Lightricks/LTX-2"
MODEL_FILE = "ltx-2-19b-{variant}.safetensors"
UPSAMPLER_FILE = "ltx-2-spatial-upscaler-x2-1.0.safetensors"
DISTILLED_LORA_FILE = "ltx-2-19b-distilled-lora-384.safetensors"

# Not gated. The repositories that end in -8bit and -4bit hold the same model, smaller.
TEXT_ENCODER_REPO = "mlx-community/gemma-3-12b-it-bf16"
TEXT_ENCODER_FILES = ("*.json", "*.safetensors", "tokenizer*")


@dataclass(frozen=True)
class Plan:
    """What is left to download before the cache holds all files of ``repo`` that match ``patterns``.

    missing  name -> bytes of each file to download; empty if all are there
    terms    the licence, in a line; empty where it is not known
    """

    repo: str
    patterns: tuple[str, ...]
    missing: Mapping[str, int]
    terms: str = ""

    @property
    def bytes(self) -> int:
        return sum(self.missing.values())

    def __str__(self) -> str:
        if not self.missing:
            return f"{self.repo}: everything needed is in the cache"
        files = ", ".join(f"{k} {v / 1e9:.2f} GB" for k, v in self.missing.items())
        terms = f"; {self.terms}" if self.terms else ""
        return f"{self.repo}: {self.bytes / 1e9:.2f} GB to download ({files}){terms}"

    def fetch(self) -> Path:
        """Download what is missing, resuming an interrupted download; returns the snapshot's folder.

        Also asks the network where only links are missing: the cache may hold the file under another revision.
        """
        with _explained(self.repo, self.patterns):
            folder = hf.snapshot_download(
                self.repo,
                allow_patterns=list(self.patterns),
                local_files_only=is_cached(self.repo, self.patterns),
            )
        return Path(folder)


Announce = Callable[[Plan], None]


def resolve(
    model: str | Path,
    patterns: Sequence[str],
    announce: Announce = lambda plan: None,
) -> Path:
    """``model`` itself if it is a path; else the snapshot of that repository, fetched as far as needed.

    ``announce`` hears the plan before anything is downloaded. Raises as ``plan`` does.
    """
    if path := local(model):
        return path
    files = plan(str(model), patterns)
    if files.missing:
        announce(files)
    return files.fetch()


def resolve_file(file: str | Path, announce: Announce = lambda plan: None) -> Path:
    """``file`` itself if it is a path; else the hub's owner/repository/name.safetensors, fetched if needed."""
    if path := local(file, file=True):
        return path
    repo, _, name = str(file).rpartition("/")
    return resolve(repo, [name], announce) / name


def local(name: str | Path, *, file: bool = False) -> Path | None:
    """The local file or folder of that name; ``None`` where it may be a hub repository, or with ``file`` a file in one.

    Raises ``MissingFileError`` where it can only be a path, and is not there. Uses no network.
    """
    path = typed_path(name)
    if is_there(path):
        return path
    first = path.parts[0]
    typed = path.is_absolute() or first in (".", "..") or is_there(Path(first))
    if typed or str(name).count("/") != (2 if file else 1):
        what, way = "file or folder", f"hub repository is named owner/name, such as {MODEL_REPO}"  # fmt: skip
        if file:
            what, way = "file", "file of the hub is named owner/repository/file"
        raise MissingFileError(f"There is no {what} {short(name)}, and a {way}.")
    return None


def plan(repo: str, patterns: Sequence[str]) -> Plan:
    """What fetching the files of ``repo`` that match ``patterns`` would download.

    Uses the network only if the cache lacks something. Raises ``MissingFileError`` where there is no such repository or
    file, or the hub cannot be reached, and ``UserError`` where the repository is gated.
    """
    patterns = tuple(patterns)
    if is_cached(repo, patterns):
        return Plan(repo, patterns, {})
    with _explained(repo, patterns):
        files = hf.snapshot_download(repo, allow_patterns=list(patterns), dry_run=True)
    names = [file.filename for file in files]
    if absent := [p for p in patterns if not matching(names, p)]:
        raise MissingFileError(
            f"The Hugging Face repository {repo} has no file {', '.join(absent)}."
        )
    missing = {f.filename: f.file_size or 0 for f in files if f.will_download}
    return Plan(repo, patterns, missing)


def has(repo: str, file: str) -> bool:
    """Whether the cache holds ``file`` of any revision of ``repo``; uses no network.

    Any, because the newest cached revision may hold only the file that was fetched last.
    """
    return bool(_found(repo, f"snapshots/*/{file}"))


def cached_bytes(repo: str, patterns: Sequence[str]) -> int:
    """Bytes in the cache of the files of any revision of ``repo`` that match ``patterns``."""
    found = (file for p in patterns for file in _found(repo, f"snapshots/*/{p}"))
    return sum(file.stat().st_size for file in {file.resolve() for file in found})


def unfinished_bytes(repo: str) -> int:
    """Bytes in the cache of downloads of ``repo`` that were interrupted, and will be resumed."""
    return sum(file.stat().st_size for file in _found(repo, "blobs/*.incomplete"))


def _found(repo: str, pattern: str) -> list[Path]:
    """Files in the cache of ``repo``; empty if it cannot be read, which ``plan`` reports to those who need it."""
    folder = Path(constants.HF_HUB_CACHE, f"models--{repo.replace('/', '--')}")
    try:
        return [file for file in folder.glob(pattern) if file.is_file()]
    except OSError:
        return []


def is_cached(repo: str, patterns: Sequence[str]) -> bool:
    """Whether the cached snapshot has a file for each pattern, and every shard that an index names."""
    try:
        with _explained(repo, patterns):
            folder = hf.snapshot_download(
                repo, allow_patterns=list(patterns), local_files_only=True
            )
    except FileNotFoundError:
        return False
    folder = Path(folder)
    names = [f.relative_to(folder).as_posix() for f in folder.rglob("*") if f.is_file()]
    found = [matching(names, pattern) for pattern in patterns]
    indices = {folder / n for ns in found for n in ns if n.endswith(".index.json")}
    shards = {index.parent / name for index in indices for name in shard_names(index)}
    return all(found) and all(shard.is_file() for shard in shards)


@contextmanager
def _explained(repo: str, patterns: Sequence[str]) -> Iterator[None]:
    """Turn what huggingface_hub raises into one sentence that says what to do."""
    from huggingface_hub import errors  # with an HTTP client that local files need not

    unreachable = (
        errors.HTTPError,
        errors.DryRunError,
        errors.LocalEntryNotFoundError,
        ConnectionError,
    )
    cache = constants.HF_HUB_CACHE
    try:
        yield
    except UserError:
        raise
    except errors.HFValidationError:
        raise MissingFileError(
            f"{short(repo)} is neither a local file or folder nor the name of a Hugging Face repository such as {MODEL_REPO}."
        ) from None
    except unreachable as error:
        cause = error.__cause__ or error
        if isinstance(cause, errors.GatedRepoError):
            raise UserError(
                f"{repo} is gated: accept its licence at https://huggingface.co/{repo}, then log in with `hf auth login`."
            ) from error
        if isinstance(cause, errors.RepositoryNotFoundError):
            raise MissingFileError(
                f"There is no file or folder {repo} here, and no Hugging Face repository of that name that you can read."
            ) from error
        raise MissingFileError(
            f"{repo} is not here: the cache lacks {', '.join(patterns)}, and Hugging Face cannot be reached. "
            "Connect and run again, or give the path of a file or folder."
        ) from error
    except OSError as error:
        raise UserError(
            f"The hub's cache {short(error.filename or cache)} cannot be used: {str(error.strerror or error).lower()}. "
            "Make it readable, or name another in HF_HOME."
        ) from None
