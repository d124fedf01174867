from __future__ import annotations

import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

from leafe.core import UserError
from leafe.policies import _registry, make_policy, policy_names


class Mine:
    name = "mine"

    def __init__(self, tone: str, loud: bool = False) -> None:
        self.tone, self.loud = tone, loud


@pytest.fixture
def announced(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = EntryPoint("mine", f"{__name__}:Mine", _registry.GROUP)
    monkeypatch.setattr(
        _registry, "entry_points", lambda group: [entry] if group == _registry.GROUP else []
    )
    monkeypatch.setitem(sys.modules, __name__, sys.modules[Mine.__module__])


def test_an_announced_policy_is_made_by_name(announced: None) -> None:
    assert policy_names() == ["hf", "http", "mine"]
    made = make_policy("mine", tone="low")
    assert (type(made).__name__, made.tone, made.loud) == ("Mine", "low", False)


def test_wrong_names_and_options_are_said_in_one_sentence(announced: None) -> None:
    with pytest.raises(UserError, match="no policy 'nope': choose one of hf, http, mine"):
        make_policy("nope")
    with pytest.raises(UserError, match="no option 'pitch': its options are tone, loud"):
        make_policy("mine", tone="low", pitch=3)
    with pytest.raises(UserError, match="needs the option 'tone'"):
        make_policy("mine")
    with pytest.raises(UserError, match="cannot be imported: No module named 'no_such_module'"):
        make_policy("no_such_module:X")
    with pytest.raises(UserError, match="has no Nope"):
        make_policy("leafe.policies.scripted:Nope")


def test_the_registry_imports_no_torch_and_names_the_extra_where_torch_is_missing() -> None:
    program = (
        "import sys\nfrom leafe.policies import make_policy\nassert 'torch' not in "
        "sys.modules\nsys.modules['torch'] = None\n"
        "from leafe.core import UserError\ntry:\n    make_policy('hf', model='x')\nexcept "
        "UserError as e:\n    print(e)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        check=True,
    )
    assert "'torch'" in done.stdout
    assert "leafe[hf]" in done.stdout


def test_a_class_in_the_working_folder_is_found_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether or not an environment was imported from there first, and last, so that it shadows
    nothing."""
    (tmp_path / "policy_of_mine.py").write_text(
        "class Mine:\n    name = 'mine'\n    def __init__(self, warmth=1):\n        "
        "self.warmth = warmth\n"
    )
    (tmp_path / "random.py").write_text("raise RuntimeError('shadowed')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        sys, "path", [place for place in sys.path if place not in ("", ".", str(tmp_path))]
    )
    made: Any = make_policy("policy_of_mine:Mine", warmth=3)
    assert made.warmth == 3
    assert sys.path[-1] == str(tmp_path)
    with pytest.raises(UserError, match="has no Other"):
        make_policy("policy_of_mine:Other")
    sys.modules.pop("policy_of_mine")
