"""The Hugging Face hub: which files of a repository a run needs, how large they are, and where they are in the cache.

The only room that uses huggingface_hub. That cannot resume an interrupted download, so ``download`` receives the files.
Knows repositories, not tensors.
"""

from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import filter as matching
from json import JSONDecodeError
from pathlib import Path
from typing import Callable, Iterator, Mapping, Sequence

import huggingface_hub as hf
from huggingface_hub import constants

from mlx_video.disk import amount, is_there, short, typed_path
from mlx_video.errors import MissingFileError, UserError
from mlx_video.hub.download import (
    SMALL,
    UNFINISHED,
    Download,
    Missing,
    blob_of,
    check_room,
    folder_of,
    kept,
    receive,
)
from mlx_video.weights import shard_names

MODEL_REPO = "Lightricks/LTX-2"
# Not gated. The repositories that end in -8bit and -4bit hold the same model, smaller.
TEXT_ENCODER_REPO = "mlx-community/gemma-3-12b-it-bf16"
TEXT_ENCODER_FILES = ("*.json", "*.safetensors", "tokenizer*")

FEW = 3  # a plan of more files names only those of at least ``SMALL`` bytes


@dataclass(frozen=True)
class DownloadPlan:
    """What is left to download before the cache holds all files of ``repo`` that match ``patterns``.

    missing  name -> each file to download; empty if all are there
    commit   of the files
    terms    one line on the licence; empty if it is not known
    """

    repo: str
    patterns: tuple[str, ...]
    missing: Mapping[str, Missing]
    commit: str = ""
    terms: str = ""

    @property
    def bytes(self) -> int:
        """Bytes left to download, including ``kept``."""
        return sum(file.bytes for file in self.missing.values())

    @property
    def kept(self) -> int:
        """Bytes of these files that an interrupted download left."""
        return kept(self.repo, self.missing.values())

    def __str__(self) -> str:
        if not self.missing:
            return f"{self.repo}: everything needed is in the cache"
        sizes = {name: file.bytes for name, file in self.missing.items()}
        if len(sizes) > FEW:
            sizes = {name: size for name, size in sizes.items() if size >= SMALL}
        files = [f"{name} {amount(size)}" for name, size in sizes.items()]
        if others := len(self.missing) - len(sizes):
            files.append(f"{others} small files")
        kept = f", {amount(self.kept)} of it here already" if self.kept else ""
        terms = f"; {self.terms}" if self.terms else ""
        size = f"{amount(self.bytes)} to download ({', '.join(files)})"
        return f"{self.repo}: {size}{kept}{terms}"

    def fetch(self, notify: "Notify" = lambda what: None) -> Path:
        """Download what is missing, resuming an earlier download; returns the snapshot's folder.

        ``notify`` is called with its progress. Also asks the network where only links are missing: the cache may hold the
        file under another revision.
        """
        if folder := _snapshot(self.repo, self.patterns):
            return folder
        heard = Download(self.repo, self.missing.values(), notify)
        with heard, _explained(self.repo, self.patterns):
            for name, file in self.missing.items():
                url = hf.hf_hub_url(self.repo, name, revision=self.commit)
                for count in receive(url, self.repo, file):
                    heard.add(count)
            with hf.utils.disable_progress_bars():
                patterns = list(self.patterns)
                return Path(hf.snapshot_download(self.repo, allow_patterns=patterns))


# Is called with the plans before anything is downloaded, then with progress.
Notify = Callable[[DownloadPlan | Download], None]


def resolve(
    model: str | Path, patterns: Sequence[str], notify: Notify = lambda what: None
) -> Path:
    """``model`` itself if it is a path; else the snapshot of that repository, fetched if needed. Raises as ``plan`` does."""
    return local(model) or fetch([plan(str(model), patterns)], notify)[0]


def fetch(plans: Sequence[DownloadPlan], notify: Notify) -> list[Path]:
    """The snapshots of ``plans``; ``notify`` gets all plans before any fetch. Raises ``UserError`` if the disk is too full."""
    lacking = [plan for plan in plans if plan.missing]
    for plan in lacking:
        notify(plan)
    check_room(sum(plan.bytes - plan.kept for plan in lacking))
    return [plan.fetch(notify) for plan in plans]


