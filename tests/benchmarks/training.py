"""Memory of a training step against the size of the batch: `python -m tests.benchmarks.training`.

One step (forward and backward of both sides) on pairs of a word and a picture, the small batch before the large one, in
one process per kind: ours, and sentence-transformers' own cached loss with the same chunks, whose collator tokenizes and
decodes the whole batch at once. Prints the peak of the resident memory so far above that of the loaded model.
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

KINDS = ("ours", "sentence-transformers")
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


def _measure(kind: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        model, pairs = _model(Path(folder)), _pairs(max(BATCHES))
        _step(kind, model, pairs.select(range(2 * CHUNK)))
        loaded = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for batch in BATCHES:
            began = time.process_time()
            _step(kind, model, pairs.select(range(batch)))
            seconds = time.process_time() - began
            peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - loaded) / 1024
            print(f"{kind:>22} {batch:>8} {peak:>14.0f} {batch / seconds:>18.1f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--measure", choices=KINDS, help="one kind, in this process")
    chosen = parser.parse_args()
    if chosen.measure:
        _measure(chosen.measure)
        return
    print(f"chunks of {CHUNK} inputs, pictures of {SIDE} x {SIDE} pixels")
    print(f"{'':>22} {'batch':>8} {'peak, MiB':>14} {'pairs/s of CPU':>18}")
    for kind in KINDS:
        command = [sys.executable, "-m", "tests.benchmarks.training", "--measure", kind]
        print(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout, end="", flush=True)


if __name__ == "__main__":
    main()
