"""The ``--config FILE.yaml`` option: its keys become the defaults of a command's flags, so flags win.

In: a YAML mapping whose keys are the command's long option names (``batch_size`` or ``batch-size``). Out: the same
command with other defaults. A key that is no option of the command is a usage error that names the nearest one.
"""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any

import typer

__all__ = ["ConfigOption", "values_set"]


def _load_defaults(ctx: typer.Context, param: typer.CallbackParam, path: Path | None) -> Path | None:
    if path is None or ctx.resilient_parsing:
        return path
    import yaml

    try:
        loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise typer.BadParameter(f"{path} is not valid YAML: {error}") from error
    if not isinstance(loaded, dict):
        raise typer.BadParameter(f"{path} must hold a mapping of option names to values, not {type(loaded).__name__}")
    known = {_key(p.opts, p.name or ""): p for p in ctx.command.params if p.name not in (param.name, "help")}
    defaults = {}
    for key, value in loaded.items():
        name = str(key).replace("-", "_")
        if name not in known:
            nearest = get_close_matches(name, known, n=1)
            hint = f"did you mean {nearest[0]!r}?" if nearest else f"known: {', '.join(sorted(known))}"
            raise typer.BadParameter(f"{path}: unknown key {key!r}; {hint}")
        option = known[name]
        if isinstance(value, bool) and not getattr(option, "is_flag", False):
            raise typer.BadParameter(
                f"{path}: {key!r} is {value} to YAML, which takes yes, no, on and off for that; put the word in quotes"
            )
        defaults[option.name] = value
    ctx.default_map = defaults
    return path


def _key(spellings: Sequence[str], name: str) -> str:
    """The name of the long option, as the command line has it; of an argument or a short option, the parameter's."""
    long = [word.removeprefix("--") for word in spellings if word.startswith("--")]
    return (long[0] if long else name).replace("-", "_")


ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        help="YAML file with values for the options of this command; flags win.",
        exists=True,
        dir_okay=False,
        callback=_load_defaults,
        is_eager=True,
    ),
]


def values_set(given: Sequence[str]) -> dict[str, Any]:
    """What ``--set KEY=VALUE`` flags say; the values are YAML.

    Raises:
        typer.BadParameter: One is no ``KEY=VALUE``, or its value no YAML.
    """
    import yaml

    from hf_mmembed.training.recipe_files import parse_yaml

    values: dict[str, Any] = {}
    for item in given:
        key, equals, value = item.partition("=")
        if not equals:
            raise typer.BadParameter(f"--set takes KEY=VALUE, not {item!r}")
        try:
            values[key] = parse_yaml(value)
        except yaml.YAMLError as error:
            raise typer.BadParameter(f"--set {item!r} has no value in YAML: {error}") from error
    return values
