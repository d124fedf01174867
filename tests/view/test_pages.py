"""The pages: what they show is what the tree holds, nothing that a model wrote becomes more than
text, and every fault is a sentence."""

from __future__ import annotations

import asyncio
import json
import re
import urllib.parse
from collections.abc import Awaitable, Callable, Iterable
from html.parser import HTMLParser
from pathlib import Path

import pytest
from aiohttp.test_utils import TestClient, TestServer

from leafe.core import Kind, Scope, Stop, Tree, visible
from leafe.core.text import HOSTILE as HOSTILE_CHARACTER
from leafe.distill import build, preset
from leafe.prompts import Prompts, load_prompt_set
from leafe.view import make_app
from leafe.view._drawing import lanes
from leafe.view._server import _PAGES
from tests.trees import Ep, make_tree
from tests.view.folders import STAGE, make_run, new_run, write_stage

HOSTILE = [
    "<script>alert(1)</script>",
    "\"><img src=x onerror=alert(1)>'",
    "</pre></svg></title><script>alert(1)</script>",
    "{{ 7 * 7 }}{% raw %}",
    "javascript:alert(1)",
    "\x1b[31mred\x1b[0m \x1b]0;title\x07",
    "\u202egnirts\u202c \u2066x\u2069",
    "nul\x00l",
    "half \ud800 pair \udfff",
    "&lt;b&gt; &amp; <b>",
    "钥匙 مفتاح กุญแจ 🗝️",
]
VOID = {"meta", "link", "input", "br", "img", "hr"}


class Page(HTMLParser):
    """A page as a browser takes it apart: elements with their attributes, links, text; and whether
    every element is closed."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.html = html
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.open: list[str] = []
        self.wrong: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if len(dict(attrs)) != len(attrs):
            self.wrong.append(f"<{tag}> has an attribute twice")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open[-1] != tag:
            self.wrong.append(f"</{tag}> closes {self.open[-1:]}")
        else:
            self.open.pop()

    def handle_data(self, data: str) -> None:
        self.text += data

    @property
    def links(self) -> list[str]:
        return [a["href"] or "" for tag, a in self.elements if tag == "a" and "href" in a]

    def ids(self) -> dict[str, str]:
        """Link by the element's id."""
        return {
            a["id"] or "": a["href"] or ""
            for tag, a in self.elements
            if tag == "a" and "id" in a and "href" in a
        }


