"""The viewer: a run's trees as web pages on this machine, while the run goes on and after it.

    from leafe.view import serve
    serve(Path("runs/demo"))          # what `leafe view runs/demo` does

The journals are read once into an index among the user's caches, and followed as they grow; a page
reads the lines of one task. The viewer writes nothing into the run folder and computes no figure of
the report; it may import every part below the command line.
"""

from leafe.view._server import make_app, serve

__all__ = ["make_app", "serve"]
