"""YAML recipes: found by name or path, overridden by flags, and checked key by key.

In: the name of a recipe that comes with the package, or a file. Out: its values, every key of which is known, and of the
type that it must have.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from difflib import get_close_matches
from importlib.resources.abc import Traversable
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

__all__ = ["names_in", "parse_yaml", "read_recipe", "require_known", "require_types", "types_of", "with_overrides"]


class _Loader(yaml.SafeLoader):
    """PyYAML reads YAML 1.1, where ``5e-4`` is a text for want of a point; here it is the number that it looks like."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def parse_yaml(text: str) -> Any:
    """A value in YAML, of a recipe or of a ``--set`` flag.

    Raises:
        yaml.YAMLError: It is none.

    Example:
        >>> parse_yaml("5e-4"), parse_yaml("'5e-4'"), parse_yaml("[1, on]")
        (0.0005, '5e-4', [1, True])
    """
    loader = _Loader(text)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


def names_in(folder: Traversable) -> list[str]:
    """Recipes in a folder of the package."""
    return sorted(file.name.removesuffix(".yaml") for file in folder.iterdir() if file.name.endswith(".yaml"))


def read_recipe(source: str | Path, folder: Traversable, overrides: Mapping[str, Any] | None) -> dict[str, Any]:
    """The values of a recipe.

    Args:
        source: A name from `names_in(folder)`, or a YAML file.
        folder: Where the recipes of the package lie.
        overrides: Values that win over the file; a key may name a part, as in ``{"training.max_steps": 10}``.

    Raises:
        FileNotFoundError: There is no such recipe or file.
        ValueError: The file is no mapping in YAML.
    """
    names = names_in(folder)
    path: Traversable = folder / f"{source}.yaml" if source in names else Path(source)
    if not path.is_file():
        raise FileNotFoundError(f"there is no recipe {source}: give a YAML file, or one of {', '.join(names)}")
    try:
        values = parse_yaml(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{source} is not valid YAML: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{source} must hold a mapping, not {type(values).__name__}")
    return with_overrides(values, overrides)


def with_overrides(values: Mapping[str, Any], overrides: Mapping[str, Any] | None) -> dict[str, Any]:
    """The values of a recipe, or of a part of it, with others that win.

    Args:
        values: What the file says.
        overrides: A key may name a part, as in ``{"training.max_steps": 10}``.

    Raises:
        ValueError: What a key takes for a part is none.

    Example:
        >>> with_overrides({"training": {"seed": 1}}, {"training.max_steps": 10, "output": "run"})
        {'training': {'seed': 1, 'max_steps': 10}, 'output': 'run'}
    """
    values = dict(values)
    for key, value in (overrides or {}).items():
        part, _, name = key.partition(".")
        if name and not isinstance(values.get(part) or {}, Mapping):
            raise ValueError(f"{key}: {part} is {values[part]!r}, which has no parts")
        values[part] = {**(values.get(part) or {}), name: value} if name else value
    return values


def require_known(source: str | Path, part: str, values: Any, known: Collection[str]) -> None:
    """Checks the keys of a recipe, or of its `part` (``"training."``).

    Raises:
        ValueError: It is no mapping, or a key is unknown; the message names the nearest.
    """
    if not isinstance(values, dict):
        raise ValueError(f"{source}: {part.rstrip('.')} must be a mapping, not {type(values).__name__}")
    for key in values:
        if key not in known:
            nearest = get_close_matches(str(key), known, n=1)
            hint = f"; did you mean {part}{nearest[0]}?" if nearest else ""
            raise ValueError(f"{source}: unknown key {part}{key}{hint}")


def require_types(source: str | Path, part: str, values: Any, types: Mapping[str, Any]) -> None:
    """Checks keys and values of a recipe, or of its `part`.

    Args:
        source: Of the recipe, for messages.
        part: ``"training."``, or ``""`` for the whole.
        values: What YAML gave. A list will do for a tuple, and an integer for a float.
        types: The type of each key.

    Raises:
        ValueError: As `require_known`, or a value is of another type.
    """
    require_known(source, part, values, types.keys())
    for key, value in values.items():
        if not _fits(value, types[key]):
            raise ValueError(f"{source}: {part}{key} is {value!r}; it must be {_in_words(types[key])}")


def types_of(called: Any, *, without: Collection[str] = ()) -> dict[str, Any]:
    """The types of the arguments of a function or of the fields of a class, but for those that are no matter of a recipe."""
    return {name: kind for name, kind in get_type_hints(called).items() if name not in {*without, "return"}}


def _fits(value: Any, kind: Any) -> bool:
    origin, parts = get_origin(kind), get_args(kind)
    if kind is Any:
        return True
    if origin in (Union, UnionType):
        return any(_fits(value, part) for part in parts)
    if origin is Literal:
        return value in parts
    if origin in (list, tuple):
        return isinstance(value, (list, tuple)) and all(_fits(item, parts[0]) for item in value)
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, (int, float) if kind is float else origin or kind)


def _in_words(kind: Any) -> str:
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return " or ".join(map(_in_words, parts))
    if origin is Literal:
        return " or ".join(map(repr, parts))
    if origin in (list, tuple):
        return f"a list of {_in_words(parts[0])}"
    if issubclass(origin or kind, Mapping):
        return "a mapping"
    return "none" if kind is type(None) else kind.__name__
