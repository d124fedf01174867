"""The viewer: a run's trees as pages, on this machine alone, while the run goes on and after it.

    from leafe.view import serve
    serve(Path("runs/demo"))          # what `leafe view runs/demo` does

The journals are read once, into an index beside the user's other caches, and followed as they grow;
a page reads the lines of one task.
"""

from leafe.view._server import make_app, serve

__all__ = ["make_app", "serve"]
