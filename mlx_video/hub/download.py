"""Downloads a file of the hub into its cache, resuming an earlier download. Knows nothing of a repository's contents."""

import time
from contextlib import AbstractContextManager
from pathlib import Path
from shutil import disk_usage
from typing import Callable, Collection, Iterator, NamedTuple

import huggingface_hub as hf
from huggingface_hub import constants

from mlx_video.disk import GB, amount, duration, short
from mlx_video.errors import UserError
from mlx_video.verify import digest_like

UNFINISHED = ".mlx-video.incomplete"  # suffix of an incomplete file
SMALL = 10**7  # bytes; the progress of a smaller download is not reported
BLOCK = 2**20  # bytes that are read at once
TRIES = 5  # in a row without any bytes before a download fails
OFTEN = 0.2  # seconds between two reports of a download


class Missing(NamedTuple):
    """A file to download: its length, and its checksum, which is its name in the cache."""

    bytes: int
    checksum: str


class Download(AbstractContextManager):
    """Progress of downloading some files; within the block ``notify`` is called with it repeatedly.

    done, total  bytes
    tenth        whether this report completes a tenth
    waits        whether another process is downloading the next file
    ended        whether this is the last report, even if an error ended the download
    """

    def __init__(
        self,
        repo: str,
        files: Collection[Missing],
        notify: Callable[["Download"], None],
    ):
        self.repo, self._files = repo, files
        self.total, self.done = sum(file.bytes for file in files), kept(repo, files)
        self.tenth = self.waits = self.ended = False
        self._notify = notify if self.total >= SMALL else lambda what: None
        self._first, self._began = self.done, time.monotonic()
        self._told = self._began

    def add(self, count: int) -> None:
        """Count ``count`` more bytes as received; none = a wait for another process begins."""
        self.waits = not count
        self.tenth = 10 * self.done // self.total < 10 * (self.done + count) // self.total  # fmt: skip
        self.done += count
        now = time.monotonic()
        tenth = self.tenth and self.done < self.total
        if tenth or self.waits or now - self._told >= OFTEN:
            self._told = now
            self._notify(self)

    def __exit__(self, kind, error: BaseException | None, _) -> None:
        self.ended = True
        self._notify(self)
        if error and (here := kept(self.repo, self._files)):
            part = f"{amount(here)} of {amount(self.total)} of {self.repo} are kept"
            error.add_note(f"{part}; the next run continues from there.")

    def __str__(self) -> str:
        if self.waits:
            cause = "another process that downloads the same file"
            return f"{self.repo}: waiting for {cause}"
        speed = (self.done - self._first) / (time.monotonic() - self._began + 1e-9)
        left = (self.total - self.done) / speed if speed else 0
        minutes = f", about {duration(left)} left" if left else ""
        done = f"{self.done / GB:.2f} of {amount(self.total)}"
        return f"{self.repo}: {done}, {speed / 1e6:.1f} MB/s{minutes}"


def check_room(size: int) -> None:
    """Raise ``UserError`` if the disk of the cache has less than ``size`` bytes free."""
    cache = Path(constants.HF_HUB_CACHE)
    disk = next(folder for folder in (cache, *cache.parents) if folder.exists())
    if (free := disk_usage(disk).free) < size:
        raise UserError(
            f"{amount(size)} must be downloaded to {short(cache)}, but its disk has {amount(free)} free. Free some space, "
            "or set HF_HOME to a folder on another disk."
        )


def receive(url: str, repo: str, file: Missing) -> Iterator[int]:
    """Download a file of ``repo`` into the cache, yielding each piece's bytes; 0 before waiting for another process.

    Raises ``UserError`` for a wrong checksum.
    """
    blob, unfinished = blob_of(repo, file), unfinished_of(repo, file)
    locks = Path(constants.HF_HUB_CACHE, ".locks", folder_of(repo).name)
    for folder in (blob.parent, locks):
        folder.mkdir(parents=True, exist_ok=True)
    lock = locks / f"{file.checksum}.lock"
    if _is_taken(lock):
        yield 0
    with hf.utils.WeakFileLock(lock):
        if blob.is_file():  # another program fetched it meanwhile
            yield file.bytes
            return
        digest = digest_like(file.checksum, file.bytes)
        with open(unfinished, "a+b") as stream:
            stream.seek(0)
            while block := stream.read(BLOCK):
                digest.update(block)
            for piece in _pieces(url, stream.tell(), file.bytes):
                stream.write(piece)
                digest.update(piece)
                yield len(piece)
        if digest.hexdigest() != file.checksum:
            unfinished.unlink()
            raise UserError(
                f"{url} did not match its checksum on Hugging Face and was removed. Run again to download it."
            )
        unfinished.replace(blob)


def _is_taken(lock: Path) -> bool:
    try:
        with hf.utils.WeakFileLock(lock, timeout=0.01):
            return False
    except TimeoutError:
        return True


def _pieces(url: str, start: int, end: int) -> Iterator[bytes]:
    """The bytes of a file from ``start`` to ``end``; reconnects as long as more bytes arrive."""
    from huggingface_hub.errors import HfHubHTTPError, HTTPError

    tries = 0
    while start < end:
        before, fault = start, None
        headers = {"Range": f"bytes={start}-", "Accept-Encoding": "identity"}
        try:
            with hf.utils.http_stream_backoff(
                "GET",
                url,
                headers=hf.utils.build_hf_headers(headers=headers),
                timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT,
                retry_on_exceptions=(),
                retry_on_status_codes=429,
            ) as answer:
                hf.utils.hf_raise_for_status(answer)
                skip = start if answer.status_code == 200 else 0  # ranges ignored
                for piece in answer.iter_bytes():
                    piece, skip = piece[skip:], max(0, skip - len(piece))
                    start += len(piece)
                    yield piece
        except HTTPError as error:
            if isinstance(error, HfHubHTTPError) and error.response.status_code < 500:
                raise
            fault = error
        tries = 0 if start > before else tries + 1
        if tries > TRIES:
            raise fault or ConnectionError("no more bytes arrive")
        if start < end:
            time.sleep(tries)


def folder_of(repo: str) -> Path:
    """The cache's folder of a repository."""
    return Path(constants.HF_HUB_CACHE, f"models--{repo.replace('/', '--')}")


def blob_of(repo: str, file: Missing) -> Path:
    """Where the cache keeps a whole file."""
    return folder_of(repo) / "blobs" / file.checksum


def unfinished_of(repo: str, file: Missing) -> Path:
    """Where an interrupted download of a file waits."""
    return blob_of(repo, file).with_name(f"{file.checksum}{UNFINISHED}")


def kept(repo: str, files: Collection[Missing]) -> int:
    """Bytes of ``files`` in the cache, complete or not."""
    places = {place(repo, file) for file in files for place in (blob_of, unfinished_of)}
    return sum(place.stat().st_size for place in places if place.is_file())
