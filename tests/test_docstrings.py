"""A default that a docstring tells is the one that counts."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator
from typing import Any

import hf_mmembed

# "name: What it is. Defaults to 0.1." and transformers' "name (`float`, *optional*, defaults to 0.1):"
_SAID = (
    re.compile(r"(?m)^ {4,8}(?P<name>\w+): (?P<text>(?:.|\n {8,})*)"),
    re.compile(r"(?m)^ {4,8}(?P<name>\w+) \((?P<text>`.+, \*optional\*, .+)\):"),
)
_DEFAULT = re.compile(r"[Dd]efaults to\s+(`{0,2})(?P<value>[^`]+?)\1(?:[,.;:)](?:\s|$)|$)")


def documented() -> Iterator[tuple[str, Any]]:
    """Every public function, class and method of the package by its name."""
    for module in pkgutil.walk_packages(hf_mmembed.__path__, "hf_mmembed."):
        if module.name.endswith("__main__"):
            continue
        loaded = importlib.import_module(module.name)
        for name in getattr(loaded, "__all__", []):
            found = getattr(loaded, name)
            if getattr(found, "__module__", None) != module.name:
                continue
            yield f"{module.name}.{name}", found
            for method, function in inspect.getmembers(found, inspect.isfunction) if inspect.isclass(found) else []:
                if not method.startswith("_") and function.__module__ == module.name:
                    yield f"{module.name}.{name}.{method}", function


def told(text: str) -> Iterator[tuple[str, Any]]:
    """Names with the defaults that a docstring gives as values; words such as "the shipped model" are none."""
    for pattern in _SAID:
        for entry in pattern.finditer(text):
            if (said := _DEFAULT.search(" ".join(entry["text"].split()))) is None:
                continue
            value = said["value"]
            try:
                yield entry["name"], ast.literal_eval(re.sub(r"(?<=\d),(?=\d{3})", "", value))
            except (SyntaxError, ValueError):
                continue


def test_what_is_told_is_the_default():
    compared, wrong = 0, []
    for name, found in documented():
        try:
            parameters = inspect.signature(found).parameters
        except ValueError:
            continue
        for argument, value in told(inspect.getdoc(found) or ""):
            if argument in parameters and parameters[argument].default is not inspect.Parameter.empty:
                compared += 1
                actual = parameters[argument].default
                if actual != value:
                    wrong.append(f"{name}: {argument} is said to default to {value!r}, and does to {actual!r}")
    assert not wrong
    assert compared > 80
