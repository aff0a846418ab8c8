"""A whole distillation: the part ``distillation`` of a recipe, whose other parts are the second stage.

In: the name of a recipe that comes with the package, or a file of the same form. Out: a trainer with everything in
place (`prepare_distillation`), or the distilled checkpoint (`distill`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, get_type_hints

from datasets import Dataset

from hf_mmembed.data.pairs import read_pairs
from hf_mmembed.only_run import only_run
from hf_mmembed.processes import world
from hf_mmembed.training.recipe_files import read_recipe, require_types, types_of, with_overrides
from hf_mmembed.training.recipes import FOLDER

from .arguments import NOT_OF_DISTILLATION, DistillationArguments
from .sentences import read_sentences
from .student import open_student
from .teacher import embed_with_teacher, open_teacher
from .trainer import DistillationTrainer

__all__ = ["DistillationRecipe", "distill", "load_distillation_recipe", "prepare_distillation"]

STAGE = "stage-1"


@dataclass(frozen=True)
class DistillationRecipe:
    """What a recipe says about stage 1.

    Attributes:
        model: A multimodal LLM or an embedder. Defaults to the recipe's model.
        teacher: A sentence-embedding model: directory or Hub id.
        data: Arguments of `read_sentences`, ``source`` first of all.
        output: Directory of the run. Defaults to ``stage-1`` in the recipe's output. The result will be in ``model``
            inside it, the teacher's embeddings in ``teacher``.
        prompt: What to convert a multimodal LLM with. Defaults to ``"unime"``.
        dtype: Of the frozen weights. Defaults to ``"auto"``.
        trust_remote_code: Run code that comes with the teacher. Defaults to False.
        load_in_4bit: See `open_student`. Defaults to False.
        training: `DistillationArguments`, but for the output directory.
    """

    model: str
    teacher: str
    data: Mapping[str, Any]
    output: str
    prompt: str = "unime"
    dtype: str = "auto"
    trust_remote_code: bool = False
    load_in_4bit: bool = False
    training: Mapping[str, Any] = field(default_factory=dict)


def load_distillation_recipe(source: str | Path, overrides: Mapping[str, Any] | None = None) -> DistillationRecipe:
    """Read the part ``distillation`` of a recipe.

    Args:
        source: One of `hf_mmembed.training.recipe_names`, or a YAML file.
        overrides: Values that win over that part; a key may name a part of it, as in ``{"training.max_steps": 10}``.

    Raises:
        FileNotFoundError: There is no such recipe or file.
        ValueError: The recipe has no such part, a key is unknown, of which the message names the nearest, or a value is
            of another type than it must be.

    Example:
        >>> load_distillation_recipe("unime-tiny", {"training.max_steps": 3}).training["max_steps"]
        3
    """
    recipe = read_recipe(source, FOLDER, None)
    if not recipe.get("distillation"):
        raise ValueError(f"{source} has no part `distillation`: it begins with its second stage, `hf-mmembed train`.")
    shared = {"model": recipe.get("model"), "output": str(Path(recipe.get("output", "."), STAGE))}
    values = with_overrides({**shared, **recipe["distillation"]}, overrides)
    part = "distillation."
    given = {name: value for name, value in values.items() if value is not None}
    require_types(source, part, given, get_type_hints(DistillationRecipe))
    of_training = types_of(DistillationArguments, without={*NOT_OF_DISTILLATION, "output_dir"})
    require_types(source, f"{part}training.", values.get("training", {}), of_training)
    if missing := {name for name in ("model", "teacher", "data") if not values.get(name)}:
        raise ValueError(f"{source} lacks {', '.join(part + name for name in sorted(missing))}")
    of_data = types_of(read_pairs) | types_of(read_sentences, without=("options",))
    require_types(source, f"{part}data.", values["data"], of_data)
    if "source" not in values["data"]:
        raise ValueError(f"{source} lacks {part}data.source")
    return DistillationRecipe(**values)


def prepare_distillation(
    recipe: DistillationRecipe,
    *,
    pairs: Dataset | None = None,
    args: DistillationArguments | None = None,
    **trainer: Any,
) -> DistillationTrainer:
    """Everything up to the first step: sentences read, embedded by the teacher, and the student open.

    Args:
        recipe: What to do.
        pairs: Sentences, instead of ``recipe.data``.
        args: Those of the recipe, where they are made already.
        **trainer: More arguments of `DistillationTrainer`.

    Raises:
        OSError: A model or the data cannot be read.
        ValueError: A value of the recipe does not fit, another run writes to ``recipe.output``, or the teacher gives no
            usable vectors.
    """
    args = args or _arguments(recipe)
    if pairs is None:
        pairs = read_sentences(**recipe.data)
    with only_run(args.output_dir):
        device = "cpu" if args.use_cpu else world().device
        teacher = open_teacher(recipe.teacher, device=device, trust_remote_code=recipe.trust_remote_code)
        vectors = embed_with_teacher(pairs, teacher, Path(recipe.output, "teacher"))
        del teacher  # before the student needs the memory
        student = open_student(
            recipe.model, args, prompt=recipe.prompt, dtype=recipe.dtype, load_in_4bit=recipe.load_in_4bit
        )
        return DistillationTrainer(student, args, pairs, vectors, recipe=asdict(recipe), **trainer)


def _arguments(recipe: DistillationRecipe) -> DistillationArguments:
    return DistillationArguments(output_dir=str(Path(recipe.output)), **recipe.training)


def distill(recipe: DistillationRecipe, *, pairs: Dataset | None = None, resume: bool = False) -> Path:
    """Distil as the recipe says.

    Args:
        recipe: What to do.
        pairs: Sentences, instead of ``recipe.data``.
        resume: Go on from the last complete checkpoint in ``recipe.output``, if there is one.

    Returns:
        The result, ``model`` in ``recipe.output``: the start of the second stage.

    Raises:
        OSError: A model or the data cannot be read.
        ValueError: A value of the recipe does not fit, the run to go on with began with something else, another run
            writes to ``recipe.output``, or a vector or the loss is not a number.
    """
    args = _arguments(recipe)  # before anything asks for the other processes: they are joined with its timeout
    with only_run(args.output_dir):
        trainer = prepare_distillation(recipe, pairs=pairs, args=args)
        trainer.train(resume)
        return trainer.save_result(Path(recipe.output) / "model")
