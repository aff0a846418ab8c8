"""`hf-mmembed demo` hands on which model was named, or that none was."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from hf_mmembed.cli.main import main

pytest.importorskip("gradio")


@pytest.mark.parametrize(("words", "model"), [([], None), (["mmembed-tiny"], "mmembed-tiny"), (["mine"], "mine")])
def test_a_model_that_is_named_wins(words, model, monkeypatch):
    opened = []
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setitem(sys.modules, "app", SimpleNamespace(launch=lambda model, **options: opened.append(model)))
    with pytest.raises(SystemExit) as stop:
        main(["demo", *words])
    assert stop.value.code == 0 and opened == [model]
