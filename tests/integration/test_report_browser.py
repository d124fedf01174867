"""The report in a real Chromium, from the disk, as a colleague opens it: axe-core finds nothing,
and nothing is asked of anybody."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from leafe.pipeline import report_run, run_recipe
from leafe.recipes import load_recipe
from tests.integration.test_view_browser import browser  # noqa: F401  # a fixture

pytestmark = [pytest.mark.real, pytest.mark.slow]
SMALL = str(Path(__file__).parents[1] / "pipeline" / "small.toml")


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "run"
    run_recipe(
        load_recipe(
            SMALL,
            (
                'strategies=["tree","independent"]',
                "evaluate.tries={reflexion={samples=2, attempts=2}}",
            ),
        ),
        run,
    )
    report_run(run, Console(quiet=True))
    return run / "report.html"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_in_the_report(report: Path, browser: Any, scheme: str) -> None:  # noqa: F811
    axe = pytest.importorskip(
        "axe_playwright_python.sync_playwright", reason="pip install axe-playwright-python"
    )
    context = browser.new_context(
        color_scheme=scheme, bypass_csp=True, viewport={"width": 1280, "height": 900}
    )
    page = context.new_page()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(report.as_uri())
    page.evaluate("for (const each of document.querySelectorAll('details')) each.open = true")
    found = axe.Axe().run(page).response["violations"]
    context.close()
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
    assert not found, "\n".join(
        (
            f"{each['id']}: {each['nodes'][0]['html'][:200]} "
            f"{each['nodes'][0].get('failureSummary', '')[:300]}"
        )
        for each in found
    )