def resolve_file(file: str | Path, notify: Notify = lambda what: None) -> Path:
    """``file`` itself if it is a path; else the hub's owner/repository/name.safetensors, fetched if needed."""
    if path := local(file, file=True):
        return path
    repo, (name,) = named(file)
    return resolve(repo, [name], notify) / name


def named(name: str | Path) -> tuple[str, Sequence[str]]:
    """The repository that ``name`` begins with, and the file after it; without one, the patterns of a text encoder's files."""
    owner, repo, *file = str(name).split("/", 2)
    return f"{owner}/{repo}", file or TEXT_ENCODER_FILES


def local(name: str | Path, *, file: bool = False) -> Path | None:
    """The local file or folder ``name``; ``None`` if it may be a hub repository, or with ``file`` a file in one.

    Raises ``MissingFileError`` if it can only be a path and does not exist. Uses no network.
    """
    path = typed_path(name)
    if is_there(path):
        return path
    first, slashes = str(name).split("/")[0], str(name).count("/")
    typed = path.is_absolute() or first in (".", "..") or is_there(Path(first))
    if typed or (slashes < 2 if file else slashes != 1):
        what, form = "file or folder", f"repository on the hub, give owner/name, such as {MODEL_REPO}"  # fmt: skip
        if file:
            what, form = "file", "file on the hub, give owner/repository/file"
        raise MissingFileError(f"There is no {what} {short(name)}. For a {form}.")
    return None


def plan(repo: str, patterns: Sequence[str]) -> DownloadPlan:
    """What fetching the files of ``repo`` that match ``patterns`` would download.

    Uses the network only if the cache lacks something. Raises ``MissingFileError`` if there is no such repository or file,
    or the hub cannot be reached, and ``UserError`` if the repository is gated.
    """
    patterns = tuple(patterns)
    if is_cached(repo, patterns):
        return DownloadPlan(repo, patterns, {})
    with _explained(repo, patterns):
        timeout = constants.HF_HUB_ETAG_TIMEOUT
        info = hf.model_info(repo, files_metadata=True, timeout=timeout)
        listed = {file.rfilename: file for file in info.siblings}
        found = {pattern: matching(listed, pattern) for pattern in patterns}
        if absent := [pattern for pattern, names in found.items() if not names]:
            raise MissingFileError(
                f"The Hugging Face repository {repo} has no file {', '.join(absent)}."
            )
        files = {name: listed[name] for names in found.values() for name in names}
        missing = {
            name: Missing(file.size, file.lfs.sha256 if file.lfs else file.blob_id)
            for name, file in files.items()
        }
        missing = {k: f for k, f in missing.items() if not blob_of(repo, f).is_file()}
        for name in [*missing][:1]:  # anyone can list a gated repository
            hf.get_hf_file_metadata(hf.hf_hub_url(repo, name))
    return DownloadPlan(repo, patterns, missing, info.sha)


def cached(name: str) -> Path | None:
    """The newest snapshot of the repository owner/name, or a file of it by owner/name/file, as far as it is in the cache.

    ``None`` if it is not there. Uses no network.
    """
    owner, _, rest = name.partition("/")
    repo, _, file = rest.partition("/")
    snapshots = _revisions(f"{owner}/{repo}") if owner and repo else []
    return next((s / file for s in snapshots if (s / file).exists()), None)


def cached_bytes(repo: str, patterns: Sequence[str]) -> int:
    """Bytes of the cached files, in any revision of ``repo``, that match ``patterns``; uses no network."""
    found = (file for p in patterns for file in _found(repo, f"snapshots/*/{p}"))
    return sum(file.stat().st_size for file in {file.resolve() for file in found})


def unfinished_bytes(repo: str) -> int:
    """Bytes in the cache of interrupted downloads of ``repo``, which will be resumed."""
    return sum(file.stat().st_size for file in _found(repo, f"blobs/*{UNFINISHED}"))


def _found(repo: str, pattern: str) -> list[Path]:
    """Files in the cache of ``repo``; empty if it cannot be read, which ``plan`` reports if it matters."""
    try:
        return [file for file in folder_of(repo).glob(pattern) if file.is_file()]
    except OSError:
        return []


