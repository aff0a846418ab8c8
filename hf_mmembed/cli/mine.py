"""``hf-mmembed mine``: pairs to clusters of pairs that are hard for one another, and a report.

In: a model, pairs and a directory. Out: in the directory, ``clusters.arrow`` and ``clusters.json``, the embeddings,
``report.html``, ``report.png``, ``report.json`` and ``skipped.jsonl``. Exit code 1 when rows had to be skipped.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from .columns import ColumnOption, assignment, columns_named
from .config import ConfigOption
from .embed import BatchSizeOption, DeviceOption, ModelArgument, keeping, load

if TYPE_CHECKING:
    from hf_mmembed.mining import FilterRules

__all__ = ["mine"]

_SHOWN = 20  # skipped rows listed on the screen; the file has them all

_MEMBERS = ("from_pool", "next_best", "at_random", "conflicts")
_RULE = "Number, or `off`. Default: that of the strategy."


def mine(
    model: ModelArgument,
    data: Annotated[
        str,
        typer.Argument(
            help="Pairs: an MMEB-train folder, an image folder with captions, a CSV, TSV, JSONL or Parquet file, a saved "
            "`datasets` directory, or a Hub id."
        ),
    ],
    out: Annotated[Path, typer.Argument(help="Directory for clusters, embeddings and report.")],
    strategy: Annotated[
        Literal["saha", "saha-paper", "random", "same-subset", "top-k", "margin", "mutual"],
        typer.Option(help="How clusters are made: saha, its published form, or a baseline."),
    ] = "saha",
    k: Annotated[int, typer.Option("-k", min=1, help="Members of a cluster beside the anchor.")] = 15,
    mult: Annotated[int, typer.Option(min=1, help="Candidates per query, as a multiple of k.")] = 3,
    seed: Annotated[int, typer.Option(help="Decides everything random.")] = 0,
    column: ColumnOption = None,
    split: Annotated[
        str, typer.Option(help="Split of an MMEB-train folder, saved DatasetDict or Hub dataset.")
    ] = "train",
    subset: Annotated[
        str | None, typer.Option(help="One subset of an MMEB-train folder, or configuration of a Hub dataset.")
    ] = None,
    instruction: Annotated[
        list[str] | None,
        typer.Option(
            help="Instruction every query is embedded with, for all subsets or `SUBSET=TEXT`; repeat. Default: the most "
            "frequent one of each subset."
        ),
    ] = None,
    labels: Annotated[
        list[str] | None,
        typer.Option(help="Subset whose documents are labels, or `SUBSET=no`; repeat. Default: seen from the data."),
    ] = None,
    rank: Annotated[str | None, typer.Option(help=f"Share of candidates dropped by rank of owners. {_RULE}")] = None,
    query_similarity: Annotated[str | None, typer.Option(help=f"Most similar owner above this. {_RULE}")] = None,
    margin: Annotated[str | None, typer.Option(help=f"Closer than the positive by this. {_RULE}")] = None,
    document_similarity: Annotated[str | None, typer.Option(help=f"Like the positive above this. {_RULE}")] = None,
    batch_size: BatchSizeOption = 32,
    shard_size: Annotated[int, typer.Option(min=1, help="Inputs per file: what a killed run loses at most.")] = 2048,
    device: DeviceOption = None,
    config: ConfigOption = None,
) -> None:
    """Group training pairs into clusters of hard negatives; run it again to resume.

    The model embeds every distinct query and document once. Several processes share the work:
    accelerate launch --num_processes 8 -m hf_mmembed.cli mine ...

    Example: hf-mmembed mine mmembed-tiny pairs.jsonl clusters -k 7
    """
    rules = _rules(
        strategy,
        rank=rank,
        query_similarity=query_similarity,
        margin=margin,
        document_similarity=document_similarity,
    )
    from hf_mmembed.data.pairs import read_pairs

    pairs = read_pairs(data, columns=columns_named(column), split=split, subset=subset)
    canonical = _instructions(instruction or [])
    answers = {"yes": True, "no": False}
    label_subsets = {}
    for item in labels or []:
        name, equals, answer = item.rpartition("=")
        if equals and answer not in answers:
            raise typer.BadParameter(f"{item!r}: after the = comes yes or no", param_hint="--labels")
        label_subsets[name or item] = answers[answer] if equals else True

    from hf_mmembed.mining import mine_pairs
    from hf_mmembed.mining.report import write_report
    from hf_mmembed.mining.store import any_embedded
    from hf_mmembed.only_run import only_run
    from hf_mmembed.processes import world

    def report() -> None:
        _tell(write_report(pairs, mined, out, seed=seed), mined.clusters.rows.shape[1], out)
        _tell_skipped(mined.skipped, out)

    process = world()
    embedder, identity = load(model, device or process.device)
    with keeping(out, "embeddings", lambda out: any_embedded(out / "embeddings")), only_run(out):
        mined = mine_pairs(
            pairs,
            embedder,
            out,
            model=identity.as_dict(),
            strategy=strategy,
            k=k,
            mult=mult,
            seed=seed,
            rules=rules,
            canonical_instruction=canonical,
            label_subsets=label_subsets,
            batch_size=batch_size,
            shard_size=shard_size,
            device=embedder.device,
        )
        process.once(report)
    if mined.skipped:
        raise typer.Exit(1)


def _tell(numbers: dict[str, Any], size: int, out: Path) -> None:
    counts, recall = numbers["counts"], numbers["recall"]
    typer.echo(f"{numbers['rows']:,} pairs, {numbers['queries']:,} queries, {numbers['documents']:,} documents")
    if recall:
        shares = ", ".join(f"{name.removeprefix('recall@')} {100 * share:.1f} %" for name, share in recall.items())
        typer.echo(f"the model finds its document among the nearest: {shares}")
    typer.echo(
        f"{numbers['clusters']:,} clusters of up to {size} by {numbers['strategy']}; left over: {counts['left_over']:,}"
    )
    for name, words in (("suspect_", "suspects by rule"), ("members", "members")):
        chosen = _MEMBERS if name == "members" else [key for key in counts if key.startswith(name)]
        line = ", ".join(
            f"{key.removeprefix(name).replace('_', ' ')} {counts[key]:,}" for key in chosen if key in counts
        )
        if line:
            typer.echo(f"{words}: {line}")
    hardness = numbers["hardness"]
    if hardness["mined"] and hardness["random"]:
        typer.echo(
            f"mean similarity to the documents of other members: {hardness['mined']['mean']:.3f} "
            f"(random clusters: {hardness['random']['mean']:.3f})"
        )
    typer.echo(f"clusters: {out}    report: {out / 'report.html'}")


def _tell_skipped(skipped: Mapping[int, str], out: Path) -> None:
    if not skipped:
        return
    typer.echo(f"skipped {len(skipped)} rows (all in {out / 'skipped.jsonl'}):", err=True)
    for row, reason in list(skipped.items())[:_SHOWN]:
        typer.echo(f"  row {row}: {reason}", err=True)
    if len(skipped) > _SHOWN:
        typer.echo(f"  ... and {len(skipped) - _SHOWN} more", err=True)


def _rules(strategy: str, **flags: str | None) -> FilterRules | None:
    """The rules of the strategy with what the flags change; None where no flag was given."""
    given = {name: value for name, value in flags.items() if value is not None}
    if not given:
        return None
    from hf_mmembed.mining import changed_rules

    values: dict[str, float | None] = {}
    for name, value in given.items():
        try:
            values[name] = None if value == "off" else float(value)
        except ValueError:
            raise typer.BadParameter(f"{value!r} is neither a number nor 'off'", param_hint=f"--{name}") from None
    return changed_rules(strategy, values)


def _instructions(items: list[str]) -> str | dict[str, str] | None:
    """One instruction for all subsets, or one for each that is named."""
    if len(items) == 1 and "=" not in items[0]:
        return items[0]
    return dict(assignment(item, "--instruction") for item in items) or None
