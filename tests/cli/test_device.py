"""`--device`, wherever there is one: what this machine lacks is wrong usage."""

from __future__ import annotations

import pytest
from typer.main import get_command

from hf_mmembed.cli.main import app, main


def with_device(command, *words):
    """The words that call each command with the option."""
    for name, inner in getattr(command, "commands", {}).items():
        yield from with_device(inner, *words, name)
    if any("--device" in parameter.opts for parameter in command.params):
        yield words


@pytest.mark.parametrize("words", list(with_device(get_command(app))), ids=" ".join)
def test_a_device_that_is_not_there_is_told_in_one_line(words, capsys):
    for device, told in (("xla", "--device xla: this machine has"), ("foo", "--device foo is none")):
        with pytest.raises(SystemExit) as stop:
            main([*words, "--device", device])
        assert stop.value.code == 2 and told in " ".join(capsys.readouterr().err.split())
