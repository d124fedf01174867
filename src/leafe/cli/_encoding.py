"""Output in any encoding: a sign that it lacks is replaced, so that no command ends because of a
dash."""

from __future__ import annotations

import codecs
import sys

_INSTEAD = str.maketrans("–−—‘’“”…→←✓·×━─│↳•⟨⟩", "---''\"\".><+,x=-|>*<>")


def _plain(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(
        c if c.isascii() else "?" for c in error.object[error.start : error.end].translate(_INSTEAD)
    ), error.end


def plain_where_needed() -> None:
    """Make the standard streams replace what they cannot encode, instead of raising."""
    codecs.register_error("leafe.plain", _plain)
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="leafe.plain")
