"""The server by itself: its queue, its door, and what it does when something dies."""

import base64
import errno
import io
import json
import sqlite3
import sys
import threading
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import httpx
import pytest
from PIL import Image

from mlx_video import disk
from mlx_video.errors import UserError
from mlx_video.serve.store import Store
from tests.serve.server import FAKE, LIMITS, serving

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("data")) as running:
        yield running


def message(answer: httpx.Response) -> str:
    return answer.json()["error"]["message"]


# Requests


def test_what_was_left_open_is_decided_and_said(server):
    video = server.make("a red ball")
    request = video["request"]
    assert (request["width"], request["height"], request["num_frames"]) == (
        192,
        128,
        49,
    )
    assert request["seed"] is not None and request["generate_sound"] is True


def test_a_size_off_the_grid_is_snapped_and_said(server):
    answer = server.http.post(
        "/v1/videos",
        json={"prompt": "a", "width": 200, "height": 130, "num_frames": 50},
    )
    video = answer.json()
    assert video["size"] == "192x128" and video["request"]["num_frames"] == 49
    assert video["notices"] == [
        "200x130 became 192x128: sides are multiples of 64 and 64 pixels.",
        "50 frames became 49: frames are 1 + a multiple of 8.",
    ]


def test_what_the_worker_notices_is_said_once_beside_what_was_snapped(server):
    video = server.make("unknown", width=200)
    assert video["notices"] == [
        "200x128 became 192x128: sides are multiples of 64 and 64 pixels.",
        "The model does not know: unknown.",
    ]


@pytest.mark.parametrize(
    "body, said",
    [
        ({}, "prompt is missing"),
        ({"prompt": " "}, "prompt"),
        ({"prompt": "a", "colour": "red"}, "colour is unknown"),
        ({"prompt": "a", "seed": -1}, "seed"),
        ({"prompt": "a", "seed": "x"}, "seed"),
        ({"prompt": "a", "fps": 1e9}, "fps"),
        ({"prompt": "a", "num_frames": 10**9}, "num_frames"),
        ({"prompt": "a", "size": "1x1x1"}, "size"),
        (
            {"prompt": "a", "loras": {"blue": 1}},
            "There is no LoRA 'blue' here; the server was started with: sepia.",
        ),
        (
            {"prompt": "a", "images": [{"path": "/etc/passwd"}]},
            "images must place each picture",
        ),
        (
            {"prompt": "a", "input_reference": {"image_url": "http://x"}},
            "downloads nothing",
        ),
        ({"prompt": "a", "recipe": "dev"}, "has no recipe 'dev'"),
        ([1], "JSON object"),
    ],
)
def test_a_bad_request_is_answered_in_a_sentence(server, body, said):
    answer = server.http.post("/v1/videos", json=body)
    assert answer.status_code == 400
    assert said in message(answer) and len(message(answer)) < 400


@pytest.mark.parametrize("content", (b"{", b"[" * 100_000, b"\xff\xfe", b"null"))
def test_what_is_no_json_is_refused(server, content):
    answer = server.http.post(
        "/v1/videos", content=content, headers={"Content-Type": "application/json"}
    )
    assert answer.status_code == 400


def test_a_file_that_is_no_picture_is_refused_and_not_kept(server):
    files = {"input_reference": ("cat.png", b"%!PS-Adobe-3.0 EPSF-3.0")}
    answer = server.http.post("/v1/videos", data={"prompt": "a"}, files=files)
    assert answer.status_code == 400 and "The picture" in message(answer)
    assert not list(server.store.uploads.iterdir())


