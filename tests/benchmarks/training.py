"""Memory of a training step against the size of the batch: `python -m tests.benchmarks.training`.

One step (forward and backward of both sides) on pairs of a word and a picture, in a process of its own per line:
ours, and sentence-transformers' own cached loss with the same chunks, whose collator tokenizes and decodes the whole
batch at once. Prints the peak of the resident memory above that of the loaded model.
"""

from __future__ import annotations

import argparse
import io
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

BATCHES = (64, 512)
CHUNK = 8
SIDE = 112


def _pairs(number: int):
    import numpy as np
    from datasets import Dataset
    from PIL import Image

    from hf_mmembed.data.pairs import read_pairs

    rng = np.random.default_rng(0)
    rows = []
    for index in range(number):
        stream = io.BytesIO()
        Image.fromarray(rng.integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8)).save(stream, "JPEG")
        rows.append({"query": f"thing {index}", "pos_image": {"bytes": stream.getvalue(), "path": None}})
    columns = {"query_text": "query", "pos_image": "pos_image"}
    return read_pairs(Dataset.from_list(rows), columns=columns)


def _model(folder: Path):
    from hf_mmembed import MMEmbedder
    from hf_mmembed.model.convert import convert
    from tests.tiny_families import build

    converted = convert(build("qwen2_vl", folder / "base"), folder / "embedder")
    model = MMEmbedder(converted, device="cpu")
    size = model.processor.image_processor.size
    model.processor.image_processor.size = type(size)(shortest_edge=16 * 16, longest_edge=SIDE * SIDE)
    return model.train()


def _step(kind: str, model, pairs) -> None:
    from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss

    from hf_mmembed.data.pairs import document_of, query_of
    from hf_mmembed.mining import content_ids
    from hf_mmembed.training.collator import ROW, PairCollator
    from hf_mmembed.training.losses import MaskedInfoNCELoss

    if kind == "ours":
        batch = PairCollator(content_ids(pairs))([{**row, ROW: index} for index, row in enumerate(pairs)])
        MaskedInfoNCELoss(model, mini_batch_size=CHUNK, mini_batch_num_tokens=10**9)(*batch.values()).backward()
    else:
        sides = [[document_of(row) for row in pairs], [query_of(row) for row in pairs]]
        features = [model.preprocess(side) for side in sides]
        CachedMultipleNegativesRankingLoss(model, scale=50.0, mini_batch_size=CHUNK)(features, None).backward()


def _measure(kind: str, batch: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        model, pairs = _model(Path(folder)), _pairs(batch)
        _step(kind, model, pairs.select(range(4)))
        loaded = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        began = time.process_time()
        _step(kind, model, pairs)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"{kind:>22} {batch:>8} {(peak - loaded) / 1024:>14.0f} {batch / (time.process_time() - began):>18.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--measure", nargs=2, metavar=("KIND", "BATCH"))
    chosen = parser.parse_args()
    if chosen.measure:
        _measure(chosen.measure[0], int(chosen.measure[1]))
        return
    print(f"chunks of {CHUNK} inputs, pictures of {SIDE} x {SIDE} pixels")
    print(f"{'':>22} {'batch':>8} {'peak, MiB':>14} {'pairs/s of CPU':>18}")
    for kind in ("ours", "sentence-transformers"):
        for batch in BATCHES:
            command = [sys.executable, "-m", "tests.benchmarks.training", "--measure", kind, str(batch)]
            print(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
