"""The documentation says what is there: its commands and flags exist, its code runs, its links lead
somewhere, and the site needs nothing from elsewhere."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import json
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from leafe.cli import app
from leafe.core import UserError
from leafe.prompts import load_prompt_set
from leafe.recipes import load_recipe, parse_recipe, recipe_names
from tests.pages import LANGUAGES, ROOT, Block, blocks, command_lines, indented_code, play

DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
WRITTEN_ELSEWHERE = {"results.md", "design.md", "study.md"}
"""Pages of figures and plans: their blocks are checked, and none is code to be run."""
FENCED = [ROOT / "README.md", *PAGES]
PLAYED = [
    page
    for page in PAGES
    if page.name not in WRITTEN_ELSEWHERE
    and any(b.language in {"python", "console", "bash"} for b in blocks(page))
]
STANDS_FOR = re.compile(r"[A-Z][A-Z0-9_+]*|\.\.\.")
"""A word of a command that the reader replaces: RECIPE, RUN, ..."""
FLAGS = {
    # as their projects document them (vLLM 0.31's `vllm serve`, SGLang's "Server Arguments",
    # llama.cpp's server README, Slurm's manuals), in November 2026
    "vllm serve": {
        "--port",
        "--host",
        "--enable-prompt-tokens-details",
        "--data-parallel-size",
        "--tensor-parallel-size",
        "--max-model-len",
        "--gpu-memory-utilization",
        "--enable-lora",
        "--max-lora-rank",
        "--served-model-name",
    },
    "python -m sglang.launch_server": {
        "--model-path",
        "--port",
        "--host",
        "--enable-cache-report",
        "--dp",
        "--tp",
        "--context-length",
    },
    "llama-server": {"-m", "--port", "--host", "--parallel", "-c"},
    "sbatch": {"--parsable", "--dependency", "--wrap", "--array"},
    "curl": {"-s", "-o"},
    "torchrun": {"--nproc_per_node", "--nproc-per-node", "--nnodes", "--standalone", "-m"},
    "alfworld-download": set[str](),
}
INSTALLED = {
    "ray start": ["ray", "start"],
    "ray stop": ["ray", "stop"],
    "ray status": ["ray", "status"],
    "ray symmetric-run": ["ray", "symmetric-run"],
    "transformers serve": ["transformers", "serve"],
    "accelerate launch": ["accelerate", "launch"],
    "accelerate config": ["accelerate", "config"],
}
"""Tools that are here and say themselves what flags they have."""
SHELL = {
    ".",
    "hf",
    "eval",
    "jq",
    "export",
    "cd",
    "mkdir",
    "cat",
    "ls",
    "head",
    "set",
    "scontrol",
    "echo",
    "source",
    "git",
    "python",
    "python3",
    "pip",
    "pipx",
}


def every_block() -> list[Block]:
    return [block for page in FENCED for block in blocks(page)]


@pytest.mark.parametrize("block", every_block(), ids=lambda b: b.where)
def test_a_block_is_sound(block: Block) -> None:
    """Whether it is run or not: its language is known, it parses, what it imports and the flags
    that it gives exist."""
    assert block.language in LANGUAGES, (
        f"{block.where}: the language {block.language!r}: write one of {', '.join(LANGUAGES)}"
    )
    for note, reason in block.notes.items():
        assert len(reason) >= (10 if note == "not run" else 1), (
            f"{block.where}: '{note}' wants a reason"
        )
    if block.language == "python":
        check_python(block)
    elif block.language == "toml":
        check_toml(block)
    elif block.language == "json":
        json.loads(block.text)
    elif block.language == "yaml":
        yaml.safe_load(block.text)
    elif block.language in {"console", "bash"}:
        scripts = (
            [command for command, _ in block.commands()]
            if block.language == "console"
            else [block.text]
        )
        for script in scripts:
            done = subprocess.run(
                ["bash", "-n", "-c", script],
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
            assert done.returncode == 0, f"{block.where}: {done.stderr}"
        for words in command_lines(block):
            check_command(block, words)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_code_is_fenced(page: Path) -> None:
    if page.name not in WRITTEN_ELSEWHERE:
        assert not indented_code(page), (
            f"{page.name}: code by indentation in lines {indented_code(page)}: fence it "
            "and name its language"
        )


def check_python(block: Block) -> None:
    for node in ast.walk(ast.parse(block.text)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "leafe":
            module = importlib.import_module(str(node.module))
            for alias in node.names:
                assert hasattr(module, alias.name) or importlib.util.find_spec(
                    f"{node.module}.{alias.name}"
                ), f"{block.where}: no {node.module}.{alias.name}"


def check_toml(block: Block) -> None:
    """A whole recipe, a prompt set, or a part of a recipe, which is laid over the demo's."""
    data = tomllib.loads(block.text)
    if "project" in data:
        return
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "block.toml"
        file.write_text(block.text, "utf-8")
        if "system" in data:
            load_prompt_set(str(file))
        elif "extends" in data or "name" in data:
            load_recipe(str(file))
        else:
            below = load_recipe("demo").model_dump(mode="json")
            below["policy"]["options"] = {}  # those of another kind of policy
            parse_recipe(laid_over(below, data), block.where)