def test_a_picture_for_which_there_is_no_room_is_not_kept(server, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    before = set(server.store.uploads.iterdir())
    monkeypatch.setattr("mlx_video.serve.incoming.shutil.copyfileobj", full)
    files = {"input_reference": ("a.png", png())}
    answer = server.http.post("/v1/videos", data={"prompt": "a"}, files=files)
    assert answer.status_code == 507
    said = "The picture cannot be kept: no space left on device. "
    assert message(answer) == said + disk.MAKE_ROOM
    assert set(server.store.uploads.iterdir()) == before


def png() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(file, "PNG")
    return file.getvalue()


def test_pictures_stand_where_they_are_put(server):
    files = [
        ("input_reference", ("a.png", png())),
        ("input_reference", ("b.png", png())),
    ]
    places = '[{}, {"frame": 16, "strength": 0.5}]'
    data = {"prompt": "a", "images": places, "loras": '{"sepia": 0.5}', "seed": "3"}
    answer = server.http.post("/v1/videos", data=data, files=files).json()
    first, second = answer["request"]["images"]
    assert (first["frame"], second["frame"], second["strength"]) == (0, 16, 0.5)
    assert first["path"] != second["path"] and answer["request"]["loras"] == {
        "sepia": 0.5
    }
    data["images"] = "[{}]"
    answer = server.http.post("/v1/videos", data=data, files=files)
    assert answer.status_code == 400 and "must place each picture" in message(answer)


def test_a_picture_may_come_within_json(server):
    url = f"data:image/png;base64,{base64.b64encode(png()).decode()}"
    body = {"prompt": "a", "input_reference": {"image_url": url}}
    (image,) = server.http.post("/v1/videos", json=body).json()["request"]["images"]
    assert (server.store.uploads / image["path"]).read_bytes() == png()
    body["input_reference"]["image_url"] = "data:image/png;base64,!"
    assert server.http.post("/v1/videos", json=body).status_code == 400


def test_a_refused_request_leaves_no_picture(server):
    before = set(server.store.uploads.iterdir())
    files = {"input_reference": ("a.png", png())}
    data = {"prompt": "a", "model": "sora-2"}
    assert server.http.post("/v1/videos", data=data, files=files).status_code == 404
    files = [
        ("input_reference", ("a.png", png())),
        ("input_reference", ("b.png", b"x")),
    ]
    data = {"prompt": "a", "images": "[{}, {}]"}
    assert server.http.post("/v1/videos", data=data, files=files).status_code == 400
    assert set(server.store.uploads.iterdir()) == before


def test_estimates_come_from_the_worker(server):
    answer = server.http.post("/v1/estimates", json={"prompt": "a", "width": 256})
    assert answer.json()["peak_bytes"] == 256 * 10**6


def test_an_estimate_opens_no_file_that_a_stranger_names(server):
    body = {"prompt": "a", "images": [{"path": "/etc/passwd"}]}
    answer = server.http.post("/v1/estimates", json=body)
    assert answer.status_code == 200 and answer.json()["refusal"] == ""


def test_models_say_their_grid(server):
    (model,) = server.http.get("/v1/models").json()["data"]
    assert (model["id"], model["width_step"], model["frame_step"]) == ("fake", 64, 8)


# The door


@pytest.mark.parametrize(
    "headers, status",
    [
        ({"Host": "evil.example"}, 421),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://["}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
    ],
)
def test_other_sites_stay_outside(server, headers, status):
    for method, path in (("GET", "/v1/videos"), ("POST", "/v1/videos"), ("GET", "/")):
        assert server.http.request(method, path, headers=headers).status_code == status


def test_the_page_asks_no_other_host(server):
    page = server.http.get("/")
    assert page.status_code == 200 and "MLX-Video" in page.text
    assert "default-src 'self'" in page.headers["content-security-policy"]
    for name in (
        "style.css",
        "main.js",
        "api.js",
        "composer.js",
        "gallery.js",
        "docs.html",
        "icon.svg",
    ):
        text = server.http.get(f"/{name}").text
        assert "//" not in text.replace("http://www.w3.org/2000/svg", "").replace(
            "// ", ""
        ), name


def test_bodies_are_bounded(tmp_path):
    with serving(tmp_path, limits=replace(LIMITS, body=1000)) as server:
        answer = server.http.post("/v1/videos", content=b"x" * 1001)
        assert answer.status_code == 413
        parts = (b"x" * 500 for _ in range(5))  # sent in chunks, without a length
        assert server.http.post("/v1/videos", content=parts).status_code == 413


def test_a_key_opens_a_session_for_the_page(tmp_path):
    with serving(tmp_path, key="sesame") as server:
        with httpx.Client(base_url=server.url) as visitor:
            assert visitor.get("/").status_code == 200
            assert visitor.get("/v1/videos").status_code == 401
            assert visitor.post("/session", json={"key": "wrong"}).status_code == 401
            assert visitor.post("/session", json={"key": "sesame"}).status_code == 200
            assert visitor.get("/v1/videos").status_code == 200


def test_any_key_is_answered(server):
    headers = {"Content-Type": "application/json"}
    for key in ("\ud8c1☀", "sésame ☀"):
        body = json.dumps({"key": key})
        answer = server.http.post("/session", content=body, headers=headers)
        assert answer.status_code < 500, key


def test_only_its_own_files_are_served(server):
    for path in (
        "/v1/videos/..%2f..%2fserver.lock/content",
        "/..%2fstore.py",
        "/%2e%2e/app.py",
        "/videos.sqlite",
    ):
        assert server.http.get(path).status_code == 404


# The queue


def test_videos_are_made_in_order_and_one_at_a_time(server):
    ids = [
        server.http.post("/v1/videos", json={"prompt": str(n)}).json()["id"]
        for n in range(5)
    ]
    done = [server.wait(id, "completed") for id in ids]
    rows = [server.store.get(video["id"]) for video in done]
    for before, after in zip(rows, rows[1:]):
        assert before.completed_at <= after.started_at


def test_a_full_queue_says_when_to_come_again(tmp_path):
    with serving(tmp_path, limits=replace(LIMITS, queue=2)) as server:
        answers = [
            server.http.post("/v1/videos", json={"prompt": "slow"}) for _ in range(3)
        ]
        assert [answer.status_code for answer in answers] == [200, 200, 429]
        assert answers[2].headers["retry-after"] == "30"


def test_a_full_disk_names_the_oldest(tmp_path):
    with serving(tmp_path, limits=replace(LIMITS, disk=10**6)) as server:
        first = server.make("huge")
        answer = server.http.post("/v1/videos", json={"prompt": "another"})
        assert answer.status_code == 507 and first["id"] in message(answer)
        assert "clips take 4.00 MB of the 1.00 MB that they may" in message(answer)
    with serving(tmp_path, limits=replace(LIMITS, margin=10**18)) as server:
        answer = server.http.post("/v1/videos", json={"prompt": "another"})
        assert answer.status_code == 507 and "GB left" in message(answer)


def test_files_that_the_worker_renames_while_they_are_counted_count_nothing(tmp_path):
    store = Store(tmp_path)
    store.file("video_a", ".mp4").write_bytes(bytes(10))
    store.file("video_b", ".partial").symlink_to("nowhere")  # listed, but not there
    assert store.bytes() == 10
    store.delete("video_a")
    assert store.bytes() == 0


def test_a_file_that_is_gone_is_said(server):
    id = server.make("a red ball")["id"]
    server.store.file(id, ".mp4").unlink()
    for path in ("content", "preview"):
        answer = server.http.get(f"/v1/videos/{id}/{path}")
        assert answer.status_code == 404 and message(answer).endswith(".")


def test_cancelling_what_runs_and_what_waits(server):
    running, waiting = (
        server.http.post("/v1/videos", json={"prompt": "endless"}).json()["id"]
        for _ in range(2)
    )
    server.wait(running, "in_progress")
    for id in (waiting, running):
        assert server.http.post(f"/v1/videos/{id}/cancel").status_code == 200
        assert server.wait(id, "failed")["error"]["code"] == "cancelled"
    server.make("the next one")


def test_a_worker_that_missed_the_interrupt_hears_another(server):
    id = server.http.post("/v1/videos", json={"prompt": "deaf"}).json()["id"]
    server.wait(id, "in_progress")
    server.http.post(f"/v1/videos/{id}/cancel")
    assert server.wait(id, "failed")["error"]["code"] == "cancelled"


def test_deleting_what_runs_leaves_nothing(server):
    id = server.http.post("/v1/videos", json={"prompt": "endless"}).json()["id"]
    server.wait(id, "in_progress")
    assert server.http.delete(f"/v1/videos/{id}").json()["deleted"]
    assert server.http.get(f"/v1/videos/{id}").status_code == 404
    server.make("the next one")
    assert not [file for file in server.store.clips.iterdir() if id in file.name]


def test_events_tell_of_a_video_until_it_is_done(server):
    id = server.http.post("/v1/videos", json={"prompt": "slow"}).json()["id"]
    seen = []
    with server.http.stream("GET", f"/v1/videos/{id}/events") as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        for line in answer.iter_lines():
            if line.startswith("data: "):
                seen.append(json.loads(line.removeprefix("data: ")))
    assert seen[-1]["status"] == "completed"
    progress = [video["progress"] for video in seen]
    assert progress == sorted(progress) and 50 in progress


def test_who_comes_in_the_middle_is_told_of_the_latest_preview(server):
    id = server.http.post("/v1/videos", json={"prompt": "slow"}).json()["id"]
    server.wait(id, "in_progress")
    server.store.file(id, ".preview.jpg").write_bytes(b"picture")
    told = server.http.get(f"/v1/videos/{id}/events").text
    assert 'event: preview\ndata: {"number": 0}' in told
    picture = server.http.get(f"/v1/videos/{id}/preview")
    assert picture.content == b"picture"
    assert picture.headers["content-type"] == "image/jpeg"


def test_polls_are_quick_while_a_clip_is_made(server):
    id = server.http.post("/v1/videos", json={"prompt": "endless"}).json()["id"]
    server.wait(id, "in_progress")
    assert all(
        server.http.get(f"/v1/videos/{id}").status_code == 200 for _ in range(50)
    )
    server.http.post(f"/v1/videos/{id}/cancel")


# What dies


def test_a_worker_that_dies_fails_its_video_and_is_started_again(server):
    id = server.http.post("/v1/videos", json={"prompt": "die"}).json()["id"]
    error = server.wait(id, "failed")["error"]
    assert error["code"] == "worker_died" and "signal 9" in error["message"]
    server.make("the next one")


def test_a_server_that_stops_hands_its_video_back(tmp_path):
    with serving(tmp_path) as server:
        done = server.make("first")["id"]
        ids = [
            server.http.post("/v1/videos", json={"prompt": "slow"}).json()["id"]
            for _ in range(2)
        ]
        server.wait(ids[0], "in_progress")
    with serving(tmp_path) as server:
        assert server.wait(done, "completed")
        for id in ids:
            server.wait(id, "completed")


def test_what_was_running_when_the_power_failed_is_queued_again(tmp_path):
    store = Store(tmp_path)
    ids = [store.add({"prompt": str(n)}).id for n in range(3)]
    store.start(ids[0])
    store.complete(ids[0])
    store.start(ids[1])
    stray = store.file("video_unknown", ".mp4")
    stray.write_bytes(b"x")
    store.close()
    store = Store(tmp_path)
    assert [store.get(id).status for id in ids] == ["completed", "queued", "queued"]
    assert store.next().id == ids[1]
    assert not stray.exists()


def test_only_a_running_video_goes_back_to_the_queue(tmp_path):
    store = Store(tmp_path)
    running, ended = (store.add({"prompt": name}).id for name in ("a", "b"))
    store.start(running)
    store.start(ended)
    store.fail(ended, "cancelled", "It was cancelled.")
    for id in (running, ended):
        store.requeue(id)
    assert [store.get(id).status for id in (running, ended)] == ["queued", "failed"]


def test_a_full_disk_ends_neither_the_server_nor_the_queue(tmp_path):
    with serving(tmp_path) as server:
        rows = server.store._rows
        id = server.http.post("/v1/videos", json={"prompt": "slow"}).json()["id"]
        server.wait(id, "in_progress")
        rows.execute("PRAGMA max_page_count = 1")  # as good as full
        full = {"prompt": "x" * 8000}
        answers = [server.http.post("/v1/videos", json=full) for _ in range(4)]
        assert answers[-1].status_code == 507 and "Free some space" in message(
            answers[-1]
        )
        assert server.http.get(f"/v1/videos/{id}").status_code == 200
        rows.execute("PRAGMA max_page_count = 100000")
        server.wait(id, "completed")
        server.make("the next one")


def test_deleting_makes_room_on_a_full_disk(tmp_path, monkeypatch):
    store = Store(tmp_path)
    id = store.add({"prompt": "a"}).id
    file, write = store.file(id, ".mp4"), store._write

    def full(*values):
        if file.exists():
            raise sqlite3.OperationalError("database or disk is full")
        write(*values)

    file.write_bytes(b"x")
    monkeypatch.setattr(store, "_write", full)
    store.delete(id)
    assert store.get(id) is None and not file.exists()


def test_two_servers_do_not_share_a_folder(tmp_path):
    store = Store(tmp_path)
    with pytest.raises(UserError, match="Another server uses the folder"):
        Store(tmp_path)
    store.close()
    Store(tmp_path).close()


def test_threads_share_the_store(tmp_path):
    store = Store(tmp_path)

    def add():
        for n in range(20):
            store.advance(store.add({"prompt": str(n)}).id, "x", n)

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(store.open()) == 80


@pytest.mark.parametrize(
    "says, trouble",
    [
        (
            """print('{"event": "trouble", "message": "There is no model here."}')""",
            "There is no model here.",
        ),
        (
            "raise SystemExit(1)",
            "The process that makes clips does not start; the server's terminal says why.",
        ),
    ],
)
def test_a_worker_that_never_comes_up_is_said(tmp_path, says, trouble):
    worker = (sys.executable, "-c", says)
    with serving(tmp_path, worker=worker, ready="failed") as server:
        health = server.http.get("/health")
        assert health.status_code == 503 and health.json()["trouble"] == trouble
        answer = server.http.post("/v1/videos", json={"prompt": "a"})
        assert answer.status_code == 503 and message(answer) == trouble


def test_health_and_new_videos_wait_for_the_worker_alike(tmp_path):
    started = time.monotonic()
    slow = f"import time, runpy; time.sleep(1); runpy.run_path({FAKE[1]!r}, run_name='__main__')"
    with serving(
        tmp_path, worker=(sys.executable, "-c", slow), ready="starting"
    ) as server:
        post = partial(server.http.post, "/v1/videos", json={"prompt": "a"})
        before = post().status_code
        while (health := server.http.get("/health")).json()["status"] != "ok":
            assert (health.status_code, before) == (503, 503)
            assert time.monotonic() < started + 20
            before = post().status_code
        assert health.status_code == post().status_code == 200


def test_a_worker_that_cannot_be_started_again_ends_the_queue(tmp_path):
    once = tmp_path / "once"
    script = f"import os, runpy; os.mkdir({str(once)!r}); runpy.run_path({FAKE[1]!r}, run_name='__main__')"
    with serving(tmp_path / "data", worker=(sys.executable, "-c", script)) as server:
        for prompt in ("die", "waits"):
            answer = server.http.post("/v1/videos", json={"prompt": prompt})
        assert (
            server.wait(answer.json()["id"], "failed")["error"]["code"] == "no_worker"
        )
        assert server.http.get("/health").json()["status"] == "failed"
        assert server.http.post("/v1/videos", json={"prompt": "a"}).status_code == 503


def test_a_folder_of_other_files_is_refused(tmp_path):
    (tmp_path / ".DS_Store").touch()
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "wedding.mp4").write_bytes(b"x")
    with pytest.raises(UserError, match="holds other files, such as clips"):
        Store(tmp_path)
    assert (tmp_path / "clips" / "wedding.mp4").exists()
    with pytest.raises(UserError, match="/ holds other files"):
        Store(Path("/"))
    with pytest.raises(UserError, match="cannot be used"):
        Store(tmp_path / "clips" / "wedding.mp4")
