"""The viewer in a real Chromium, headless: clicked through, walked by keys, followed while the run
grows, and put before axe-core.

Needs the packages `playwright` and `axe-playwright-python`, and Debian's `chromium` (or the program
that LEAFE_CHROMIUM names); nothing is downloaded.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shutil
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from leafe.core import Stop, Tree
from leafe.runs import Journal
from leafe.view import make_app
from leafe.view._server import HOST, listen
from tests.trees import Ep, make_tree
from tests.view.folders import STAGE, make_run

pytestmark = pytest.mark.real
CHROMIUM = (
    os.environ.get("LEAFE_CHROMIUM")
    or shutil.which("chromium")
    or shutil.which("chromium-browser")
    or shutil.which("google-chrome")
)
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@contextlib.contextmanager
def serving(run: Path, cache: Path) -> Iterator[str]:
    """The viewer in a thread of its own."""
    bound = listen(0)
    loop = asyncio.new_event_loop()
    runner = web.AppRunner(make_app(run, cache), access_log=None, shutdown_timeout=1.0)

    async def begin() -> None:
        await runner.setup()
        await web.SockSite(runner, bound).start()

    thread = threading.Thread(
        target=loop.run_forever
    )  # the browser's client has a loop in this one
    thread.start()
    asyncio.run_coroutine_threadsafe(begin(), loop).result(60)
    address = f"http://{HOST}:{bound.getsockname()[1]}"
    try:
        for _ in range(600):
            with urllib.request.urlopen(address + "/pulse", timeout=60) as answer:
                state = json.loads(answer.read())
            if state["of"] and state["read"] == state["of"]:
                break
            time.sleep(0.1)
        yield address
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(60)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine: apt-get install chromium")
    with playwright.sync_playwright() as play:
        opened = play.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield opened
        opened.close()


def forest() -> list[Tree]:
    rescued = make_tree(
        Ep(
            "go left",
            "take lamp",
            "open door",
            stop=Stop.failure,
            progress=(0, 1, 1),
            blame=1,
            note="take key",
        ),
        Ep(
            "take key",
            "!fly",
            "open box",
            stop=Stop.failure,
            branch_of=0,
            progress=(1, 1, 2),
            blame=3,
            note="open door",
        ),
        Ep("open door", "walk out", branch_of=1, progress=(3, 4)),
        Ep("wait", stop=Stop.horizon, blame=-1),
        Ep("sing", stop=Stop.diverged),
        task_id="rescued",
    )
    hostile = make_tree(
        Ep(
            "<img src=x onerror='document.title=1'><script>document.title = 'owned'</script>",
            "\x1b[31m \u202eabc",
        ),
        task_id="hostile",
    )
    return [rescued, make_tree(Ep("go", stop=Stop.failure), task_id="lost"), hostile]


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    run = make_run(tmp_path / "run", forest())
    with serving(run, tmp_path / "cache") as where:
        yield where


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """A page that fails the test where anything is said on the console, or asked of another
    host."""
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    page = context.new_page()
    page.set_default_timeout(120_000)
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on(
        "request",
        lambda request: (
            said.append(request.url) if not request.url.startswith(f"http://{HOST}:") else None
        ),
    )
    yield page
    context.close()
    assert said == []


def test_from_the_stages_to_a_reflection_by_clicks(address: str, page: Any) -> None:
    page.goto(address)
    page.get_by_role("link", name=STAGE, exact=True).click()
    page.get_by_role("link", name=re.compile("solved by rollback only")).click()
    assert page.get_by_role("link", name="rescued", exact=True).count() == 1
    assert page.get_by_role("link", name="lost", exact=True).count() == 0
    page.get_by_role("link", name="rescued", exact=True).click()
    assert (
        page.locator("#panel-title").inner_text() == "Step 3 of episode #2"
    )  # where the branch that won begins
    page.locator("#panel .change").get_by_role("link", name="reflection").click()
    page.wait_for_function(
        "() => document.querySelector('#panel-title').textContent.startsWith('Reflection "
        "after 4 actions of episode #1')"
    )
    assert "turn=1.4r0" in page.url
    page.go_back()
    page.wait_for_function(
        "() => document.querySelector('#panel-title').textContent === 'Step 3 of episode #2'"
    )
    page.locator("svg.tree a.node").first.click()
    page.wait_for_function(
        "() => document.querySelector('#panel-title').textContent === 'Step 0 of episode #0'"
    )
    deep = page.url
    page.goto("about:blank")
    page.goto(deep)
    assert page.locator("#panel-title").inner_text() == "Step 0 of episode #0"


def test_keys_walk_the_tree(address: str, page: Any) -> None:
    page.goto(f"{address}/tree/{STAGE}?task=rescued&turn=0.0")

    def at(title: str) -> None:
        page.wait_for_function(
            "title => document.querySelector('#panel-title').textContent === title", arg=title
        )

    for key, title in [
        ("j", "Step 1 of episode #1"),
        ("j", "Step 3 of episode #2"),
        ("k", "Step 1 of episode #1"),
        ("l", "Step 2 of episode #1"),
        ("h", "Step 1 of episode #1"),
        ("h", "Step 0 of episode #0"),
        ("l", "Step 1 of episode #1"),
        ("r", "Reflection after 3 actions of episode #0"),
    ]:
        page.keyboard.press(key)
        at(title)
    page.locator("#tree").focus()
    page.keyboard.press("ArrowDown")
    at("Step 1 of episode #1")
    page.keyboard.press("/")
    page.keyboard.type("jkl")
    assert page.locator("#search").input_value() == "jkl"
    at("Step 1 of episode #1")
    page.locator("#panel-title").click()
    page.get_by_role("button", name="turn keys off").click()
    page.keyboard.press("k")
    page.wait_for_timeout(300)
    at("Step 1 of episode #1")
    page.get_by_role("button", name="turn keys on").click()
    page.keyboard.press("n")
    page.wait_for_url(re.compile("task=lost"))


def test_search_leads_to_the_turn(address: str, page: Any) -> None:
    page.goto(address)
    page.locator("#search").fill("walk out")
    page.keyboard.press("Enter")
    page.wait_for_url(re.compile("/search"))
    assert page.locator(".hits mark").first.inner_text() == "walk"
    page.locator(".hits a").first.click()
    assert page.locator("#panel-title").inner_text() == "Step 4 of episode #2"


def test_hostile_text_does_nothing(address: str, page: Any) -> None:
    for turn in ("0.0", "0.1"):
        page.goto(f"{address}/tree/{STAGE}?task=hostile&turn={turn}")
        page.wait_for_timeout(200)
        assert page.title() == "hostile · demo"
        assert page.locator("img").count() == 0
        assert page.locator("script").count() == 1
    assert "onerror" in page.locator("#trajectory").inner_text()


def test_it_follows_a_run_that_goes_on(tmp_path: Path, page: Any) -> None:
    tree = forest()[0]
    run = make_run(tmp_path / "run", [Tree(tree.task, tree.episodes[:1])])
    with serving(run, tmp_path / "cache") as address:
        page.goto(f"{address}/tree/{STAGE}?task=rescued&turn=0.0")
        assert page.locator("svg.tree .number").count() == 1
        with Journal(run / STAGE, fsync=False) as journal:
            for episode in tree.episodes[1:]:
                journal.append([episode])
        page.wait_for_function(
            "() => document.querySelectorAll('svg.tree .number').length === 5", timeout=60_000
        )
        assert page.locator("#panel-title").inner_text() == "Step 0 of episode #0"
        page.goto("about:blank")


def test_without_scripts_it_is_plain_pages(address: str, browser: Any) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(address)
    page.get_by_role("link", name=STAGE, exact=True).click()
    page.get_by_role("link", name="rescued", exact=True).click()
    assert page.locator("table.steps tbody tr").count() >= 5
    page.get_by_role("link", name="next branch").click()
    assert page.locator("#panel-title").inner_text() == "Step 0 of episode #3"
    page.locator("#trajectory a").last.click()
    assert "cannot be used" in page.locator("#panel").inner_text()
    page.locator("details#all summary").click()
    assert page.locator("details#all tbody tr").count() == 5
    page.locator("#search").fill("lamp")
    page.get_by_role("button", name="Search").click()
    assert page.locator(".hits li").count() > 0
    context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(address: str, browser: Any, scheme: str) -> None:
    axe = pytest.importorskip(
        "axe_playwright_python.sync_playwright", reason="pip install axe-playwright-python"
    )
    context = browser.new_context(
        color_scheme=scheme, bypass_csp=True, viewport={"width": 1440, "height": 900}
    )
    page = context.new_page()
    page.set_default_timeout(120_000)
    wrong = []
    paths = [
        "/",
        f"/tasks/{STAGE}",
        f"/tasks/{STAGE}?show=rescued&sort=turns",
        "/search",
        "/search?q=key",
        "/nothing",
    ]
    paths += [
        f"/tree/{STAGE}?task=rescued&turn={turn}"
        for turn in ("0.0", "1.1", "1.2", "0.3r0", "3.1r0")
    ] + [f"/tree/{STAGE}?task=hostile"]
    for path in paths:
        page.goto(address + path)
        page.wait_for_timeout(100)
        page.evaluate("for (const each of document.querySelectorAll('details')) each.open = true")
        found = axe.Axe().run(page).response["violations"]
        wrong += [
            (
                path,
                each["id"],
                each["nodes"][0]["html"][:200],
                each["nodes"][0].get("failureSummary", "")[:300],
            )
            for each in found
        ]
    context.close()
    assert not wrong, "\n".join(map(str, wrong))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_screenshot_shows_the_outcomes_in_their_colours(
    address: str, browser: Any, scheme: str, tmp_path: Path
) -> None:
    """Success and failure are seen apart, by colour and by shape: their marks are drawn, and differ
    in both."""
    context = browser.new_context(color_scheme=scheme, viewport={"width": 1440, "height": 900})
    page = context.new_page()
    page.goto(f"{address}/tree/{STAGE}?task=rescued&turn=0.0")
    seen = {}
    for stop in ("success", "failure", "horizon", "diverged"):
        mark = page.locator(f"svg.tree .mark.o-{stop}").first
        box = mark.bounding_box()
        assert box is not None
        assert min(box["width"], box["height"]) > 8
        seen[stop] = (
            mark.get_attribute("href"),
            mark.evaluate("each => getComputedStyle(each).color"),
        )
    assert (
        len({shape for shape, _ in seen.values()})
        == len({colour for _, colour in seen.values()})
        == 4
    )
    whole = page.screenshot(path=tmp_path / "tree.png")
    assert len(whole) > 20_000
    context.close()


def test_a_narrow_window_scrolls_down_and_not_sideways(address: str, browser: Any) -> None:
    context = browser.new_context(viewport={"width": 390, "height": 844})
    page = context.new_page()
    for path in ["/", f"/tasks/{STAGE}", f"/tree/{STAGE}?task=rescued", "/search?q=key"]:
        page.goto(address + path)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), path
    context.close()
