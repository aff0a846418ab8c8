"""What every family reads under every preset, as committed strings: a change of a prompt is seen, never silent.

`python -m tests.model.test_golden_prompts` writes `golden_prompts.json` anew; read the difference before committing.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest

from hf_mmembed.model import PRESETS, Row
from hf_mmembed.model.base_processor import wrap_processor
from tests.tiny_families import FAMILIES, build

GOLDEN = Path(__file__).with_name("golden_prompts.json")
ROWS = {
    "text query": (Row((), "a red circle"), "query"),
    "image query with instruction": (Row((None,), "make it blue", "Find the image with the change:"), "query"),
    "image document": (Row((None,)), "document"),
    "two images with text document": (Row((None, None), "a red circle"), "document"),
}


def rendered(directory: Path) -> dict[str, dict[str, str]]:
    """The strings of one family by preset and kind of input."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(directory)
    strings: dict[str, dict[str, str]] = {}
    for name, prompt in PRESETS.items():
        processor = wrap_processor(directory, config, prompt)
        strings[name] = {kind: processor.render([row], task)[0] for kind, (row, task) in ROWS.items()}
    return strings


@pytest.mark.parametrize("family", FAMILIES)
def test_rendered_prompts_are_the_committed_ones(generative, family):
    assert rendered(generative(family)) == json.loads(GOLDEN.read_text())[family]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        golden = {family: rendered(build(family, Path(folder, family))) for family in FAMILIES}
    GOLDEN.write_text(json.dumps(golden, indent=1) + "\n")
