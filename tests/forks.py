"""Processes that begin behind their imports: forks of a server that has done nothing but import."""

from __future__ import annotations

import json
import select
import subprocess
import sys
from pathlib import Path

_SERVER = """
import gc, importlib, json, os, sys

gc.disable()  # of what is imported nothing goes
for name in sys.argv[1:]:
    importlib.import_module(name)
gc.freeze()  # nor need any fork look at it
gc.enable()
for line in sys.stdin:
    task = json.loads(line)
    child = os.fork()
    if child == 0:
        output = os.open(task["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for descriptor, file in enumerate((os.open(os.devnull, os.O_RDONLY), output, output)):
            os.dup2(file, descriptor)
        break
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
else:
    sys.exit()
exec(compile(task["code"], "forked", "exec"), {"__name__": "__main__"})
"""


class Forks:
    """Runs code in one fork at a time; to import torch anew in each process takes seconds.

    Args:
        modules: what the server imports. None of them may start a thread: a fork would miss it.
    """

    def __init__(self, *modules: str) -> None:
        self._server = subprocess.Popen(
            [sys.executable, "-c", _SERVER, *modules], cwd=Path(__file__).parents[1],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0,
        )  # fmt: skip

    def start(self, code: str, output: Path) -> int:
        """Begin a process that writes to a file; its id."""
        assert self._server.stdin is not None
        self._server.stdin.write(json.dumps({"code": code, "output": str(output)}).encode() + b"\n")
        return self._answer()

    def running(self) -> bool:
        """Whether the process that began last has not ended."""
        return not select.select([self._server.stdout], [], [], 0)[0]

    def wait(self) -> int:
        """The exit code of the process that began last, once it has ended; -n after signal n."""
        return self._answer()

    def close(self) -> None:
        """End the server."""
        self._server.communicate()

    def _answer(self) -> int:
        assert self._server.stdout is not None
        return int(self._server.stdout.readline())
