"""A Hugging Face Hub on this machine, as far as huggingface_hub asks it: listings, files, gates, and the ways it can fail.

Large files are redirected to another host name, as the hub redirects them to its storage.
"""

import hashlib
import json
import re
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Iterator
from urllib.parse import unquote, urlsplit

from pytest import MonkeyPatch

ACCEPTED, KNOWN = "hf_accepted", "hf_known"  # tokens: the licence was accepted, or not
PIECE = 2**17  # bytes that are sent at once


@dataclass
class Repo:
    """Files by name, at one commit; a gated one gives them only to ``ACCEPTED``."""

    files: dict[str, bytes]
    gated: bool = False
    commit: str = "1" * 40


@dataclass
class FakeHub:
    """What the server has, how it behaves, and what it was asked.

    pace      bytes a second of a file; 0 = at once
    cuts      after how many bytes each of the next answers with a file is cut off
    statuses  the next requests of a file are answered with these alone
    spoiled   whether files come with another content than was listed, or another length
    asked     "METHOD /path" of every request
    sent      file -> (first byte, count) of every answer
    ranges    whether it sends a file from where it is asked to
    tokens    that came with a request for stored files, which are of another host
    """

    repos: dict[str, Repo] = field(default_factory=dict)
    url: str = ""
    pace: float = 0
    cuts: list[int] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    spoiled: str = ""
    ranges: bool = True
    asked: list[str] = field(default_factory=list)
    sent: dict[str, list[tuple[int, int]]] = field(default_factory=dict)
    tokens: list[str] = field(default_factory=list)

    def bytes_sent(self, name: str) -> int:
        return sum(count for _, count in self.sent.get(name, ()))


@contextmanager
def serving(hub: FakeHub) -> Iterator[FakeHub]:
    """``hub``, while it answers at ``hub.url``."""
    handler = type("Handler", (_Handler,), {"hub": hub})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        hub.url = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        try:
            yield hub
        finally:
            server.shutdown()


