"""The videos of a server: rows in SQLite and files beside them, in a folder that one server owns. Knows no HTTP.

A row is written before its response is sent, and a file is renamed into place when complete. So no finished clip and no
queued job is lost if the server is killed; the next server queues a running job again.
"""

import json
import logging
import os
import secrets
import sqlite3
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Iterator, Literal, Mapping, Sequence

from mlx_video.disk import file_errors, locked
from mlx_video.errors import UserError

log = logging.getLogger(__name__)

Status = Literal["queued", "in_progress", "completed", "failed"]
OPEN, ENDED = ("queued", "in_progress"), ("completed", "failed")
HARMLESS = {".DS_Store", "lost+found"}  # which systems put into empty folders
FULL_SECONDS = 600  # to wait for space on a full disk

SCHEMA = """
CREATE TABLE IF NOT EXISTS videos (
    number INTEGER PRIMARY KEY AUTOINCREMENT,  -- the order of the queue
    id TEXT NOT NULL UNIQUE,
    status TEXT NOT NULL,
    progress INTEGER NOT NULL DEFAULT 0,       -- percent
    phase TEXT NOT NULL DEFAULT '',
    request TEXT NOT NULL,                     -- JSON, as schema.VideoRequest writes it
    remixed_from TEXT,
    created_at REAL NOT NULL,                  -- Unix seconds, as all times here
    started_at REAL,
    completed_at REAL,
    error_code TEXT,
    error_message TEXT,
    notices TEXT NOT NULL DEFAULT '[]'         -- JSON, sentences
);
CREATE INDEX IF NOT EXISTS by_status ON videos (status, number);
"""


@dataclass(frozen=True)
class Video:
    """A row: a job and its outcome. ``progress`` is 0 to 100; times are Unix seconds."""

    number: int
    id: str
    status: Status
    progress: int
    phase: str
    request: Mapping[str, object]
    remixed_from: str | None
    created_at: float
    started_at: float | None
    completed_at: float | None
    error_code: str | None
    error_message: str | None
    notices: Sequence[str]

    @property
    def seconds_left(self) -> float | None:
        """An estimate from the progress so far; ``None`` if there is none yet, or it is not being made."""
        if self.status != "in_progress" or self.progress < 5:
            return None
        spent = time.time() - self.started_at
        return round(spent * (100 - self.progress) / self.progress, 1)


