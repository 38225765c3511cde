"""``mlx-video serve`` as it is typed: what it hands to the server, and what it refuses before it listens."""

import json
import os
import socket
from pathlib import Path

import pytest

from mlx_video.cli import BAD_INPUT, guarded, main, server


@pytest.mark.parametrize(
    "words, said",
    [
        (["--host", "0.0.0.0"], "give it a key with --api-key-file"),
        (["--queue", "0"], "--queue must be 1 or more, such as 32; got 0."),
        (["--lora", "sepia"], "--lora needs NAME=FILE"),
        (["--lora", "sepia=/no/sepia.safetensors"], "no file /no/sepia.safetensors"),
        (["--model", "/no/model"], "no file or folder /no/model"),
        (["--model", "ltx-2-tny"], "Did you mean ltx-2-tiny?"),
        (["--model", str(Path(__file__).parent)], "no distilled checkpoint of LTX-2"),
        (["--api-key-file", "nowhere.txt"], "nowhere.txt"),
    ],
)
def test_what_cannot_be_served_is_refused_in_a_sentence(words, said, capsys):
    assert main(["serve", *words]) == BAD_INPUT
    assert said in capsys.readouterr().err


def test_the_server_gets_what_was_typed_and_else_the_defaults(tmp_path, monkeypatch):
    handed = []

    def started(program, words, environment):
        handed.append(json.loads(environment[server.SETTINGS]))

    monkeypatch.setattr(os, "execve", started)
    for words in ([], ["--disk-budget", "5GB", "--queue", "3"]):
        assert main(["serve", "--data", str(tmp_path), *words]) == 0
    assert [(s["disk"], s["queue"]) for s in handed] == [
        (20 * 10**9, 32),
        (5 * 10**9, 3),
    ]
    assert {(s["host"], s["port"], s["key"]) for s in handed} == {
        ("127.0.0.1", 8420, "")
    }


@pytest.mark.slow
def test_a_port_that_is_taken_is_said(tmp_path, capsys):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        settings = {"host": "127.0.0.1", "port": port, "key": "", "worker": []}
        settings |= {"data": str(tmp_path), "queue": 1, "disk": 1}
        assert guarded(lambda: server.listen(settings)) == BAD_INPUT
    said = f"cannot listen on 127.0.0.1:{port}: address already in use. Choose"
    assert said in capsys.readouterr().err


def test_a_port_that_is_none_is_said(capsys):
    assert guarded(lambda: server._bound("127.0.0.1", 99999)) == BAD_INPUT
    assert "port must be 0-65535. Choose another --port" in capsys.readouterr().err


def test_the_server_goes_by_its_own_names_only():
    assert server.names("127.0.0.1", 8420) == {
        "127.0.0.1:8420",
        "localhost:8420",
        "[::1]:8420",
    }
    assert server.names("192.168.0.2", 80) == {"192.168.0.2:80", "192.168.0.2"}


def test_the_body_of_an_answer_does_not_wait_for_its_head_to_be_acknowledged():
    with server._bound("127.0.0.1", 0) as listening:
        with socket.create_connection(listening.getsockname()):
            with listening.accept()[0] as accepted:
                assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
