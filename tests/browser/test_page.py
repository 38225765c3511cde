"""The page in a real browser, over a real server with the demo model: what a visitor does, and what a screen reader meets.

Needs Debian's chromium, playwright and axe-playwright-python; `.ci/run` brings them.
"""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import pytest

pytestmark = pytest.mark.browser

sync_api = pytest.importorskip("playwright.sync_api")
axe = pytest.importorskip("axe_playwright_python.sync_playwright")

CHROMIUM = os.environ.get("CHROMIUM", "/usr/bin/chromium")
ARGUMENTS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --autoplay-policy=no-user-gesture-required"
).split()
CLIP_SECONDS = 180  # that a clip may take on a busy machine


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    data = tmp_path_factory.mktemp("data")
    command = [sys.executable, "-m", "mlx_video", "serve", "--model", "ltx-2-tiny"]
    command += ["--port", str(port), "--data", str(data)]
    process = subprocess.Popen(command)
    url = f"http://127.0.0.1:{port}"
    try:
        wait_for(
            lambda: json.load(urllib.request.urlopen(f"{url}/health"))["status"]
            == "ok",
            180,
        )
        yield url
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)


def wait_for(true, seconds: float) -> None:
    end = time.monotonic() + seconds
    while True:
        try:
            if true():
                return
        except OSError:
            pass
        assert time.monotonic() < end, f"not within {seconds} s"
        time.sleep(0.1)


def until(page, function: str, argument=None) -> None:
    """Wait until a function in the page says so; playwright's own wait needs eval, which the page's policy forbids."""
    end = time.monotonic() + CLIP_SECONDS
    while not page.evaluate(function, argument):
        assert time.monotonic() < end, f"never: {function}"
        page.wait_for_timeout(100)


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser, url):
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    page = context.new_page()
    page.set_default_timeout(CLIP_SECONDS * 1000)
    problems, hosts = [], set()
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on(
        "request",
        lambda request: hosts.add(re.match(r"\w+:(//[^/]*)?", request.url)[0]),
    )
    page.goto(url)
    page.wait_for_selector("#state:has-text('ltx-2-tiny')")
    yield page
    assert not problems
    assert {host for host in hosts if host.startswith("http")} == {url}
    context.close()


def make(page, prompt: str, frames: str = "0.4"):
    """The element of a clip of ``prompt`` that was just asked for."""
    before = page.locator(".clip").count()
    page.fill("#prompt", prompt)
    page.fill("#seconds", frames)
    page.click("#make")
    until(page, "count => document.querySelectorAll('.clip').length > count", before)
    return page.locator(".clip").first


def test_an_empty_page_offers_prompts(page):
    """The first test finds the page empty; it takes an idea without the mouse."""
    page.locator("#ideas button").first.focus()
    page.keyboard.press("Enter")
    assert page.input_value("#prompt") == "a red ball bounces on a blue floor"
    assert page.evaluate("document.activeElement.id") == "make"


def test_a_clip_is_made_played_made_again_and_deleted(page):
    clip = make(page, "a red ball bounces on a blue floor")
    clip.locator("progress").wait_for()
    clip.locator("video").wait_for()
    player = clip.locator("video").element_handle()
    until(page, "video => video.readyState >= 2", player)
    player.evaluate("video => { video.muted = true; return video.play(); }")
    until(page, "video => video.currentTime > 0.05", player)
    assert player.evaluate("video => video.webkitAudioDecodedByteCount > 0")

    seed = re.search(r"seed\s(\d+)", clip.locator(".facts").inner_text())[1]
    clip.get_by_role("button", name="Again").click()
    until(page, "() => document.querySelectorAll('.clip').length > 1")
    again = page.locator(".clip").first
    again.locator("video").wait_for()
    assert re.search(r"seed\s(\d+)", again.locator(".facts").inner_text())[1] != seed

    page.on("dialog", lambda dialog: dialog.accept())
    count = page.locator(".clip").count()
    again.get_by_role("button", name="Delete").click()
    until(
        page,
        "count => document.querySelectorAll('.clip').length === count - 1",
        count,
    )


def test_a_reload_in_the_middle_finds_the_run_and_cancel_stops_it(page):
    make(page, "a green dragon spins on a meadow", "4")
    page.reload()
    clip = page.locator(".clip").first
    assert "a green dragon" in clip.locator(".prompt").inner_text()
    clip.locator(".notices:has-text('does not know: dragon')").wait_for()
    clip.get_by_role("button", name="Cancel").click()
    clip.locator(".about .problem:has-text('Cancelled')").wait_for()