class Store:
    """The rows and files of a folder. Safe to use from several threads of the process that holds it.

    clips    the folder of finished clips, their pictures and records
    uploads  the folder of pictures that came with requests
    Raises ``UserError`` if the folder cannot be used or another server holds it.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.clips, self.uploads = folder / "clips", folder / "uploads"
        with file_errors(folder, "used"):
            folder.mkdir(parents=True, exist_ok=True)
            _check_own(folder)
            self._held = locked(folder / "server.lock")
            if self._held is None:
                raise UserError(
                    f"Another server uses the folder {folder}; stop it, or choose another with --data."
                )
            self.clips.mkdir(exist_ok=True)
            self.uploads.mkdir(exist_ok=True)
        self._lock, self._reads = threading.RLock(), threading.Lock()
        # One connection to write and one to read, so that reading never waits for the disk.
        self._rows, self._reading = _connected(folder), _connected(folder)
        self._rows.execute("PRAGMA journal_mode = WAL")
        self._rows.execute("PRAGMA synchronous = FULL")
        self._rows.executescript(SCHEMA)
        self._bytes: int | None = None
        self._take_up()

    def close(self) -> None:
        """Release the rows and the folder, for another server."""
        self._reading.close()
        self._rows.close()
        os.close(self._held)

    def file(self, id: str, suffix: str) -> Path:
        """The path of a file of a video: ``.mp4``, ``.webp`` (its picture), ``.sheet.webp`` or ``.json``."""
        return self.clips / f"{id}{suffix}"

    # Rows

    def add(
        self,
        request: Mapping[str, object],
        remixed_from: str | None = None,
        notices: Sequence[str] = (),
    ) -> Video:
        """Add a video to the end of the queue. Raises ``UserError`` if one of its pictures has been deleted."""
        id = f"video_{secrets.token_hex(16)}"
        row = json.dumps(request), remixed_from, time.time(), json.dumps(notices)
        with self._lock:  # against `delete`
            if not all((self.uploads / name).exists() for name in _pictures(request)):
                raise UserError(
                    "A picture of this video has been deleted; send it again."
                )
            self._write(
                "INSERT INTO videos (id, status, request, remixed_from, created_at, notices) VALUES (?, 'queued', ?, ?, ?, ?)",
                (id, *row),
            )
        return self.get(id)

    def notice(self, id: str, text: str) -> None:
        """Add a sentence about a video, unless it has it."""
        with suppress(sqlite3.OperationalError):  # if the disk is full
            self._write(
                "UPDATE videos SET notices = json_insert(notices, '$[#]', ?) WHERE id = ? "
                "AND NOT EXISTS (SELECT 1 FROM json_each(notices) WHERE value = ?)",
                (text, id, text),
            )

    def get(self, id: str) -> Video | None:
        """The video with this id, or ``None``."""
        return next(self._read("WHERE id = ?", id), None)

    def page(
        self, limit: int, after: Video | None = None, newest_first: bool = True
    ) -> list[Video]:
        """Up to ``limit`` videos that follow ``after``."""
        sign, order = ("<", "DESC") if newest_first else (">", "ASC")
        where = "" if after is None else f"WHERE number {sign} {after.number}"
        return [*self._read(f"{where} ORDER BY number {order} LIMIT ?", limit)]

    def open(self) -> list[Video]:
        """The queued and running videos, in the order of the queue."""
        return [*self._read("WHERE status IN (?, ?) ORDER BY number", *OPEN)]

    def waiting(self) -> int:
        """How many are queued or running."""
        return self._count("status IN (?, ?)", *OPEN)

    def place(self, video: Video) -> int | None:
        """Its place in the queue, counted from 0; ``None`` if it is not in it."""
        if video.status not in OPEN:
            return None
        return self._count("status IN (?, ?) AND number < ?", *OPEN, video.number)

    def next(self) -> Video | None:
        """The first in the queue."""
        first = "WHERE status = 'queued' ORDER BY number LIMIT 1"
        return next(self._read(first), None)

    def start(self, id: str) -> None:
        """Mark a video as being made, from the beginning."""
        begun = {"started_at": time.time(), "progress": 0, "phase": ""}
        self._set(id, status="in_progress", **begun)

    def advance(self, id: str, phase: str, progress: int) -> None:
        """Set a running video's phase and percent; a video that is not running stays as it is."""
        with suppress(sqlite3.OperationalError):  # if the disk is full
            self._write(
                "UPDATE videos SET phase = ?, progress = ? WHERE id = ? AND status = 'in_progress'",
                (phase, progress, id),
            )

    def complete(self, id: str) -> None:
        """Mark a video as complete."""
        self._bytes = None
        done = {"progress": 100, "phase": "", "completed_at": time.time()}
        self._set(id, status="completed", **done)

    def fail(self, id: str, code: str, message: str) -> None:
        """End a video: ``code`` is one word for programs, ``message`` a sentence for people. Its files are deleted."""
        self._delete_files({id})
        error = {"error_code": code, "error_message": message}
        self._set(id, status="failed", completed_at=time.time(), **error)

    def requeue(self, id: str) -> None:
        """Return a running video to its place in the queue; one that has ended stays as it is."""
        self._must(
            "UPDATE videos SET status = 'queued', started_at = NULL "
            "WHERE id = ? AND status = 'in_progress'",
            (id,),
        )

    def delete(self, id: str) -> None:
        """Delete the row and files of a video, and its pictures unless another video uses them.

        Files come first, since a full disk has no room to write.
        """
        with self._lock:
            for video in self._read("WHERE id = ?", id):
                for name in _pictures(video.request):
                    if self._count("instr(request, ?)", name) == 1:
                        (self.uploads / name).unlink(missing_ok=True)
            self._delete_files({id})
            self._write("DELETE FROM videos WHERE id = ?", (id,))

    # Space

    def bytes(self) -> int:
        """Bytes of clips and uploads on disk, as of the last clip added or removed."""
        taken = self._bytes
        if taken is None:
            taken = 0
            for file in (*self.clips.iterdir(), *self.uploads.iterdir()):
                with suppress(FileNotFoundError):  # the worker has just moved it
                    taken += file.stat().st_size
            self._bytes = taken
        return taken

    def oldest(self, count: int = 3) -> list[Video]:
        """The oldest finished videos."""
        first = "WHERE status = 'completed' ORDER BY number LIMIT ?"
        return [*self._read(first, count)]

    def _take_up(self) -> None:
        """Queue again the job of a server that died, and delete files without a row."""
        self._write("UPDATE videos SET status = 'queued' WHERE status = 'in_progress'")
        known = {row["id"] for row in self._rows.execute("SELECT id FROM videos")}
        self._delete_files({*map(_owner, self.clips.iterdir())} - known)
        used = {name for video in self._read() for name in _pictures(video.request)}
        for file in self.uploads.iterdir():
            if file.name not in used:
                file.unlink()

    def _delete_files(self, ids: set[str]) -> None:
        for file in self.clips.iterdir():
            if _owner(file) in ids:
                file.unlink(missing_ok=True)
        self._bytes = None

    def _read(self, which: str = "", *values) -> Iterator[Video]:
        with self._reads:
            sql = f"SELECT * FROM videos {which}"
            rows = self._reading.execute(sql, values).fetchall()
        for row in rows:
            read = {name: json.loads(row[name]) for name in ("request", "notices")}
            yield Video(**dict(row) | read)

    def _count(self, where: str, *values) -> int:
        with self._reads:
            sql = f"SELECT COUNT(*) FROM videos WHERE {where}"
            return self._reading.execute(sql, values).fetchone()[0]

    def _set(self, id: str, **columns: object) -> None:
        """Change columns of a row; on a full disk, wait until there is space."""
        names = ", ".join(f"{name} = ?" for name in columns)
        self._must(f"UPDATE videos SET {names} WHERE id = ?", (*columns.values(), id))

    def _must(self, sql: str, values: tuple) -> None:
        for _ in range(FULL_SECONDS):
            try:
                return self._write(sql, values)
            except sqlite3.OperationalError as error:
                log.error("%s: %s", self.folder, error)
                time.sleep(1)
        self._write(sql, values)

    def _write(self, sql: str, values: tuple = ()) -> None:
        with self._lock:
            self._rows.execute(sql, values)


def _connected(folder: Path) -> sqlite3.Connection:
    file = folder / "videos.sqlite"
    rows = sqlite3.connect(file, isolation_level=None, check_same_thread=False)
    rows.row_factory = sqlite3.Row
    return rows


def _pictures(request: Mapping[str, object]) -> set[str]:
    """Names of the uploads that a video is made from."""
    return {image["path"] for image in request.get("images", ())}


def _owner(file: Path) -> str:
    """The id of the video that a file belongs to; the name of an unfinished file begins with a dot."""
    return file.name.lstrip(".").partition(".")[0]


def _check_own(folder: Path) -> None:
    """Raise ``UserError`` if a folder holds other files than a server's, which would be deleted."""
    found = {file.name for file in folder.iterdir()} - HARMLESS
    if found and "server.lock" not in found:
        raise UserError(
            f"{folder} holds other files, such as {min(found)}; choose a new or empty folder with --data."
        )
