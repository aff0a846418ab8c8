"""A multimodal LLM asked whether a candidate answers a query: yes or no.

In: queries and candidates as `MMEmbedder.encode` takes them. Out: the probability of yes among the two, ``(pairs,)``.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers.util import get_device_name

from hf_mmembed.batching import Lookahead
from hf_mmembed.data.rows import hash_parts
from hf_mmembed.identity import local_checkpoint
from hf_mmembed.inputs import as_messages
from hf_mmembed.memory import TokenBudget, run_batches
from hf_mmembed.model.picture_size import limit_pictures
from hf_mmembed.model.rows_mmembed import HierarchicalPrompt, Row, row_of_conversation
from hf_mmembed.preparation import Conversation, estimate_tokens
from hf_mmembed.sentence_transformer import BATCH_COST_ELSEWHERE
from hf_mmembed.thinking.reasoner import fingerprint, open_generative
from hf_mmembed.thinking.templates import load_templates

__all__ = ["Judge"]

# In tokens; less than for embedding, as nothing of the padding is left out here.
PADDING_PER_BATCH_ON_CPU = 128
QUESTION = "\nIs the candidate a right answer to the query? Answer only {yes} or {no}."


class Judge:
    """Any generative multimodal LLM of transformers.

    It reads both in one turn, pictures first, and a question; the score is the softmax over the logits of the first
    tokens of "yes" and "no" (UniME-V2, section 3.2). Inputs go through the same checks as those of the embedder.

    Args:
        model: Directory or Hub id of a generative checkpoint.
        revision: Branch, tag or commit on the Hub.
        words: What it answers with. Defaults to ``("Yes", "No")``.
        batch_size: Questions per forward pass, at most: those of a call that are alike in length, and fewer where they
            would have more than 16,384 tokens (an estimate), or where memory runs out. Defaults to 16.
        longest_edge: To what pictures are scaled down; see `limit_pictures`. Defaults to what the checkpoint says.
        dtype: Defaults to that of the checkpoint; float32 on a CPU.
        device: Defaults to the best there is.

    Attributes:
        identity: Decides the scores: model, revision, question and `longest_edge`.
        max_seq_length: Tokens that a question may have; a longer one loses the end of its texts.

    Raises:
        OSError: The checkpoint cannot be read or has no safetensors weights.
        ValueError: It is no multimodal LLM with a chat template, both words begin with the same token, or the model
            does not scale pictures by `longest_edge`.

    Example:
        ::

            judge = Judge("Qwen/Qwen2.5-VL-7B-Instruct")
            judge([{"image": "shelf.jpg", "text": "Which book is the thickest?"}], [{"text": "the atlas"}])
    """

    def __init__(
        self,
        model: str | Path,
        *,
        revision: str | None = None,
        words: tuple[str, str] = ("Yes", "No"),
        batch_size: int = 16,
        longest_edge: int | None = None,
        dtype: torch.dtype | str | None = None,
        device: str | torch.device | None = None,
    ) -> None:
        device = torch.device(device or get_device_name())
        directory, commit = local_checkpoint(model, revision)
        self.model, self.processor = open_generative(
            directory, load_templates(), dtype=dtype or ("float32" if device.type == "cpu" else "auto")
        )
        if longest_edge is not None:
            limit_pictures(self.processor, longest_edge, model)
        self.model.to(device).eval()
        self.processor.tokenizer.padding_side = "left"
        question = QUESTION.format(yes=words[0], no=words[1])
        self.processor.prompt = HierarchicalPrompt("", question, question, represent_documents=True)
        self._answers = [self.processor.tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in words]
        if self._answers[0] == self._answers[1]:
            raise ValueError(f"{words[0]!r} and {words[1]!r} begin with the same token of {model}; use other words.")
        self.batch_size = batch_size
        self.max_seq_length = self.processor.tokenizer.model_max_length
        self._budget = TokenBudget()
        self._batch_cost = PADDING_PER_BATCH_ON_CPU if device.type == "cpu" else BATCH_COST_ELSEWHERE
        scaled = [] if longest_edge is None else [str(longest_edge)]
        self.identity = hash_parts(commit or fingerprint(directory), question, *words, *scaled)

    def __call__(self, queries: Sequence[dict[str, Any]], candidates: Sequence[dict[str, Any]]) -> NDArray[np.float64]:
        """Scores between 0 and 1, ``(pairs,)``.

        Args:
            queries: As for `MMEmbedder.encode`.
            candidates: One for each query.

        Raises:
            ValueError: An input cannot be read, or a score is not a number.
        """
        rows = [_question(query, item, i) for i, (query, item) in enumerate(zip(queries, candidates, strict=True))]
        conversations = [
            Conversation(i, as_messages(query, index=i) + as_messages(item, index=i))
            for i, (query, item) in enumerate(zip(queries, candidates, strict=True))
        ]
        scored = run_batches(
            estimate_tokens(self, conversations, {}),
            lambda batch: self._features([rows[i] for i in batch]),
            self._scores,
            batch_size=self.batch_size,
            budget=self._budget,
            batch_cost=self._batch_cost,
            lookahead=Lookahead(threads=1, items=1),
        )
        scores = np.empty(len(rows))
        for batch, of_batch in scored:
            scores[batch] = of_batch
        if not np.isfinite(scores).all():
            raise ValueError(f"the judge gave NaN for {str(candidates[int(np.argmin(np.isfinite(scores)))])[:200]}.")
        return scores

    def _features(self, rows: list[Row]) -> Any:
        return self.processor(
            text=[row.text for row in rows], images=[row.images or None for row in rows], return_tensors="pt"
        )

    @torch.inference_mode()
    def _scores(self, features: Any) -> NDArray[np.float64]:
        known = inspect.signature(self.model.forward).parameters
        options = {name: value for name, value in features.to(self.model.device).items() if name in known}
        if "logits_to_keep" in known:
            options["logits_to_keep"] = 1  # padding is on the left, so the last place is the answer's
        logits = self.model(**options).logits[:, -1, self._answers]  # (rows, 2)
        return logits.cpu().double().softmax(dim=1)[:, 0].numpy()  # not every device has float64


def _question(query: dict[str, Any], candidate: dict[str, Any], index: int) -> Row:
    """Both in one row; the words say which picture belongs to which."""
    words: list[str] = []
    images: list[Any] = []
    for name, item in (("Query", query), ("Candidate", candidate)):
        row = row_of_conversation(as_messages(item, index=index), index)
        shown = [f"picture {len(images) + number}" for number in range(1, len(row.images) + 1)]
        parts = [(part or "").strip() for part in (*shown, row.instruction, row.text)]
        words.append(f"{name}: " + ", ".join(filter(None, parts)))
        images += row.images
    return Row(tuple(images), "\n".join(words))
