"""A user's text file is UTF-8, or one sentence says what it is: for every reader of such files."""

from __future__ import annotations

import codecs
import contextlib
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leafe.core import UserError
from leafe.core.textfile import decoded, parsed_toml, read_text
from leafe.data import Problems, read_log
from leafe.envs.code._files import read_json
from leafe.envs.sokoban._files import read_levels
from leafe.prompts import load_prompt_set
from leafe.recipes import load_recipe

READERS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "recipe": ('extends = "demo"\nname = "x"\nabout = "é"\n', lambda path: load_recipe(str(path))),
    "prompt set": ('extends = "é"\n', lambda path: load_prompt_set(str(path))),
    "levels": ("; 0\n####\n#@ #\n####\n", lambda path: list(read_levels(path))),
    "problems": ('{"a": "é"}\n', lambda path: list(read_json(path, "MBPP"))),
    "chat": (
        (
            '{"task": "é", "messages": [{"role": "user", "content": "a"}, {"role": '
            '"assistant", "content": "b"}], "reward": 1}\n'
        ),
        lambda path: list(read_log(path, "chat", Problems())),
    ),
    "inspect": (
        '{"eval": {"model": "é"}}',
        lambda path: list(read_log(path, "inspect", Problems())),
    ),
}


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "latin-1"])
@pytest.mark.parametrize("reader", READERS)
def test_other_encodings_are_a_sentence(reader: str, encoding: str, tmp_path: Path) -> None:
    text, takes = READERS[reader]
    if reader in ("levels", "inspect") and encoding == "latin-1":
        text = text.replace("####\n", "####é\n").replace('"}}', 'é"}}')
    path = tmp_path / "file.toml"
    path.write_bytes(text.encode(encoding))
    with pytest.raises(UserError) as error:
        takes(path)
    said = str(error.value)
    assert "file.toml" in said
    assert "\n" not in said
    assert {"latin-1": "UTF-8", "utf-32": "UTF-32"}.get(
        encoding, "UTF-16"
    ) in said or reader == "problems"


@pytest.mark.parametrize("reader", READERS)
def test_a_byte_order_mark_is_passed_over(reader: str, tmp_path: Path) -> None:
    text, takes = READERS[reader]
    said = []
    for head in (b"", codecs.BOM_UTF8):
        path = tmp_path / "file.toml"
        path.write_bytes(head + text.encode())
        try:
            said.append(str(takes(path)))
        except (
            UserError
        ) as error:  # some of these are not complete: then with and without a mark alike
            said.append(str(error))
    assert said[0] == said[1]


@given(st.text())
def test_any_utf8_text_is_itself(text: str) -> None:
    if "\0" not in text[:4] and not text.startswith("\ufeff"):
        assert (
            decoded(text.encode("utf-8", "replace"), "f")
            == text.encode("utf-8", "replace").decode()
        )


@given(st.binary())
def test_any_bytes_are_a_text_or_a_sentence(raw: bytes) -> None:
    with contextlib.suppress(UserError):
        decoded(raw, "f").encode()


def test_what_is_no_toml_is_a_sentence(tmp_path: Path) -> None:
    for text in (
        "name = ",
        "a = " + "[" * 5000,
        "a = " + "9" * 5000,
        "a = 2020-13-45",
        "a = 1\na = 2",
    ):
        with pytest.raises(UserError, match=r"r\.toml cannot be read"):
            parsed_toml(text, "r.toml")
    with pytest.raises(UserError, match="cannot be read"):
        read_text(tmp_path / "none")
