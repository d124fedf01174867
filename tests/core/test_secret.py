"""What holds a secret, and how it is cut out of a text."""

from __future__ import annotations

import html
import json
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leafe.core.secret import field_holds_secret, hider, inherited, names_secret, secret_values


@pytest.mark.parametrize(
    "name",
    [
        "OPENAI_API_KEY",
        "HF_TOKEN",
        "AWS_SECRET_ACCESS_KEY",
        "DB_PASSWORD",
        "PGPASSWORD",
        "APIKEY",
        "github_token",
        "MY_CREDENTIALS",
        "SSH_PASSPHRASE",
        "WANDB_API_KEY",
    ],
)
def test_a_name_says_that_its_value_is_secret(name: str) -> None:
    assert names_secret(name)


@pytest.mark.parametrize(
    "name",
    [
        "PATH",
        "HOME",
        "PWD",
        "LANG",
        "TOKENIZERS_PARALLELISM",
        "OMP_NUM_THREADS",
        "CUDA_VISIBLE_DEVICES",
        "JAVA_HOME",
    ],
)
def test_other_names_do_not(name: str) -> None:
    assert not names_secret(name)


def test_values_of_several_lines_count_by_the_line_and_placeholders_do_not() -> None:
    environment = {
        "A_KEY": "-----BEGIN-----\nabcdefghij\n-----END-----\n",
        "B_TOKEN": "EMPTY",
        "C": "not secret at all",
        "D": "named by hand",
    }
    assert set(secret_values(("D", "ABSENT"), environment)) == {
        "-----BEGIN-----",
        "abcdefghij",
        "-----END-----",
        "named by hand",
    }


TEXT = st.text(
    alphabet=st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=8, max_size=24
)


@given(
    TEXT,
    st.sampled_from(["plain", "json", "json twice", "unicode", "url", "html", "html numbers"]),
    st.text(max_size=9),
    st.text(max_size=9),
)
def test_a_value_is_found_in_every_spelling(value: str, how: str, before: str, after: str) -> None:
    spelled = {
        "plain": value,
        "json": json.dumps(value)[1:-1],
        "json twice": json.dumps(json.dumps(value))[3:-3],
        "unicode": "".join(f"\\u{ord(c):04x}" for c in value),
        "url": quote(value, safe=""),
        "html": html.escape(value),
        "html numbers": "".join(f"&#x{ord(c):X};" for c in value),
    }[how]
    hidden = hider((value,))(f"{before} {spelled} {after}")
    assert "***" in hidden
    assert spelled not in hidden.replace("***", "") or spelled in f"{before}  {after}"


@given(st.text(max_size=60))
def test_a_text_without_it_is_untouched(text: str) -> None:
    value = "sk-Zq7/very+secret=0123456789"
    assert hider((value,))(text) == text
    assert hider(("short", ""))(text) == text


def test_a_process_of_foreign_code_inherits_what_programs_need_and_no_secret(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    needed = {
        "PATH": "/bin",
        "HOME": "/h",
        "LANG": "C",
        "LC_ALL": "C",
        "PYTHONPATH": "/p",
        "TMPDIR": "/t",
        "LEAFE_DATA": "/d",
        "LD_LIBRARY_PATH": "/l",
        "JAVA_HOME": "/j",
        "JAVA_TOOL_OPTIONS": "-x",
        "CUDA_VISIBLE_DEVICES": "0",
        "OMP_NUM_THREADS": "1",
        "HF_HOME": "/hf",
        "XDG_CACHE_HOME": "/x",
        "DISPLAY": ":0",
        "VIRTUAL_ENV": "/v",
    }
    kept_back = {
        "OPENAI_API_KEY": "sk",
        "HF_TOKEN": "hf",
        "HF_HUB_TOKEN": "x",
        "AWS_SECRET_ACCESS_KEY": "a",
        "AWS_PROFILE": "p",
        "DATABASE_URL": "postgres://u:p@h",
        "SSH_AUTH_SOCK": "/s",
        "HTTP_PROXY": "http://u:p@h",
        "LEAFE_API_KEY": "l",
        "JAVA_KEYSTORE_PASSWORD": "j",
        "WANDB_API_KEY": "w",
        "MY_OWN": "m",
    }
    for name, value in (needed | kept_back).items():
        monkeypatch.setenv(name, value)
    found = inherited()
    assert needed.items() <= found.items()
    assert not kept_back.keys() & found.keys()
    assert inherited(["MY_OWN", "HF_TOKEN", "ABSENT"], MORE="1") == found | {
        "MY_OWN": "m",
        "HF_TOKEN": "hf",
        "MORE": "1",
    }


@pytest.mark.parametrize(
    "name",
    [
        "api_key",
        "apikey",
        "api-key",
        "openai_api_key",
        "password",
        "auth_token",
        "token",
        "secret",
        "client_secret",
        "Authorization",
    ],
)
def test_a_setting_of_this_name_would_hold_a_secret(name: str) -> None:
    assert field_holds_secret(name)


@pytest.mark.parametrize(
    "name",
    [
        "api_key_env",
        "token_env",
        "env_vars",
        "token_ids",
        "max_tokens",
        "max_completion_tokens",
        "eos_token",
        "key",
        "model",
    ],
)
def test_a_setting_of_this_name_does_not(name: str) -> None:
    assert not field_holds_secret(name)