class Answer:
    def __init__(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.status, self.headers, self.body = status, headers, body

    @property
    def page(self) -> Page:
        return Page(self.body.decode())


Get = Callable[..., Awaitable[Answer]]


def visit(run: Path, cache: Path, tour: Callable[[Get], Awaitable[None]]) -> None:
    """Go through pages of the run with everything read."""

    async def main() -> None:
        app = make_app(run, cache, follow=False)
        pages = app[_PAGES]
        pages.follower.update()
        pages.warm()
        async with TestClient(TestServer(app)) as client:

            async def get(path: str, **headers: str) -> Answer:
                async with client.get(path, headers=headers) as answer:
                    return Answer(answer.status, dict(answer.headers), await answer.read())

            await tour(get)

    asyncio.run(main())


async def ready(get: Get, path: str) -> Page:
    """The page once what is done in the background is there."""
    for _ in range(200):
        page = (await get(path)).page
        if "look again in a moment" not in page.text:
            return page
        await asyncio.sleep(0.1)
    raise AssertionError("it never was ready")


def tree_path(task: str, **more: str) -> str:
    return f"/tree/{STAGE}?" + urllib.parse.urlencode({"task": task} | more)


def hostile_tree(text: str, task_id: str = "t0") -> Tree:
    return make_tree(
        Ep(f"go {text}", "look", stop=Stop.failure, blame=0, note=f"note {text}"),
        Ep(f"take {text}", "!fly", stop=Stop.failure, branch_of=0, blame=-1, note=text),
        Ep("walk", preamble=(text,)),
        task_id=task_id,
    )


def harmless(page: Page) -> None:
    """No element, attribute or address that is not the viewer's own."""
    assert not page.wrong, page.wrong[:3]
    scripts = [a for tag, a in page.elements if tag == "script"]
    assert scripts == [{"type": "module", "src": "/static/view.js"}]
    assert not {tag for tag, _ in page.elements} & {
        "img",
        "iframe",
        "object",
        "embed",
        "style",
        "base",
        "b",
        "foreignobject",
    }
    for tag, attributes in page.elements:
        assert not [
            name for name in attributes if name.startswith("on") or name in ("style", "srcdoc")
        ], (tag, attributes)
        for name in ("href", "src", "action"):
            address = attributes.get(name)
            assert address is None or address.startswith(("/", "?", "#")), (tag, address)
    assert "http:" not in page.html
    assert "https:" not in page.html


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_text_is_text(tmp_path: Path, text: str) -> None:
    tree = hostile_tree(text, task_id=f"task {text}")
    run = make_run(tmp_path / "run", [tree])
    clean = text.encode("utf-8", "backslashreplace").decode()
    task = f"task {clean}"

    async def tour(get: Get) -> None:
        for path in [
            "/",
            f"/tasks/{STAGE}",
            f"/tasks/{STAGE}?named=" + urllib.parse.quote(clean),
            "/search?q=" + urllib.parse.quote(clean),
            "/search?q=go",
        ]:
            answer = await get(path)
            assert answer.status == 200
            harmless(answer.page)
            assert not HOSTILE_CHARACTER.search(answer.body.decode())
        for turn in tree:
            answer = await get(
                tree_path(
                    task,
                    turn=turn.id.removeprefix(tree.task.id + "/")
                    .encode("utf-8", "backslashreplace")
                    .decode(),
                )
            )
            assert answer.status == 200
            harmless(answer.page)
            assert "look" in answer.page.text
            assert not HOSTILE_CHARACTER.search(answer.body.decode())
        for path in (
            f"/tasks/{urllib.parse.quote(clean)}",
            tree_path(clean),
            f"/{urllib.parse.quote(clean)}",
        ):
            answer = await get(path)
            assert answer.status == 404
            harmless(answer.page)
            assert not HOSTILE_CHARACTER.search(answer.body.decode())

    visit(run, tmp_path / "cache", tour)


@pytest.mark.parametrize("name", ["a\u202eb", "a\u2066b", "a\u200bb", "a\x1b[2Jb", "a\x9bb"])
def test_names_of_arms_and_stages_steer_nothing(tmp_path: Path, name: str) -> None:
    run = make_run(tmp_path / "run", [make_tree(Ep("go"))])
    write_stage(run, [make_tree(Ep("go"))], stage=f"evaluate/{name}", together=True)

    async def tour(get: Get) -> None:
        await ready(get, "/")
        for path in ("/", f"/tasks/{urllib.parse.quote('evaluate/' + name)}", "/search?q=go"):
            answer = await get(path)
            assert answer.status == 200
            assert visible(name) in answer.page.text
            assert not HOSTILE_CHARACTER.search(answer.body.decode())

    visit(run, tmp_path / "cache", tour)


def test_ordinary_hostile_text_can_be_read_as_it_was(tmp_path: Path) -> None:
    text = "</pre><script>alert(1)</script> & {{ x }}"
    run = make_run(tmp_path / "run", [make_tree(Ep(text))])

    async def tour(get: Get) -> None:
        assert text in (await get(tree_path("t0", turn="0.0"))).page.text
        raw = await get(f"/raw/{STAGE}?task=t0&turn=0.0&what=said")
        assert raw.body.decode() == text
        assert raw.headers["Content-Type"] == "text/plain; charset=utf-8"
        assert raw.headers["X-Content-Type-Options"] == "nosniff"

    visit(run, tmp_path / "cache", tour)


def test_every_answer_forbids_what_is_not_the_viewers_own(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [make_tree()])

    async def tour(get: Get) -> None:
        paths = [
            "/",
            f"/tasks/{STAGE}",
            tree_path("t0"),
            "/search?q=go",
            "/pulse",
            "/static/view.js",
            f"/raw/{STAGE}?task=t0&turn=0.0&what=said",
            "/nothing",
        ]
        for path in paths:
            policy = (await get(path)).headers["Content-Security-Policy"]
            assert policy.startswith("default-src 'none'")
            assert "unsafe" not in policy
            assert "http" not in policy
        for host in ("evil.example", "evil.example:80", "127.0.0.1.evil.example", "[::2]:80", ""):
            answer = await get("/", Host=host)
            assert answer.status in (400, 421), host
            assert b"demo" not in answer.body
        for host in ("localhost", "localhost:99", "127.0.0.1", "[::1]:8765"):
            assert (await get("/", Host=host)).status == 200

    visit(run, tmp_path / "cache", tour)


@pytest.mark.parametrize(
    "shape",
    ["long lines", "many turns", "many branches", "long prompts", "odd characters", "many tasks"],
)
def test_no_page_is_heavier_than_300_kb(tmp_path: Path, shape: str) -> None:
    line = "x" * 1_000_000
    forest: Iterable[Tree]
    match shape:
        case "long lines":
            forest = [
                make_tree(
                    Ep(line, line + "y", stop=Stop.failure, blame=0, note=line),
                    Ep(line, branch_of=0),
                )
            ]
        case "odd characters":
            forest = [hostile_tree("\x1b\u202e<&" * 30_000)]
        case "many turns":
            forest = [
                make_tree(
                    *[
                        Ep(
                            *[f"step {i} of them all and more" for i in range(300)],
                            stop=Stop.horizon,
                        )
                        for _ in range(3)
                    ]
                )
            ]
        case "many branches":
            forest = [
                make_tree(
                    *[
                        Ep(*[f"step {i} of them" for i in range(12)], stop=Stop.failure)
                        for _ in range(300)
                    ]
                )
            ]
        case "long prompts":
            forest = [
                make_tree(Ep(*[f"{i} " + "word " * 600 for i in range(60)], stop=Stop.horizon))
            ]
        case _:
            forest = [make_tree(Ep("go"), task_id=f"{i} " + "name " * 200) for i in range(120)]
    forest = list(forest)
    run = make_run(tmp_path / "run", forest, together=shape == "many branches")
    files = sum(
        (Path(__file__).parents[2] / "src/leafe/view/static" / name).stat().st_size
        for name in ("view.css", "view.js", "mark.svg")
    )

    async def tour(get: Get) -> None:
        task = forest[0].task.id
        turns = list(forest[0])
        search = urllib.parse.quote("step OR x" if shape == "many turns" else "go")
        for path in [
            "/",
            f"/tasks/{STAGE}",
            f"/search?q={search}",
            *(tree_path(task, turn=t.id.rpartition("/")[2]) for t in (turns[0], turns[-1])),
        ]:
            await ready(get, path)
            answer = await get(path)
            assert answer.status == 200
            assert len(answer.body) + files < 300_000, path

    visit(run, tmp_path / "cache", tour)


def test_the_list_has_its_filters_as_links(tmp_path: Path) -> None:
    solved = make_tree(Ep("go"), task_id="at-once")
    rescued = make_tree(
        Ep("go", stop=Stop.failure, blame=0, note="n"), Ep("take", branch_of=0), task_id="rescued"
    )
    lost = make_tree(Ep("go", stop=Stop.failure), task_id="lost")
    run = make_run(tmp_path / "run", [solved, rescued, lost])

    async def tour(get: Get) -> None:
        page = (await get(f"/tasks/{STAGE}")).page
        for name, tasks in {
            "rescued": {"rescued"},
            "never": {"lost"},
            "solved": {"at-once", "rescued"},
        }.items():
            link = next(link for link in page.links if link.endswith(f"show={name}"))
            shown = (await get(link)).page
            assert {
                task for task in ("at-once", "rescued", "lost") if tree_path(task) in shown.links
            } == tasks
        assert (await get(f"/tasks/{STAGE}?show=nonsense")).status == 404
        assert (await get(f"/tasks/{STAGE}?sort=nonsense")).status == 404
        assert (await get(f"/tasks/{STAGE}?from=-5")).status == 200
        assert (await get(f"/tasks/{STAGE}?from={'9' * 40}")).status == 200

    visit(run, tmp_path / "cache", tour)


def test_the_moves_walk_every_branch_and_every_turn(tmp_path: Path) -> None:
    tree = make_tree()
    run = make_run(tmp_path / "run", [tree, make_tree(Ep("go"), task_id="t1")])

    async def tour(get: Get) -> None:
        order = [row.episode.index for row in lanes(tree)]
        path, seen = tree_path("t0", turn="0.0"), []
        while path:
            page = (await get(path)).page
            seen.append(int(re.search(r"Episode #(\d+)", page.text)[1]))  # type: ignore[index]
            path = page.ids().get("next-branch", "")
        assert seen == order
        last = tree.trajectory(tree.episodes[2])
        path, turns = tree_path("t0", turn=last[0].id.rpartition("/")[2], branch="2"), []
        while path:
            turns.append(urllib.parse.parse_qs(urllib.parse.urlsplit(path).query)["turn"][0])
            path = (await get(path)).page.ids().get("next-turn", "")
        assert turns == [t.id.rpartition("/")[2] for t in last]
        page = (await get(tree_path("t0", turn="2.2"))).page
        assert "0.3r0" not in page.ids()["to-reflection"]
        assert "1.3r0" in page.ids()["to-reflection"]
        assert (await get(page.ids()["next-task"])).page.text.count("leave the house t1")

    visit(run, tmp_path / "cache", tour)


def test_a_link_to_a_turn_shows_that_turn(tmp_path: Path) -> None:
    tree = make_tree(
        Ep("go left", "take lamp", stop=Stop.failure, blame=1, note="take key"),
        Ep("take key", branch_of=0),
        task_id="with/slash ?&=#",
    )
    run = make_run(tmp_path / "run", [tree])

    async def tour(get: Get) -> None:
        listed = next(
            link for link in (await get(f"/tasks/{STAGE}")).page.links if link.startswith("/tree/")
        )
        assert (await get(listed)).status == 200
        for turn in tree:
            page = (
                await get(tree_path(tree.task.id, turn=turn.id.removeprefix(tree.task.id + "/")))
            ).page
            assert turn.action_text in page.text
            if turn.kind is Kind.act:
                assert f"Step {turn.step} of episode #{tree.episode_of(turn.id).index}" in page.text
            else:
                assert "Reflection after 2 actions" in page.text
        drawn = [link for link in page.links if link.startswith("?")]
        assert len(drawn) == len(tree)
        for link in drawn:
            assert (await get(f"/tree/{STAGE}{link}")).status == 200
        assert (await get(tree_path(tree.task.id, turn="9.9"))).status == 404

    visit(run, tmp_path / "cache", tour)


def test_the_reflection_stands_between_what_it_changed(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [make_tree()])

    async def tour(get: Get) -> None:
        for turn in (
            "0.1",
            "0.3r0",
            "1.1",
        ):  # the action before, the reflection, the revised action
            page = (await get(tree_path("t0", turn=turn))).page
            assert "Rolled back to step 1" in page.text
            assert re.search(r"<del>lamp</del>", page.html)
            assert re.search(r"<ins>key</ins>", page.html)
            assert "failure → failure" in " ".join(
                Page(page.html.replace("<svg", "<i").replace("</svg", "</i")).text.split()
            )
        assert (
            "Rolled back"
            not in (await get(tree_path("t0", turn="2.3")))
            .page.text.split("Step 3")[1]
            .split("Prompt as sent")[0]
        )

    visit(run, tmp_path / "cache", tour)


def test_the_prompt_is_the_one_that_was_sent(tmp_path: Path) -> None:
    tree = make_tree(
        Ep("go left", "take lamp", stop=Stop.failure, blame=1, note="take key"),
        Ep("take key", "open box", branch_of=0, scope=Scope.branch),
    )
    run = make_run(tmp_path / "run", [tree])

    async def tour(get: Get) -> None:
        await ready(get, tree_path("t0", turn="1.1"))
        raw = (await get(f"/raw/{STAGE}?task=t0&turn=1.1&what=prompt")).body.decode()
        assert "start t0" in raw
        assert "go left" in raw
        assert "take key" in raw
        assert "take lamp" not in raw
        reflected = (await get(f"/raw/{STAGE}?task=t0&turn=0.2r0&what=prompt")).body.decode()
        assert "take lamp" in reflected

    visit(run, tmp_path / "cache", tour)


def test_what_is_learnt_is_what_distillation_takes(tmp_path: Path) -> None:
    tree = make_tree()
    run = make_run(tmp_path / "run", [tree])
    prompts = Prompts(load_prompt_set("gates"))
    expected = {
        (s.part, s.turn_id)
        for s in build({"t0": tree}, prompts, preset("leafe+"), 0).samples
        if s.part != "anchor"
    }
    assert {part for part, _ in expected} == {"rehearsal", "counterfactual", "reflection"}
    title = {"rehearsal": "D_reh", "counterfactual": "D_cf", "reflection": "D_refl"}

    async def tour(get: Get) -> None:
        for turn in tree:
            page = await ready(get, tree_path("t0", turn=turn.id.rpartition("/")[2], arm="leafe+"))
            panel = page.text.split("Training samples of leafe+")[1].split("Prompt as sent")[0]
            assert {part for part, name in title.items() if name in panel} == {
                part for part, of in expected if of == turn.id
            }
            if not any(of == turn.id for _, of in expected):
                assert "Nothing." in panel

    visit(run, tmp_path / "cache", tour)


def test_the_mask_covers_the_answer_and_its_end(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    run = make_run(tmp_path / "run", [make_tree(Ep("take rope", "use rope"))])

    async def tour(get: Get) -> None:
        page = await ready(get, tree_path("t0", turn="0.1"))
        target = re.findall(r'<span class="token target rehearsal"[^>]*>([^<]*)</span>', page.html)
        assert target[:2] == ["use", "rope"]
        assert len(target) == 3
        assert "3 learnt, the end-of-turn token included" in page.text
        masked = re.findall(r'<span class="token masked"[^>]*>([^<]*)</span>', page.html)
        assert "take" in masked

    visit(run, tmp_path / "cache", tour)


def test_a_share_of_the_episodes_is_a_candidate_until_it_is_drawn(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [make_tree()])

    async def tour(get: Get) -> None:
        assert "A candidate" in (await ready(get, tree_path("t0", turn="2.3", arm="leafe"))).text

    visit(run, tmp_path / "cache", tour)
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    data = run / "distill" / "leafe" / "dataset" / "rehearsal"
    data.mkdir(parents=True)
    parquet.write_table(
        pyarrow.table({"task_id": ["t0"], "turn_id": ["t0/2.3"]}), data / "train.parquet"
    )
    (run / "distill" / "leafe" / "done.json").write_text("{}")

    async def after(get: Get) -> None:
        page = await ready(get, tree_path("t0", turn="2.3", arm="leafe"))
        assert "A candidate" not in page.text
        assert "Not drawn" not in page.text
        assert "Not drawn" in (await ready(get, tree_path("t0", turn="2.2", arm="leafe"))).text

    visit(run, tmp_path / "cache", after)


def test_a_run_in_which_nothing_has_begun(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")

    async def tour(get: Get) -> None:
        assert "No stage of this run has begun yet" in (await get("/")).page.text
        answer = await get(f"/tasks/{STAGE}")
        assert answer.status == 404
        assert "there are none yet" in answer.page.text
        assert "Nothing found" in (await get("/search?q=go")).page.text

    visit(run, tmp_path / "cache", tour)


def test_a_task_without_an_episode_and_an_episode_without_a_turn(tmp_path: Path) -> None:
    run = make_run(
        tmp_path / "run",
        [make_tree(Ep(stop=Stop.env_error), task_id="empty"), Tree(make_tree(task_id="new").task)],
    )

    async def tour(get: Get) -> None:
        assert "no finished episode yet" in (await get(tree_path("new"))).page.text
        page = (await get(tree_path("empty"))).page
        harmless(page)
        assert "env error" in page.text

    visit(run, tmp_path / "cache", tour)


def test_a_damaged_stage_says_so_on_its_pages(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [make_tree()])
    shard = run / STAGE / "journal-00000.jsonl"
    shard.write_bytes(shard.read_bytes() + b"{broken}\n")

    async def tour(get: Get) -> None:
        assert "damaged" in (await get("/")).page.text
        for path in (f"/tasks/{STAGE}", tree_path("t0")):
            assert "journal-00000.jsonl, line 5 is damaged" in (await get(path)).page.text

    visit(run, tmp_path / "cache", tour)


def test_settings_of_another_version_leave_the_trees(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [make_tree()])
    (run / "config.toml").write_text(
        (run / "config.toml").read_text() + "\n[from_the_future]\nx = 1\n"
    )

    async def tour(get: Get) -> None:
        assert "not those of this leafe" in (await get("/")).page.text
        page = (await get(tree_path("t0"))).page
        assert "take lamp" in page.text
        assert "prompts and training data cannot be shown" in page.text

    visit(run, tmp_path / "cache", tour)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("env.name='nowhere'", "no environment 'nowhere'"),
        ("prompts='/nowhere.toml'", "no prompt set"),
    ],
)
def test_what_the_prompts_need_and_is_not_here_is_said(
    tmp_path: Path, change: str, words: str
) -> None:
    run = new_run(tmp_path / "run")
    key, _, value = change.partition("=")
    text = (run / "config.toml").read_text()
    old = 'name = "gates"' if key.startswith("env") else 'prompts = "gates"'
    assert old in text
    (run / "config.toml").write_text(text.replace(old, f"{key.rpartition('.')[2]} = {value}"))
    write_stage(run, [make_tree()])

    async def tour(get: Get) -> None:
        assert words in (await ready(get, tree_path("t0"))).text

    visit(run, tmp_path / "cache", tour)


def test_an_env_that_lies_in_the_runs_folder_is_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = new_run(tmp_path / "run")
    text = (run / "config.toml").read_text()
    (run / "config.toml").write_text(
        text.replace('name = "gates"', 'name = "evil_of_the_run:Evil"')
    )
    (run / "evil_of_the_run.py").write_text("open('was-run', 'w').close()")
    write_stage(run, [make_tree()])
    monkeypatch.chdir(run)

    async def tour(get: Get) -> None:
        assert "the viewer does not run its code" in (await ready(get, tree_path("t0"))).text

    visit(run, tmp_path / "cache", tour)
    assert not (run / "was-run").exists()


def test_a_run_that_was_moved_is_said_and_comes_back(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [make_tree()])

    async def tour(get: Get) -> None:
        run.rename(tmp_path / "elsewhere")
        answer = await get(tree_path("t0"))
        assert answer.status == 503
        assert "no longer there" in answer.page.text
        assert (await get(f"/tasks/{STAGE}")).status == 200  # what the index knows
        (tmp_path / "elsewhere").rename(run)
        assert (await get(tree_path("t0"))).status == 200

    visit(run, tmp_path / "cache", tour)


def test_counted_evaluation(tmp_path: Path) -> None:
    tree = make_tree(Ep("go", count=7), Ep("take", stop=Stop.failure, count=5))
    run = new_run(tmp_path / "run")
    write_stage(run, [tree], "evaluate/base", together=True)

    async def tour(get: Get) -> None:
        page = (await get("/tasks/evaluate/base")).page
        assert "7 of 12" in page.text
        page = (await get("/tree/evaluate/base?task=t0")).page
        assert "12 samples, 7 won" in page.text
        assert "×7" in page.text

    visit(run, tmp_path / "cache", tour)


def test_it_is_live(tmp_path: Path) -> None:
    """A stage that begins and grows while the viewer runs, in its own thread."""
    tree = make_tree()
    run = new_run(tmp_path / "run")

    async def main() -> None:
        app = make_app(run, tmp_path / "cache")
        async with TestClient(TestServer(app)) as client:

            async def text(path: str) -> str:
                async with client.get(path) as answer:
                    return Page(await answer.text()).text

            async def until(words: str, path: str) -> None:
                for _ in range(300):
                    if words in " ".join((await text(path)).split()):
                        return
                    await asyncio.sleep(0.1)
                raise AssertionError(f"{words!r} never came")

            await until("No stage of this run has begun yet", "/")
            async with client.get("/pulse") as answer:
                before = json.loads(await answer.text())["revision"]
            partly = Tree(tree.task, tree.episodes[:1])
            write_stage(run, [partly])
            await until("1 episode ", tree_path("t0"))
            from leafe.runs import Journal

            with Journal(run / STAGE, fsync=False) as journal:
                journal.append(tree.episodes[1:2])
            await until("2 episodes", tree_path("t0"))
            async with client.get("/pulse") as answer:
                assert json.loads(await answer.text())["revision"] > before

    asyncio.run(main())