def test_the_last_frame_begins_the_next_clip(page):
    clip = make(page, "a yellow square rests on a meadow")
    clip.locator("video").wait_for()
    player = clip.locator("video").element_handle()
    until(page, "video => video.readyState >= 1", player)
    clip.get_by_role("button", name="Use last frame").click()
    page.locator("#picture-shown").wait_for()
    following = make(page, "a yellow square rests on a meadow")
    following.locator("video").wait_for()
    following.locator(".settings summary").click()
    assert "first picture" in following.locator("dl").inner_text()


def test_a_long_word_stays_in_its_card(page):
    clip = make(page, "https://example.com/" + 90 * "very")
    clip.locator(".about .problem:has-text('tokens')").wait_for()
    until(
        page,
        "() => [...document.querySelectorAll('.about')].every(e => e.scrollWidth <= e.clientWidth)",
    )


def test_buttons_fill_both_their_rows_in_a_narrow_card(page):
    page.set_viewport_size({"width": 390, "height": 800})
    clip = make(page, "a green star")
    clip.locator("[data-do=delete]").wait_for()
    right = "e => e.getBoundingClientRect().right"
    edge = clip.locator(".actions").evaluate(right)
    for last in ("last", "delete"):
        assert clip.locator(f"[data-do={last}]").evaluate(right) == pytest.approx(edge)


def test_a_mistake_is_said_once(page):
    page.fill("#prompt", "a red ball")
    page.fill("#seconds", "900")
    page.locator(
        "#estimate:has-text('seconds must be at most 600; got 900')"
    ).wait_for()
    page.click("#make")
    page.locator("#problem:has-text('seconds must be at most 600; got 900')").wait_for()
    assert page.locator("#estimate").inner_text() == ""


def test_mistakes_are_answered_in_a_sentence(page):
    page.fill("#prompt", "   ")
    page.click("#make")
    page.locator("#problem:has-text('prompt')").wait_for()


def test_the_keyboard_is_enough(page):
    page.locator("#prompt").focus()
    page.keyboard.type("a blue moon rests in the sky")
    reached = []
    for _ in range(12):
        page.keyboard.press("Tab")
        reached.append(
            page.evaluate("document.activeElement.id || document.activeElement.tagName")
        )
    assert {"size", "seconds", "sound", "picture", "make"} <= set(reached)


@pytest.mark.parametrize("width", (390, 820, 1440))
@pytest.mark.parametrize("scheme", ("light", "dark"))
def test_nothing_serious_stands_in_anybodys_way(browser, url, width, scheme):
    context = browser.new_context(
        viewport={"width": width, "height": 900}, color_scheme=scheme
    )
    page = context.new_page()
    page.goto(url)
    page.wait_for_selector("#state:has-text('ltx-2-tiny')")
    page.wait_for_selector(".clip, #empty:visible")
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    found = axe.Axe().run(page).response["violations"]
    serious = [v for v in found if v["impact"] in ("serious", "critical")]
    assert not serious, json.dumps(serious, indent=1)[:3000]
    assert page.evaluate(
        "document.documentElement.scrollWidth <= innerWidth"
    ), "it scrolls sideways"
    context.close()


def test_the_page_of_the_api_reads_well(page, url):
    page.set_viewport_size({"width": 390, "height": 800})
    page.goto(f"{url}/docs")
    page.wait_for_selector("#fields dd")
    assert "``" not in page.inner_text("main")
    assert page.locator("p code:has-text('input_reference')").count() == 1
    title = page.locator("header p")
    assert title.evaluate("e => e.scrollWidth <= e.clientWidth"), "it is cut short"
    found = axe.Axe().run(page).response["violations"]
    assert not [v for v in found if v["impact"] in ("serious", "critical")], found


def test_lines_break_between_facts_and_between_notices(page):
    page.set_viewport_size({"width": 390, "height": 800})
    page.click("#composer summary")
    page.fill("#width", "250")
    clip = make(page, "a green dragon spins on a meadow")
    clip.locator("video").wait_for()
    facts = clip.locator(".facts").text_content().split(" ")
    assert facts[1::2] == ["·"] * 3
    lines = clip.locator(".notices").inner_text().splitlines()
    assert len(lines) == 2 and "became" in lines[0] and "dragon" in lines[1]
