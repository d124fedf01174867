"""Secrets: which environment variables hold one, how it is masked in a text, and which variables a
process of foreign code inherits.

Standard library alone: the guard of a launched server runs this file by its path.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache

SHORTEST = 8
"""A shorter value is a placeholder (`EMPTY`, `none`): masking it would mangle ordinary text."""
MASK = "***"

_SAYS_SECRET = re.compile(r"key|token(?!izer)|secret|passw|passphrase|credential", re.IGNORECASE)

_ESCAPE = re.compile(r"\\[ux/\\]|%[0-9a-fA-F]{2}|&#|&[a-z]+;")
_FIELD = re.compile(
    r"(^|[_-])(api[_-]?key|(access|auth|secret|private)[_-]?key"
    r"|(access|auth|api|bearer|hf)[_-]?token"
    r"|secret|password|passwd|passphrase|credentials?|authorization)$|^token$",
    re.IGNORECASE,
)

INHERITED = re.compile(
    r"PATH|HOME|USER|LOGNAME|SHELL|PWD|TERM|TZ|LANG|LANGUAGE|LC_\w+|TMPDIR|TEMP|TMP|NO_COLOR"
    r"|COLUMNS|CI|HOSTNAME|DISPLAY|WAYLAND_DISPLAY|XAUTHORITY|XDG_\w+|VIRTUAL_ENV|CONDA_\w+"
    r"|PYTHON\w*|NLTK_DATA"
    r"|LD_LIBRARY_PATH|LD_PRELOAD|DYLD_\w+|LIBRARY_PATH|CLASSPATH|_?JAVA\w*|JDK_\w+|JRE_\w+"
    r"|(OMP|KMP|GOMP|OPENBLAS|MKL|BLIS|NUMEXPR|NUMBA|VECLIB|MALLOC)_\w+|MALLOC\w*_"
    r"|(CUDA|NVIDIA|NCCL|CUBLAS|CUDNN|HIP|HSA|ROCM|ROCR|XLA|JAX|TF|TORCH|PYTORCH|TRITON|ONEAPI)_\w+"
    r"|(SDL|PYGAME|PYGLET|MUJOCO|PYOPENGL|EGL|LIBGL|MESA|GALLIUM|VK|QT|MPL|GYM|GYMNASIUM)\w*"
    r"|HF_(HOME|HUB_\w+|DATASETS_\w+)|TRANSFORMERS_\w+|TOKENIZERS_PARALLELISM|SSL_CERT_(FILE|DIR)"
    r"|REQUESTS_CA_BUNDLE|CURL_CA_BUNDLE|LEAFE_\w+|ALFWORLD_DATA|TEXTWORLD\w*|PROCGEN\w*"
    r"|MINIGRID\w*"
)
"""Variables that a process of foreign code inherits: they say where programs, libraries, data and
devices are."""


def inherited(also: Iterable[str] = (), **added: str) -> dict[str, str]:
    """The variables for a process that runs foreign code: an environment, a simulator, a planner.

    Args:
        also: Names of further variables to pass on.
        **added: Variables to set.

    Returns:
        The variables in `INHERITED` whose name does not suggest a secret, `also`, and `added`.
    """
    also = set(also)
    chosen = {
        name: value
        for name, value in os.environ.items()
        if name in also or (INHERITED.fullmatch(name) and not names_secret(name))
    }
    return chosen | added


def field_holds_secret(name: str) -> bool:
    """Whether a setting of this name holds a secret itself, not the name of a variable."""
    return _FIELD.search(name) is not None


def names_secret(variable: str) -> bool:
    """Whether an environment variable of this name holds a key, a token, a secret or a password."""
    return _SAYS_SECRET.search(variable) is not None


def secret_values(
    also: Iterable[str] = (), environment: Mapping[str, str] | None = None
) -> tuple[str, ...]:
    """The secrets of this process, the longest first.

    Args:
        also: Names of further variables that hold one.
        environment: The variables; default: `os.environ`.

    Returns:
        The values of all variables whose name suggests a secret and of `also`, line by line.
    """
    found = os.environ if environment is None else environment
    chosen = {*also, *filter(names_secret, found)}
    lines = {line.strip() for name in chosen for line in found.get(name, "").splitlines()}
    return tuple(sorted((line for line in lines if len(line) >= SHORTEST), key=len, reverse=True))


@lru_cache(maxsize=64)
def hider(values: tuple[str, ...]) -> Callable[[str], str]:
    """A function that replaces each of these values in a text by `***`: as they are, and as JSON, a
    URL or HTML escapes them."""
    values = tuple(value for value in values if len(value) >= SHORTEST)
    if not values:
        return lambda text: text
    escaped = re.compile("|".join("".join(map(_any_spelling, value)) for value in values))
    quoted = any('"' in value or "\\" in value for value in values)

    def hide(text: str) -> str:
        for value in values:
            text = text.replace(value, MASK)
        # that pattern is slow, so it runs only where the text holds an escape
        return escaped.sub(MASK, text) if quoted or _ESCAPE.search(text) else text

    return hide


def _any_spelling(char: str) -> str:
    """A pattern for the character and its escapes, with backslashes doubled any number of times
    (JSON within JSON)."""
    code = ord(char)
    plain = re.escape(char) if char.isalnum() else rf"\\*{re.escape(char)}"
    if code > 0x7F:
        return f"(?:{plain})"
    names = {'"': "quot", "&": "amp", "'": "apos", "<": "lt", ">": "gt"}
    html = f"|{names[char]}" if char in names else ""
    json = rf"\\+(?i:u00{code:02x}|x{code:02x})"
    return rf"(?:{plain}|{json}|(?i:%{code:02x})|&(?:#0*{code}|#(?i:x0*{code:x}){html});)"
