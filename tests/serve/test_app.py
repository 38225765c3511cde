"""The server by itself: what it answers to requests, and how it serves its queue."""

import base64
import errno
import io
import json
import time
from contextlib import ExitStack
from dataclasses import replace
from functools import partial

import pytest
from PIL import Image

from mlx_video import disk
from tests.serve.server import LIMITS, message, serving

pytestmark = pytest.mark.slow


# Requests


def test_the_description_explains_every_route_and_field(server):
    spec = server.http.get("/openapi.json").json()
    fields = spec["components"]["schemas"]["VideoRequest"]["properties"]
    routes = [how for path in spec["paths"].values() for how in path.values()]
    assert routes and all(
        how["description"].endswith(".") for how in (*fields.values(), *routes)
    )


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
        "200x130 became 192x128: height and width must each be a multiple of 64.",
        "50 frames became 49: frames must be 1 + a multiple of 8.",
    ]


def test_what_the_worker_notices_is_said_once_beside_what_was_snapped(server):
    video = server.make("unknown", width=200)
    assert video["notices"] == [
        "200x128 became 192x128: width must be a multiple of 64.",
        "The model does not know: unknown.",
    ]


@pytest.mark.parametrize(
    "body, said",
    [
        ({}, "prompt is missing. See /docs"),
        ({"prompt": " "}, "The prompt is empty; try 'a red ball"),
        ({"prompt": "a", "colour": "red"}, "colour is unknown. See /docs"),
        ({"prompt": "a", "seed": -1}, "seed"),
        (
            {"prompt": "a", "seed": "七"},
            "unable to parse string as an integer; got '七'.",
        ),
        ({"prompt": "a", "fps": 1e9}, "fps must be at most 240; got 1000000000.0."),
        ({"prompt": "x" * 9000}, "prompt must have at most 8000 characters; got 'xxx"),
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


def test_pictures_go_with_the_last_video_that_they_are_in(server):
    files = {"input_reference": ("a.png", png())}
    data = {"prompt": "a"}
    first = server.http.post("/v1/videos", data=data, files=files).json()
    kept = server.store.uploads / first["request"]["images"][0]["path"]
    server.wait(first["id"], "completed")
    path = f"/v1/videos/{first['id']}"
    again = server.http.post(f"{path}/remix", json={"prompt": "b"}).json()
    server.http.delete(path)
    assert kept.exists() and server.wait(again["id"], "completed")
    server.http.delete(f"/v1/videos/{again['id']}")
    assert not kept.exists()


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


def test_a_file_that_is_gone_is_said(server):
    id = server.make("a red ball")["id"]
    server.store.file(id, ".mp4").unlink()
    for path in ("content", "preview"):
        answer = server.http.get(f"/v1/videos/{id}/{path}")
        assert answer.status_code == 404 and message(answer).endswith(".")


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


def test_many_who_listen_keep_nobody_waiting(server):
    post = partial(server.http.post, "/v1/videos")
    ids = [post(json={"prompt": "endless"}).json()["id"] for _ in range(2)]
    heard = []  # keeps the streams open
    with ExitStack() as streams:
        for _ in range(50):  # more than there are threads
            stream = server.http.stream("GET", f"/v1/videos/{ids[1]}/events")
            heard.append(streams.enter_context(stream).iter_lines())
            data = next(line for line in heard[-1] if line.startswith("data: "))
            assert json.loads(data.removeprefix("data: "))["place"] == 1
        start = time.monotonic()
        ids.append(post(json={"prompt": "a red ball"}).json()["id"])
        assert time.monotonic() - start < 2  # with a thread for each: 5 and more
    for id in reversed(ids):
        server.http.delete(f"/v1/videos/{id}")


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
