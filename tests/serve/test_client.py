"""The official ``openai`` client, unchanged, against this server."""

import subprocess
import sys

import openai
import pytest

pytestmark = pytest.mark.filterwarnings("ignore:The Sora API:DeprecationWarning")

from tests.serve.server import serving


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("data"), key="sesame") as running:
        yield running


@pytest.fixture(scope="module")
def videos(server):
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="sesame", max_retries=0)
    with client:
        yield client.videos


def test_create_and_poll(videos):
    video = videos.create_and_poll(
        prompt="a red ball", seconds="4", size="1280x720", poll_interval_ms=20
    )
    assert (video.status, video.progress, video.object) == ("completed", 100, "video")
    assert video.prompt == "a red ball" and video.model == "fake"
    assert video.size == "1280x704"  # the nearest on the model's grid
    assert float(video.seconds) == pytest.approx(97 / 24, abs=0.01)
    assert video.completed_at >= video.created_at


def test_retrieve(videos):
    made = videos.create(prompt="a red ball", model="fake")
    assert made.status in ("queued", "in_progress", "completed")
    assert videos.poll(made.id, poll_interval_ms=20).id == made.id
    assert videos.retrieve(made.id).status == "completed"


def test_a_failure_says_why(videos):
    video = videos.create_and_poll(prompt="fail, please", poll_interval_ms=20)
    assert video.status == "failed"
    assert (video.error.code, video.error.message) == (
        "bad_output",
        "All frames are black.",
    )


def test_list_goes_on_page_by_page(videos):
    for _ in range(3):
        videos.create_and_poll(prompt="a red ball", poll_interval_ms=20)
    every = [video.id for video in videos.list(limit=2)]
    assert len(every) == len(set(every)) >= 3
    assert [video.id for video in videos.list(limit=2, order="asc")] == every[::-1]


@pytest.mark.parametrize("variant", ("video", "thumbnail", "spritesheet"))
def test_download_content(videos, variant):
    video = videos.create_and_poll(prompt="a red ball", poll_interval_ms=20)
    assert videos.download_content(video.id, variant=variant).read() == bytes(100)


def test_remix_keeps_all_but_the_prompt(videos):
    first = videos.create_and_poll(
        prompt="a red ball", size="64x64", poll_interval_ms=20
    )
    second = videos.remix(first.id, prompt="a blue ball")
    assert second.remixed_from_video_id == first.id
    assert (second.prompt, second.size, second.request["seed"]) == (
        "a blue ball",
        "64x64",
        first.request["seed"],
    )


def test_delete(videos):
    video = videos.create_and_poll(prompt="a red ball", poll_interval_ms=20)
    assert videos.delete(video.id).deleted
    with pytest.raises(openai.NotFoundError, match="There is no video"):
        videos.retrieve(video.id)


def test_errors_are_the_clients_own(videos):
    with pytest.raises(openai.NotFoundError, match="There is no model 'sora-2' here"):
        videos.create(prompt="a red ball", model="sora-2")
    with pytest.raises(openai.BadRequestError, match="size"):
        videos.create(prompt="a red ball", size="large")
    with pytest.raises(
        openai.APIStatusError, match="cannot extend or edit a video yet"
    ):
        videos.extend(prompt="on", seconds="4", video=b"clip")


def test_a_wrong_key_is_refused(server):
    with openai.OpenAI(
        base_url=f"{server.url}/v1", api_key="wrong", max_retries=0
    ) as client:
        with pytest.raises(openai.AuthenticationError, match="API key"):
            client.videos.list()


def test_what_answers_has_no_model_in_it():
    code = "import mlx_video.cli.server, mlx_video.serve.app, sys; print('mlx.core' in sys.modules)"
    command = [sys.executable, "-c", code]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert said.strip() == "False"
