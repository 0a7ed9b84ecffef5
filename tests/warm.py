"""Processes that begin with the large libraries loaded, for which a new one takes five seconds.

``run(code, ...)`` is ``python -c code ...`` by a child of a process that has imported them, nothing
of ours, and does nothing else. It is a process as any other: it has its own memory, modules,
working folder and environment, may be killed, and knows nothing of the tests. What looks at how a
process starts, at its imports or at its memory takes a new one.
"""

from __future__ import annotations

import atexit
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

LOADED = ("torch", "transformers", "peft", "opacus", "flwr.app", "dp_accounting.pld")
LOADED += ("sentencepiece", "safetensors.torch", "scipy.stats")


def run(
    code: str, *arguments: object, cwd: Path, timeout: float = 100
) -> subprocess.CompletedProcess[str]:
    """What ``subprocess.run([python, "-c", code, *arguments], cwd=cwd, ...)`` gives."""
    with tempfile.TemporaryDirectory() as place:
        out, err = Path(place) / "out", Path(place) / "err"
        wanted = {"code": code, "argv": ["-c", *map(str, arguments)], "cwd": str(cwd)}
        asked = {**wanted, "out": str(out), "err": str(err), "env": dict(os.environ)}
        parent = _parent()
        assert parent.stdin is not None
        assert parent.stdout is not None
        parent.stdin.write(json.dumps(asked) + "\n")
        parent.stdin.flush()
        with selectors.DefaultSelector() as waiting:
            waiting.register(parent.stdout, selectors.EVENT_READ)
            if not waiting.select(timeout):
                _end(parent)
                _parent.cache_clear()
                raise subprocess.TimeoutExpired(code, timeout)
        status = int(parent.stdout.readline())
        return subprocess.CompletedProcess(
            [code, *arguments], status, out.read_text("utf-8"), err.read_text("utf-8")
        )


def run_module(name: str, *arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """What ``python -m name`` gives."""
    code = f"import runpy; runpy.run_module({name!r}, run_name='__main__', alter_sys=True)"
    return run(code, *arguments, cwd=cwd)


@cache
def _parent() -> subprocess.Popen[str]:
    """The one that has them loaded; by itself, so that it knows nothing of this package."""
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", __file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    atexit.register(_end, process)
    return process


def _end(parent: subprocess.Popen[str]) -> None:
    """It, and what it still has below it."""
    if parent.poll() is None:
        os.killpg(parent.pid, signal.SIGKILL)
    with parent:  # closes its pipes and waits
        pass


def _serve() -> None:
    """One line of JSON asks for one child; its exit status is one line of the answer."""
    for name in LOADED:
        __import__(name)
    from transformers import AutoModel, AutoTokenizer  # noqa: F401 - loads what they stand on

    for line in sys.stdin:
        child = os.fork()
        if not child:
            _become(json.loads(line))
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        print(status, flush=True)


def _become(asked: dict[str, object]) -> None:
    """Run the code as a process of its own would, and end."""
    status = 1
    try:
        os.environ.clear()
        os.environ.update(asked["env"])  # type: ignore[call-overload]
        os.chdir(str(asked["cwd"]))
        for number, name in ((0, os.devnull), (1, str(asked["out"])), (2, str(asked["err"]))):
            handle = os.open(name, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
            os.dup2(handle, number)
            os.close(handle)
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
        sys.argv, sys.path[0] = list(asked["argv"]), ""  # type: ignore[call-overload]
        exec(compile(str(asked["code"]), "<string>", "exec"), {"__name__": "__main__"})  # noqa: S102
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:  # noqa: BLE001 - as an interpreter does
        sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    _serve()
