"""The server's door: who is answered, with which key, and how large a request may be."""

from dataclasses import replace

import httpx
import pytest
from starlette.requests import HTTPConnection

from mlx_video.serve.guard import Door
from tests.serve.server import LIMITS, serving


def test_a_server_on_every_address_goes_by_each_but_by_no_name():
    for reached, host in (("192.0.2.7", "192.0.2.7"), ("fe80::7", "[fe80::7]")):
        scope = {"type": "http", "path": "/", "server": (reached, 8420)}
        own, other = (
            HTTPConnection(scope | {"headers": [(b"host", name.encode())]})
            for name in (f"{host}:8420", "evil.example:8420")
        )
        door = Door(frozenset({"0.0.0.0:8420"}), "sesame")
        assert door.refusal(own) is None and door.refusal(other)[0] == 421


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
    assert server.http.get("/docs").text == server.http.get("/docs.html").text
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
            assert visitor.get("/openapi.json").status_code == 401
            assert visitor.post("/session", json={"key": "wrong"}).status_code == 401
            assert visitor.post("/session", json={"key": "sesame"}).status_code == 200
            assert visitor.get("/v1/videos").status_code == 200
