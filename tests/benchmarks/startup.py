"""What it takes to begin: `python -m tests.benchmarks.startup`.

Prints the wall seconds of processes that import the package (without torch, or it fails) and show the help of the command,
beside those of one that does nothing and one that imports sentence-transformers: of each, the fastest of some rounds.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

PROCESSES = {
    "python alone": [sys.executable, "-c", "pass"],
    "import hf_mmembed": [sys.executable, "-c", "import hf_mmembed, sys; assert 'torch' not in sys.modules"],
    "hf-mmembed --help": [str(Path(sys.executable).parent / "hf-mmembed"), "--help"],
    "import sentence_transformers": [sys.executable, "-c", "import sentence_transformers"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="of each process; the fastest counts")
    rounds = parser.parse_args().rounds
    for name, command in PROCESSES.items():
        seconds = []
        for _ in range(rounds):
            started = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            seconds.append(time.perf_counter() - started)
        print(f"{name:<30} {min(seconds):>6.2f} s", flush=True)


if __name__ == "__main__":
    main()
