"""The server's worker: how its jobs are stopped, and what happens when it dies, or never starts."""

import sys
import time
from functools import partial

import pytest

from tests.serve.server import FAKE, message, serving


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
def test_a_worker_that_never_comes_up_is_said(tmp_path, says, trouble, caplog):
    worker = (sys.executable, "-c", says)
    with serving(tmp_path, worker=worker, ready="failed") as server:
        health = server.http.get("/health")
        assert health.status_code == 503 and health.json()["trouble"] == trouble
        assert caplog.messages == [f"No clips can be made. {trouble}"]
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