def laid_over(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    both = {
        key: laid_over(below[key], value)
        for key, value in above.items()
        if isinstance(value, dict) and isinstance(below.get(key), dict)
    }
    return below | above | both


def check_command(block: Block, words: list[str]) -> None:
    name = Path(words[0]).name or words[0]
    two = " ".join(words[:2])
    module = " ".join(words[:3]) if words[1:2] == ["-m"] else ""
    if name == "leafe" or module == "python -m leafe.cli":
        check_leafe(block, words[1:] if name == "leafe" else words[3:])
    elif name == "srun":
        check_command(block, words[1:])
    elif module in FLAGS or two in FLAGS or name in FLAGS:
        check_flags(block, words, FLAGS[next(t for t in (module, two, name) if t in FLAGS)])
    elif two in INSTALLED:
        end = (
            words.index("--") if "--" in words else len(words)
        )  # its own flags: see test_flags_of_the_tools_that_are_here
        if "leafe" in words[end:]:
            check_leafe(block, words[words.index("leafe", end) + 1 :])
    elif module.startswith("python -m "):
        assert importlib.util.find_spec(words[2].split(".")[0]) or words[2] in {"venv"}, (
            f"{block.where}: there is no module {words[2]}"
        )
        if words[2].startswith(("leafe.", "bench.", "studies.")):
            assert importlib.util.find_spec(words[2]), (
                f"{block.where}: there is no module {words[2]}"
            )
        check_extras(block, words)
    elif name in {"pip", "pipx", "python", "python3"} or words[0].startswith(".venv/"):
        check_extras(block, words)
    elif name == "make":
        targets = set(
            re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
        )
        assert set(words[1:]) <= targets, f"{block.where}: make has no {set(words[1:]) - targets}"
    else:
        known = name in SHELL or "=" in words[0] or STANDS_FOR.fullmatch(words[0])
        assert known, (
            f"{block.where}: nobody checks the command {words[0]!r}: add it to FLAGS or SHELL"
        )


def check_flags(block: Block, words: list[str], known: set[str]) -> None:
    for word in words[1:]:
        flag = word.split("=")[0]
        if re.fullmatch(r"--?[a-zA-Z][\w-]*", flag) and word != "-m":
            assert flag in known, (
                f"{block.where}: {words[0]} {flag}: not among the flags that are known to exist"
            )


def check_extras(block: Block, words: list[str]) -> None:
    known = set(
        tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"][
            "optional-dependencies"
        ]
    )
    for extras in re.findall(r"leafe\[([^\]]+)\]|\.\[([^\]]+)\]", " ".join(words)):
        for extra in (extras[0] or extras[1]).split(","):
            assert extra in known, f"{block.where}: leafe has no extra {extra!r}"


