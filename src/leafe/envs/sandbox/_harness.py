"""What runs inside the box, as a script: it loads the program, runs each test, and reports on its own pipe, line by line.

Handed over by `python -c`, never imported, and needs the standard library alone. The job comes as JSON on stdin, which is closed before
the program starts. A report line counts only with the job's nonce, so that nothing that the program prints or leaves undone
reads as success. (The program shares this interpreter: one that goes looking through its frames could still find the nonce.)
"""

import ast
import builtins
import contextlib
import gc
import json
import os
import random
import re
import resource
import sys
import types
from typing import Any

SHOWN = 240
"""Most characters of one value, message or source line in a report."""
FRAMES = 3


def short(text: str) -> str:
    text = re.sub(r"\bat 0x[0-9a-f]+", "at 0x...", " ".join(text.split()))  # addresses differ from run to run
    return text if len(text) <= SHOWN else text[: SHOWN // 2] + " ... " + text[-SHOWN // 2 :]


def safe_repr(value: object) -> str:
    try:
        return short(repr(value))
    except Exception as error:
        return f"a {type(value).__name__} whose repr raises {type(error).__name__}"


def described(error: BaseException, sources: dict[str, str]) -> str:
    """The last frames inside the program, then the exception: a traceback without this script."""
    lines = []
    if isinstance(error, SyntaxError) and error.filename in sources:
        return f"line {error.lineno}: {short(error.text or '')}\n{type(error).__name__}: {short(error.msg)}"
    trace = error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        if code.co_filename == "<solution>":
            source = sources["<solution>"].splitlines()
            text = source[trace.tb_lineno - 1] if 0 < trace.tb_lineno <= len(source) else ""
            where = "" if code.co_name == "<module>" else f", in {code.co_name}"
            lines.append(f"line {trace.tb_lineno}{where}: {short(text)}")
        trace = trace.tb_next
    try:
        message = short(str(error))
    except Exception:
        message = "(its message cannot be read)"
    lines = [*lines[-FRAMES:], type(error).__name__ + (f": {message}" if message else "")]
    return "\n".join(lines)


def run_test(source: str, space: dict[str, Any]) -> str | None:
    """None where the test passes, else what was found instead. Exceptions of the program come through."""
    tree = ast.parse(source.strip())
    only = tree.body[0] if len(tree.body) == 1 else None
    if not isinstance(only, ast.Assert):
        exec(compile(tree, "<test>", "exec"), space)
        return None

    def value(node: ast.expr) -> Any:
        return eval(compile(ast.Expression(node), "<test>", "eval"), space)

    test = only.test
    if isinstance(test, ast.Compare) and len(test.ops) == 1 and isinstance(test.ops[0], ast.Eq):
        got, want = value(test.left), value(test.comparators[0])
        return None if got == want else f"{short(ast.get_source_segment(source.strip(), test.left) or '')} is {safe_repr(got)}"
    got = value(test)
    return None if got else f"{short(ast.get_source_segment(source.strip(), test) or '')} is {safe_repr(got)}"


def main() -> None:
    job = json.loads(sys.stdin.buffer.read())
    nothing = os.open("/dev/null", os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    pipe, nonce, memory, seconds = job["pipe"], job["nonce"], job["memory"], job["seconds"]
    program, setup, tests = job["program"], job["setup"], job["tests"]
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory + (32 << 20)))  # the rest is for the report on a memory error
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))  # the soft limit can be trapped, the hard one cannot
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    random.seed(0)
    vars(builtins).update(exit=sys.exit, quit=sys.exit)  # what the site module would bring

    def report(**event: object) -> None:
        for stream in (sys.stdout, sys.stderr):  # what was printed before is out before: the watcher counts it to the right test
            with contextlib.suppress(BaseException):
                stream.flush()
        os.write(pipe, json.dumps({"nonce": nonce, **event}).encode() + b"\n")

    report(event="ready")
    module = types.ModuleType("solution")
    sys.modules["solution"] = module
    space = module.__dict__
    sources = {"<solution>": program, "<setup>": setup}
    parts = [("load", name, text) for name, text in sources.items() if text] + [("test", str(i), text) for i, text in enumerate(tests)]
    for event, name, text in parts:
        outcome, detail = "passed", ""
        try:
            if event == "load":
                exec(compile(text, name, "exec"), space)
            else:
                found = run_test(text, space)
                if found is not None:
                    outcome, detail = "failed", found
        except MemoryError as error:
            resource.setrlimit(resource.RLIMIT_AS, (memory + (32 << 20),) * 2)
            error.__traceback__ = None
            space.clear()
            gc.collect()
            outcome = "memory"
        except SystemExit as error:
            outcome, detail = "exited", f"SystemExit: {safe_repr(error.code)}"
        except AssertionError as error:
            outcome, detail = "failed", described(error, sources)
        except BaseException as error:
            outcome, detail = "error", described(error, sources)
        report(event=event, outcome=outcome, detail=detail)
        if outcome == "memory" or (event == "load" and outcome != "passed"):
            break
    report(event="end")
    os._exit(0)


if __name__ == "__main__":
    main()