def is_cached(repo: str, patterns: Sequence[str]) -> bool:
    """Whether a single cached snapshot has a file for each pattern, and every shard that an index names."""
    return _snapshot(repo, patterns) is not None


def _snapshot(repo: str, patterns: Sequence[str]) -> Path | None:
    """The folder of the newest cached revision that has all files; an even newer one may be incomplete."""
    with _explained(repo, patterns):
        for revision in (None, *(folder.name for folder in _revisions(repo))):
            try:
                folder = hf.snapshot_download(
                    repo,
                    revision=revision,
                    allow_patterns=list(patterns),
                    local_files_only=True,
                )
            except FileNotFoundError:
                continue
            if _is_whole(Path(folder), patterns):
                return Path(folder)
    return None


def _revisions(repo: str) -> list[Path]:
    """The cached snapshots, the newest first."""
    folders = (folder_of(repo) / "snapshots").glob("*")
    return sorted(folders, key=lambda folder: folder.stat().st_mtime, reverse=True)


def _is_whole(folder: Path, patterns: Sequence[str]) -> bool:
    names = [f.relative_to(folder).as_posix() for f in folder.rglob("*") if f.is_file()]
    found = [matching(names, pattern) for pattern in patterns]
    indices = {folder / n for ns in found for n in ns if n.endswith(".index.json")}
    shards = {index.parent / name for index in indices for name in shard_names(index)}
    return all(found) and all(shard.is_file() for shard in shards)


@contextmanager
def _explained(repo: str, patterns: Sequence[str]) -> Iterator[None]:
    """Turn errors of huggingface_hub into one sentence that says what to do."""
    from huggingface_hub import errors  # imports an HTTP client, not always needed

    missing = f"{repo} is not here: the cache lacks {', '.join(patterns)}, and"
    cache = constants.HF_HUB_CACHE
    try:
        yield
    except (UserError, errors.LocalEntryNotFoundError):
        raise
    except errors.HFValidationError:
        raise MissingFileError(
            f"{short(repo)} is neither a local file or folder nor the name of a Hugging Face repository such as {MODEL_REPO}."
        ) from None
    except errors.GatedRepoError as error:
        raise UserError(_gated(repo)) from error
    except errors.RepositoryNotFoundError as error:
        raise MissingFileError(
            f"There is no file or folder {repo} here, and no Hugging Face repository of that name that you can read. Check "
            f"the name; if it is private, {LOG_IN}."
        ) from error
    except errors.OfflineModeIsEnabled as error:
        raise MissingFileError(
            f"{missing} HF_HUB_OFFLINE blocks access to Hugging Face. Unset it and run again, or give the path of a file or "
            "folder."
        ) from error
    except errors.HfHubHTTPError as error:
        raise UserError(_answered(repo, error.response.status_code)) from error
    except (errors.HTTPError, ConnectionError, JSONDecodeError) as error:
        raise MissingFileError(
            f"{missing} Hugging Face cannot be reached. Connect and run again, or give the path of a file or folder."
        ) from error
    except OSError as error:
        raise UserError(
            f"The hub's cache {short(error.filename or cache)} cannot be used: {str(error.strerror or error).lower()}. "
            "Correct that, or set HF_HOME to another folder."
        ) from None


LOG_IN = "log in with `hf auth login` or set HF_TOKEN"


def _gated(repo: str) -> str:
    page = f"https://huggingface.co/{repo}"
    if hf.get_token() is None:
        return f"{repo} is gated: accept its licence at {page}, then {LOG_IN}."
    return (
        f"{repo} is gated, and your token may not read it: accept its licence at {page} with the same account, and let the "
        "token read gated repositories."
    )


def _answered(repo: str, status: int) -> str:
    """What an HTTP status means, and what to do."""
    match status:
        case 401:
            return (
                f"Hugging Face does not accept your token for {repo}; {LOG_IN} again."
            )
        case 403:
            return f"Your token may not read {repo} on Hugging Face; use another one."
        case 429:
            return f"Hugging Face got too many requests from here to send {repo}: wait a few minutes, or {LOG_IN}."
    return f"Hugging Face answered a request for {repo} with status {status}; try again later."
