"""The rows and files of the server: the order of its queue, and what a crash or a full disk leaves of them."""

import json
import sqlite3
import threading
from pathlib import Path

import pytest

from mlx_video.errors import UserError
from mlx_video.serve import store as room
from mlx_video.serve.store import Store


def test_a_place_is_counted_from_the_front_of_the_queue(tmp_path):
    store = Store(tmp_path)
    done, first, second = (store.add({"prompt": str(n)}) for n in range(3))
    store.start(done.id)
    store.complete(done.id)
    assert [store.place(store.get(v.id)) for v in (done, first, second)] == [None, 0, 1]
    assert store.next() == first and store.waiting() == 2


def test_a_page_begins_after_the_video_that_ended_the_last(tmp_path):
    store = Store(tmp_path)
    videos = [store.add({"prompt": str(n)}) for n in range(4)]
    assert store.page(2) == [videos[3], videos[2]]
    assert store.page(2, after=videos[2]) == [videos[1], videos[0]]
    assert store.page(9, after=videos[2], newest_first=False) == [videos[3]]


def test_a_notice_is_kept_once(tmp_path):
    store = Store(tmp_path)
    id = store.add({}, notices=["It was snapped."]).id
    for text in ("It is silent.", "It is silent.", "It was snapped."):
        store.notice(id, text)
    assert store.get(id).notices == ["It was snapped.", "It is silent."]


def test_the_time_left_is_what_the_progress_foretells(tmp_path, monkeypatch):
    store = Store(tmp_path)
    id = store.add({}).id
    assert store.get(id).seconds_left is None
    store.start(id)
    monkeypatch.setattr(room.time, "time", lambda: store.get(id).started_at + 30)
    for progress, left in ((4, None), (5, 570.0), (75, 10.0)):
        store.advance(id, "stage 1", progress)
        assert store.get(id).seconds_left == left


def test_a_picture_that_no_video_uses_is_deleted_at_the_start(tmp_path):
    store = Store(tmp_path)
    for name in ("used.png", "stray.png"):
        (store.uploads / name).write_bytes(b"x")
    store.add({"images": [{"path": "used.png"}]})
    store.close()
    Store(tmp_path)
    assert [file.name for file in store.uploads.iterdir()] == ["used.png"]


def test_a_picture_is_deleted_with_the_last_video_that_uses_it(tmp_path, monkeypatch):
    store, request = Store(tmp_path), {"images": [{"path": "used.png"}]}
    (store.uploads / "used.png").write_bytes(b"x")
    first, second = store.add(request).id, store.add(request).id
    others = [store.add({"prompt": str(n)}).id for n in range(3)]
    store.delete(first)
    assert (store.uploads / "used.png").exists()
    parsed, loads = [], json.loads
    monkeypatch.setattr(json, "loads", lambda text: parsed.append(text) or loads(text))
    store.delete(second)
    assert not (store.uploads / "used.png").exists()
    assert len(parsed) == 2  # of its own row, whatever others there are
    with pytest.raises(UserError, match="A picture of this video has been deleted"):
        store.add(request)
    assert [video.id for video in store.open()] == others


def test_files_that_the_worker_renames_while_they_are_counted_count_nothing(tmp_path):
    store = Store(tmp_path)
    store.file("video_a", ".mp4").write_bytes(bytes(10))
    store.file("video_b", ".partial").symlink_to("nowhere")  # listed, but not there
    assert store.bytes() == 10
    store.delete("video_a")
    assert store.bytes() == 0


def test_what_was_running_when_the_power_failed_is_queued_again(tmp_path):
    store = Store(tmp_path)
    ids = [store.add({"prompt": str(n)}).id for n in range(3)]
    store.start(ids[0])
    store.complete(ids[0])
    store.start(ids[1])
    store.advance(ids[1], "stage 1", 60)
    stray = store.file("video_unknown", ".mp4")
    stray.write_bytes(b"x")
    store.close()
    store = Store(tmp_path)
    assert [store.get(id).status for id in ids] == ["completed", "queued", "queued"]
    assert store.next().id == ids[1]
    store.start(ids[1])
    assert (store.get(ids[1]).progress, store.get(ids[1]).phase) == (0, "")
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