def folder_files(folder: Path, prefix: str = "") -> dict[str, bytes]:
    """The files in ``folder``, by the names that they have in a repository."""
    found = (file for file in folder.rglob("*") if file.is_file())
    return {prefix + f.relative_to(folder).as_posix(): f.read_bytes() for f in found}


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # or a body waits for the receipt of its headers

    def log_message(self, *_) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.asked.append(f"{self.command} {path}")
        kinds = {
            r"/api/models/([^/]+/[^/]+)(?:/revision/(\w+))?": self._info,
            r"/api/models/([^/]+/[^/]+)/tree/(\w+)": self._tree,
            r"/(?!api/)([^/]+/[^/]+)/resolve/(\w+)/(.+)": self._resolve,
            r"/stored/([^/]+/[^/]+)/(\w+)/(.+)": self._stored,
        }
        for pattern, answer in kinds.items():
            if found := re.fullmatch(pattern, path):
                repo = self.hub.repos.get(found[1])
                if repo is None:
                    code = 401 if self._token() is None else 404
                    return self._refuse(code, "RepoNotFound", "Repository not found")
                if found[2] not in (None, "main", repo.commit):
                    return self._refuse(404, "RevisionNotFound", "Invalid rev id")
                return answer(repo, *found.groups())
        self._refuse(404, "", "Not found")

    def _token(self) -> str | None:
        return self.headers.get("Authorization")

    def _info(self, repo: Repo, name: str, revision: str | None) -> None:
        siblings = [
            {"rfilename": n, "size": len(data), "blobId": _git(data)}
            | ({"lfs": {"sha256": _sha(data), "size": len(data), "pointerSize": 134}} if _large(n) else {})
            for n, data in repo.files.items()
        ]  # fmt: skip
        gated = "manual" if repo.gated else False
        self._json({"id": name, "sha": repo.commit, "gated": gated, "siblings": siblings})  # fmt: skip

    def _tree(self, repo: Repo, name: str, revision: str) -> None:
        self._json(
            [
                {"type": "file", "path": n, "size": len(data), "oid": _git(data)}
                | ({"lfs": {"oid": _sha(data), "size": len(data), "pointerSize": 134}} if _large(n) else {})
                for n, data in repo.files.items()
            ]
        )  # fmt: skip

    def _resolve(self, repo: Repo, name: str, revision: str, file: str) -> None:
        token = self._token()
        if token not in (None, f"Bearer {ACCEPTED}", f"Bearer {KNOWN}"):
            told = "Invalid credentials in Authorization header"
            return self._refuse(401, "", told)
        if repo.gated and token != f"Bearer {ACCEPTED}":
            told = f"Access to model {name} is restricted."
            return self._refuse(401 if token is None else 403, "GatedRepo", told)
        if file not in repo.files:
            return self._refuse(404, "EntryNotFound", "Entry not found")
        if self.hub.statuses and self.command == "GET":
            return self._refuse(self.hub.statuses.pop(0), "", "Try again")
        data = repo.files[file]
        headers = {"X-Repo-Commit": repo.commit, "ETag": f'"{_git(data)}"'}
        if not _large(file):
            return self._send(file, data, headers)
        port = self.server.server_port
        headers |= {
            "X-Linked-Size": str(len(data)),
            "X-Linked-Etag": f'"{_sha(data)}"',
            "Location": f"http://localhost:{port}/stored/{name}/{repo.commit}/{file}",
        }
        self._send(file, b"", headers, 302)

    def _stored(self, repo: Repo, name: str, revision: str, file: str) -> None:
        self.hub.tokens += [self._token()] if self._token() else []
        data = repo.files[file]
        if self.hub.spoiled:
            data = bytes(len(data) + 99 * (self.hub.spoiled == "length"))
        self._send(file, data, {"ETag": f'"{_sha(data)}"'})

    def _send(self, name: str, data: bytes, headers: dict, status: int = 200) -> None:
        first = 0
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if asked and self.hub.ranges:
            first, status = int(asked[1]), 206 if status == 200 else status
            if status == 206 and first >= len(data):
                return self._refuse(416, "", "Range not satisfiable")
            headers |= {"Content-Range": f"bytes {first}-{len(data) - 1}/{len(data)}"}
        body = data[first:]
        self.send_response(status)
        for key, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET" and body:
            self._body(name, first, body)

    def _body(self, name: str, first: int, body: bytes) -> None:
        most = self.hub.cuts.pop(0) if self.hub.cuts else len(body)
        done = 0
        try:
            for start in range(0, min(most, len(body)), PIECE):
                piece = body[start : min(start + PIECE, most)]
                self.wfile.write(piece)
                done += len(piece)
                time.sleep(len(piece) / self.hub.pace if self.hub.pace else 0)
        except OSError:  # who asked has gone
            self.close_connection = True
        self.hub.sent.setdefault(name, []).append((first, done))
        self.close_connection |= most < len(body)

    def _json(self, answer: object) -> None:
        self._plain(200, json.dumps(answer).encode(), {})

    def _refuse(self, status: int, code: str, message: str) -> None:
        headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})  # fmt: skip
        self._plain(status, json.dumps({"error": message}).encode(), headers)

    def _plain(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        kind = {"Content-Type": "application/json", "Content-Length": str(len(body))}
        for key, value in (headers | kind).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


def _large(name: str) -> bool:
    return name.endswith(".safetensors")


def _sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _git(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@contextmanager
def in_place_of_the_real_one(hub: FakeHub, home: Path) -> Iterator[FakeHub]:
    """``hub`` is asked in this process, by its environment in those that it starts, with a cache in ``home``."""
    from huggingface_hub import constants, hf_api

    cache, token = str(home / "hub"), str(home / "token")
    with serving(hub), MonkeyPatch.context() as patch:
        patch.setattr(constants, "HF_HUB_CACHE", cache)
        patch.setattr(constants, "HF_TOKEN_PATH", token)
        patch.setattr(constants, "ENDPOINT", hub.url)
        template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        patch.setattr(hf_api.api, "endpoint", hub.url)
        patch.setenv("HF_ENDPOINT", hub.url)
        patch.setenv("HF_HOME", str(home))
        patch.delenv("HF_TOKEN", raising=False)
        yield hub


def official() -> dict[str, Repo]:
    """The tests' miniatures under the names that Lightricks' files have: 2.0 and 2.3 whole, 2.5 in parts and gated."""
    from mlx_video.hub import TEXT_ENCODER_REPO, named
    from mlx_video.models.ltx.checkpoint.releases import LTX_2, LTX_2_3, LTX_2_5
    from tests.reference import FIXTURES
    from tests.tiny_tokenizer import make_text_encoder_folder

    def tiny(name: str) -> bytes:
        (file,) = FIXTURES.glob(f"ltx*_tiny/ltx-{name}.safetensors")
        return file.read_bytes()

    repos = {}
    for release, name in ((LTX_2, "2-tiny"), (LTX_2_3, "2.3-tiny")):
        files = dict.fromkeys(release.transformers.values(), tiny(name))
        files[release.upsampler] = tiny(f"{name}-spatial-upscaler-x2")
        repos[release.repository] = Repo(files)
    lora = tiny("2.3-tiny-distilled-lora")
    repos[LTX_2_3.repository].files[LTX_2_3.distilled_lora] = lora
    transformer = tiny("2.5-tiny-transformer-bf16")
    files = dict.fromkeys(LTX_2_5.transformers.values(), transformer)
    names = "video-vae", "audio-vae"
    files |= {f: tiny(f"2.5-tiny-{n}-bf16") for f, n in zip(LTX_2_5.others, names)}
    upscaler = tiny("2.5-tiny-latent-spatial-upscaler-x2-bf16")
    gemma = tiny("2.5-tiny-gemma4-with-proj-bf16")
    _, (text_file,) = named(LTX_2_5.text_encoder.place)
    files |= {LTX_2_5.upsampler: upscaler, text_file: gemma}
    repos[LTX_2_5.repository] = Repo(files, gated=True)
    with TemporaryDirectory() as folder:
        gemma = make_text_encoder_folder(Path(folder) / "gemma")
        repos[TEXT_ENCODER_REPO] = Repo(folder_files(gemma))
    return repos
