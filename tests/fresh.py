"""An interpreter that has imported the libraries and not this package, and forks a copy of itself for each script.

A new interpreter for each would spend many seconds on the same imports. `python -P tests/fresh.py` is that interpreter;
`FreshInterpreter` starts it with the first script.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

__all__ = ["FreshInterpreter"]


class FreshInterpreter:
    """Runs scripts, each as if by ``python -c`` in an interpreter of its own.

    Args:
        folder: Where its cache of remote code and what the scripts print are kept.
        environment: What it is started with beside the environment of the tests.
    """

    def __init__(self, folder: Path, **environment: str) -> None:
        self._folder = folder
        self._environment = {**os.environ, "HF_MODULES_CACHE": str(folder / "modules"), **environment}
        self._process: subprocess.Popen[str] | None = None

    def run(self, script: str, *arguments: str, cwd: Path) -> str:
        """What the script prints. A script that fails is an `AssertionError` with its traceback."""
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-P", __file__],
                env=self._environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            )  # fmt: skip
        assert self._process.stdin and self._process.stdout
        printed = {name: str(self._folder / name) for name in ("stdout", "stderr")}
        job = {"script": script, "arguments": arguments, "cwd": str(cwd), **printed}
        print(json.dumps(job), file=self._process.stdin, flush=True)
        code = self._process.stdout.readline()
        assert code, "the interpreter ended; its own standard error says why"
        assert code == "0\n", f"exit code {code}{Path(printed['stderr']).read_text()[-4000:]}"
        return Path(printed["stdout"]).read_text()

    def close(self) -> None:
        """Ends the interpreter, if one was started."""
        if self._process is not None:
            self._process.communicate()


def _serve() -> None:
    import numpy  # noqa: F401
    import PIL.Image  # noqa: F401
    import sentence_transformers  # noqa: F401
    import torch  # noqa: F401
    import transformers  # noqa: F401

    assert "hf_mmembed" not in sys.modules
    for line in sys.stdin:
        if not (child := os.fork()):
            _run(json.loads(line))
        sys.stdout.write(f"{os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}\n")
        sys.stdout.flush()
    os._exit(0)  # the libraries would take two seconds to say goodbye


def _run(job: dict[str, Any]) -> None:
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        os.dup2(os.open(job[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    os.chdir(job["cwd"])
    sys.path.insert(0, "")
    sys.argv = ["-c", *job["arguments"]]
    code = 1
    try:
        exec(compile(job["script"], "<script>", "exec"), {"__name__": "__main__"})
        code = 0
    except BaseException:  # noqa: BLE001, what `python -c` does
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    _serve()
