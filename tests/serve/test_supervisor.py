"""The server's worker: how its jobs are stopped, and what happens when it dies, or never starts."""

import queue
import signal
import sys
import threading
import time
from contextlib import contextmanager
from functools import partial
from typing import Iterator

import pytest

from mlx_video.serve import supervisor as rules
from mlx_video.serve.schema import VideoRequest
from mlx_video.serve.store import Store
from mlx_video.serve.supervisor import Supervisor
from tests.serve.server import FAKE, SECONDS, message, serving


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


# Without HTTP


@contextmanager
def supervising(
    folder, *prompts, worker=FAKE
) -> Iterator[tuple[Supervisor, list[str]]]:
    """A supervisor that has not started, and the ids of videos in its queue."""
    store = Store(folder)
    request = {"width": 192, "height": 128}
    ids = [store.add({**request, "prompt": prompt}).id for prompt in prompts]
    supervisor = Supervisor(store, worker)
    try:
        yield supervisor, ids
    finally:
        supervisor.stop()
        store.close()


def scripted(script: str) -> tuple[str, ...]:
    """A worker that is ready, and then only does what ``script`` says."""
    ready = """print('{"event": "ready", "models": []}', flush=True)"""
    return sys.executable, "-c", f"{ready}\n{script}"


def test_each_event_of_a_video_reaches_its_listeners_until_it_has_ended(tmp_path):
    with supervising(tmp_path, "unknown") as (supervisor, (id,)):
        events = queue.Queue()
        with supervisor.listening(id, events.put):
            supervisor.start()
            heard = list(iter(partial(events.get, timeout=SECONDS), None))
        kinds = ["progress"] * 3 + ["notice"] * 2
        assert [event["event"] for event in heard] == kinds
        assert supervisor.store.get(id).status == "completed"
        assert supervisor.running is None and not supervisor.cancel(id)


def test_who_waits_for_a_video_hears_at_once_that_it_has_ended(tmp_path):
    with supervising(tmp_path, "endless") as (supervisor, (id,)):
        events = queue.Queue()
        with supervisor.listening(id, events.put):
            supervisor.start()
            events.get(timeout=SECONDS)
        assert not supervisor.ended(id, 0.01)
        waiting = threading.Thread(target=supervisor.ended, args=(id, 2 * SECONDS))
        waiting.start()
        assert not supervisor.cancel("another") and supervisor.cancel(id)
        waiting.join(SECONDS)
        assert not waiting.is_alive() and supervisor.ended(id, 0)


def test_a_clip_that_a_killed_server_had_finished_is_not_made_again(tmp_path):
    with supervising(tmp_path, "endless", "") as (supervisor, (whole, next_)):
        for suffix in (".mp4", ".json", ".webp", ".sheet.webp"):
            supervisor.store.file(whole, suffix).touch()
        events = queue.Queue()
        with supervisor.listening(next_, events.put):
            supervisor.start()
            assert [*iter(partial(events.get, timeout=SECONDS), None)]
        assert supervisor.store.get(whole).status == "completed"


def test_a_worker_that_does_not_stop_is_killed(tmp_path, monkeypatch):
    monkeypatch.setattr(rules, "STOP_SECONDS", 0.1)
    worker = scripted("import time; time.sleep(600)")
    with supervising(tmp_path, worker=worker) as (supervisor, _):
        supervisor.start()
        wait_until(lambda: supervisor.status == "ok")
    assert supervisor._worker.returncode == -signal.SIGKILL


def test_an_estimate_that_does_not_come_is_not_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(rules, "ESTIMATE_SECONDS", 0.1)
    request = VideoRequest(prompt="a")
    with supervising(tmp_path, worker=scripted("input(), input()")) as (supervisor, _):
        with pytest.raises(TimeoutError):  # there is no worker yet
            supervisor.estimate(request)
        supervisor.start()
        wait_until(lambda: supervisor.status == "ok")
        with pytest.raises(TimeoutError):
            supervisor.estimate(request)
        assert not supervisor._answers


def test_a_worker_is_started_three_times_before_the_server_gives_up(tmp_path):
    count = tmp_path / "count"
    worker = (sys.executable, "-c", f"open({str(count)!r}, 'a').write('x')")
    with supervising(tmp_path / "data", "waits", worker=worker) as (supervisor, (id,)):
        events = queue.Queue()
        with supervisor.listening(id, events.put):
            supervisor.start()
            assert events.get(timeout=SECONDS) is None
        assert count.read_text() == "xxx" and supervisor.status == "failed"
        assert supervisor.store.get(id).error_code == "no_worker"


def wait_until(done) -> None:
    end = time.monotonic() + SECONDS
    while not done():
        assert time.monotonic() < end
        time.sleep(0.01)
