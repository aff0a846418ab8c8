# /// script
# requires-python = ">=3.11"
# dependencies = ["hf-mmembed"]
# ///
"""Turn a multimodal LLM into an embedder, without training, and push it.

In: a generative checkpoint. Out: an embedder directory, and with `--push` a repository with weights, code, card and
golden vectors.

Copy and run::

    uv run convert_and_push.py --base Qwen/Qwen2-VL-2B-Instruct --out qwen2-vl-2b-mmembed --dtype bfloat16 \\
        --push my-name/qwen2-vl-2b-mmembed

On a laptop, with the shipped model::

    python -m hf_mmembed.scripts.convert_and_push --base mmembed-tiny --out my-embedder
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

__all__ = ["main"]

logger = logging.getLogger("convert_and_push")


def main(args: Sequence[str] | None = None) -> Path:
    """Convert, push; returns the directory."""
    parser = argparse.ArgumentParser(description="Turn a multimodal LLM into an embedder, and push it.")
    parser.add_argument("--base", required=True, help="generative checkpoint: a directory, a Hub id, or mmembed-tiny")
    parser.add_argument("--out", type=Path, required=True, help="directory to write; it must not exist yet")
    parser.add_argument("--prompt", default="saha", help="a preset, or a YAML file")
    parser.add_argument("--dtype", help="float32, bfloat16 or float16; default: as in the base")
    parser.add_argument("--push", metavar="ORG/NAME", help="repository to push to")
    parser.add_argument("--private", action="store_true", help="make that repository private")
    options = parser.parse_args(args)
    logging.basicConfig(level=logging.INFO, format="%(message)s")

    from hf_mmembed import tiny
    from hf_mmembed.hub import push
    from hf_mmembed.model.convert import convert
    from hf_mmembed.shipped import SHIPPED

    base = tiny.generative_path() if options.base == SHIPPED else options.base
    written = convert(base, options.out, prompt=options.prompt, dtype=options.dtype)
    logger.info("the embedder is in %s", written)
    if options.push:
        logger.info("pushed: %s", push(written, options.push, private=options.private or None).commit_url)
    return written


if __name__ == "__main__":
    main()