def flags_of(tool: str) -> set[str] | None:
    """None where the tool is not installed."""
    program = Path(sys.executable).parent / INSTALLED[tool][0]
    if not program.exists():
        return None
    done = subprocess.run(
        [str(program), *INSTALLED[tool][1:], "--help"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return set(re.findall(r"--?[a-zA-Z][\w-]*", done.stdout + done.stderr)) | (
        {"--num-cpus", "--num-gpus"} if tool == "ray symmetric-run" else set()
    )


def check_leafe(block: Block, words: list[str]) -> None:
    """As the command line would read it, without doing anything; overrides are laid over the recipe
    where it is there."""
    command: Any = typer.main.get_command(app)
    path = ["leafe"]
    words = [word for word in words if not word.startswith((">", "2>"))]
    while hasattr(command, "commands") and words and not words[0].startswith("-"):
        assert words[0] in command.commands, (
            f"{block.where}: there is no command {' '.join([*path, words[0]])}"
        )
        command, path, words = command.commands[words[0]], [*path, words[0]], words[1:]
    known = {option for p in command.params for option in (*p.opts, *p.secondary_opts)} | {"--help"}
    for word in words:
        if word.startswith("--"):
            assert word.split("=")[0] in known, (
                f"{block.where}: {' '.join(path)} has no option {word.split('=')[0]}: "
                f"{', '.join(sorted(known))}"
            )
    if path[-1] in {"run", "explore", "distill", "evaluate", "demo"}:
        recipe = (
            "demo" if path[-1] == "demo" else next((w for w in words if not w.startswith("-")), "")
        )
        overrides = [w for w in words if re.match(r"[a-z_]+[\w.\"+-]*=", w)]
        if recipe in recipe_names() and not any(
            STANDS_FOR.fullmatch(w.partition("=")[2]) for w in overrides
        ):
            load_recipe(recipe, overrides)


@pytest.mark.slow
@pytest.mark.parametrize("tool", INSTALLED)
def test_flags_of_the_tools_that_are_here(tool: str) -> None:
    """Each is asked itself: seconds, for those that import torch to say their help."""
    known = flags_of(tool)
    if known is None:
        pytest.skip(f"{tool.split()[0]} is not installed")
    for block in every_block():
        for words in command_lines(block) if block.language in {"console", "bash"} else ():
            words = words[1:] if words[0] == "srun" else words
            if " ".join(words[:2]) == tool:
                check_flags(
                    block, words[: words.index("--") if "--" in words else len(words)], known
                )


def test_what_the_checks_refuse(tmp_path: Path) -> None:
    """A command, a flag, an override, an extra, an import, a recipe key that are not there, and an
    unknown language."""

    def block(language: str, text: str) -> Block:
        return Block(tmp_path / "page.md", 1, language, None, {}, text)

    wrong = [
        block("bash", "leafe explode demo"),
        block("bash", "leafe run demo --fast"),
        block("bash", "leafe run demo explore.limitz.policy_calls=3"),
        block("bash", "pip install 'leafe[everything]'"),
        block("bash", "vllm serve MODEL --make-it-quick"),
        block("bash", "unknown-tool --help"),
        block("bash", "if then"),
        block("console", "$ leafe report RUN --colour"),
        block("python", "from leafe.core import Turnip"),
        block("toml", "[explore]\ndeepness = 3"),
        block("json", "{"),
        block("ruby", "puts 1"),
    ]
    for one in wrong:
        with pytest.raises((AssertionError, UserError, ValueError, pytest.fail.Exception)):
            test_a_block_is_sound(one)


def test_a_page_that_says_what_does_not_come_fails(tmp_path: Path) -> None:
    def page(*lines: str) -> list[Block]:
        (tmp_path / "page.md").write_text("\n".join(lines))
        return blocks(tmp_path / "page.md")

    play(page("```console", "$ echo one; echo two 2.5 s", "one", "two ... s", "```"), tmp_path)
    play(
        page(
            '```python title="a.py"', "print(7)", "```", "```console", "$ python a.py", "7", "```"
        ),
        tmp_path,
    )
    play(
        page(
            "<!-- exit: 3 -->",
            "```console",
            "$ exit 3",
            "```",
            "<!-- not run: there is no such program -->",
            "```bash",
            "no-such-program",
            "```",
        ),
        tmp_path,
    )
    for lines in (
        ["```console", "$ echo one", "two", "```"],
        ["```console", "$ false", "```"],
        ["```python", "1/0", "```"],
        ["```bash", "false; true", "```"],
    ):
        with pytest.raises(AssertionError, match=r"page.md:1"):
            play(page(*lines), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("page", PLAYED, ids=lambda p: p.name)
def test_a_page_plays(page: Path, tmp_path: Path) -> None:
    """Every block of the page in order, in one folder, as its notes say."""
    pytest.importorskip("torch", reason="the pages train: pip install 'leafe[hf]'")
    play(blocks(page), tmp_path)


def test_the_env_in_twenty_lines_has_twenty_lines() -> None:
    found = [b for b in blocks(DOCS / "own-environment.md") if b.title and b.title.endswith(".py")]
    lines = [line for line in found[0].text.splitlines() if line.strip()]
    assert len(lines) <= 20, f"{found[0].title} has {len(lines)} lines that are not blank"


def test_every_command_stands_on_its_page() -> None:
    """Commands and their options; a new one wants a line there."""
    text = (DOCS / "commands.md").read_text("utf-8")
    top: Any = typer.main.get_command(app)
    missing = []

    def look(command: Any, path: str) -> None:
        for name, child in getattr(command, "commands", {}).items():
            look(child, f"{path} {name}")
        if f"`{path}" not in text:
            missing.append(path)
        section = text.split(f"`{path}", 1)[-1].split("\n## ", 1)[0]
        options = [o for p in command.params for o in p.opts if o.startswith("--")]
        missing.extend(f"{path} {o}" for o in options if o not in section)

    for name, command in top.commands.items():
        look(command, f"leafe {name}")
    assert not missing, f"docs/commands.md lacks {', '.join(missing)}"


def test_links_within_the_documentation_lead_somewhere() -> None:
    """Without the generator, so that the quick tests see it: files; `make docs` sees the anchors
    too."""
    for page in PAGES:
        for target in re.findall(r"\]\(([\w/.-]+\.\w+)(?:#[\w-]*)?\)", page.read_text("utf-8")):
            assert (page.parent / target).resolve().is_file(), (
                f"{page.relative_to(ROOT)} points to {target}"
            )


def test_every_page_is_in_the_navigation() -> None:
    class Loader(yaml.SafeLoader): ...

    Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda loader, suffix, node: suffix)
    nav = re.findall(
        r"[\w/-]+\.md",
        json.dumps(yaml.load((ROOT / "mkdocs.yml").read_text("utf-8"), Loader)["nav"]),
    )
    assert sorted(nav) == sorted(str(page.relative_to(DOCS)) for page in PAGES)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("zensical", reason="the site wants its generator: pip install -e '.[docs]'")
    pytest.importorskip(
        "mkdocstrings", reason="the site wants its generator: pip install -e '.[docs]'"
    )
    here = tmp_path_factory.mktemp(
        "site"
    )  # a copy, since it is built into the folder of its settings
    shutil.copytree(DOCS, here / "docs")
    shutil.copytree(
        ROOT / "src" / "leafe",
        here / "src" / "leafe",
        ignore=shutil.ignore_patterns("__pycache__", "*.safetensors"),
    )
    shutil.copy(ROOT / "mkdocs.yml", here)
    done = subprocess.run(
        [sys.executable, "-m", "zensical", "build", "--strict"],
        cwd=here,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, f"zensical build --strict\n{(done.stdout + done.stderr)[-4000:]}"
    return here / "site"


@pytest.mark.slow
def test_the_site_builds_without_a_warning(site: Path) -> None:
    """Strict: a dead link, a dead anchor, a page outside the navigation, a name that is not in the
    package each end the build."""
    assert {p.stem for p in site.glob("*.html")} >= {"index", "quickstart", "troubleshooting"}
    api = "".join(p.read_text("utf-8") for p in (site / "api").glob("*.html"))
    for name in (
        "leafe.core.Environment.reset",
        "leafe.explore.ExploreConfig.max_depth",
        "leafe.distill.DistillConfig.rehearsal_weight",
        "leafe.baselines.grpo.train",
    ):
        assert f'id="{name}"' in api, f"{name} is not in the reference"


@pytest.mark.slow
def test_the_site_asks_nobody_for_anything(site: Path) -> None:
    """No script, style, font, picture or frame from elsewhere; links that a reader may follow are
    no such thing."""
    asked = []
    for page in [*site.rglob("*.html"), *site.rglob("*.css")]:
        text = page.read_text("utf-8")
        asked += [
            f"{page.relative_to(site)}: {tag}"
            for tag in re.findall(
                r"<(?:script|img|iframe|source|video)\b[^>]*\bsrc=\"?(?:https?:)?//[^>]+", text
            )
        ]
        asked += [
            f"{page.relative_to(site)}: {tag}"
            for tag in re.findall(r"<link\b[^>]*>", text)
            if "//" in tag and 'rel="canonical"' not in tag
        ]
        asked += [
            f"{page.relative_to(site)}: {url}"
            for url in re.findall(
                r"url\(\s*[\"']?(?:https?:)?//[^)]+\)|@import\s+[\"'](?:https?:)?//[^\"']+", text
            )
        ]
    assert not asked
