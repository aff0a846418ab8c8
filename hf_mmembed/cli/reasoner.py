"""The options that a trace depends on, for every command that lets a reasoner write; and the reasoner they describe.

In: what stands on the command line. Out: a `Reasoner` on this machine or behind an endpoint.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from hf_mmembed.thinking.reasoner import Reasoner

__all__ = [
    "ApiKeyOption",
    "EndpointOption",
    "HowToThink",
    "MaxNewTokensOption",
    "SamplingSeedOption",
    "TemperatureOption",
    "TemplatesOption",
    "reasoner_of",
]

EndpointOption = Annotated[
    str | None,
    typer.Option(help="OpenAI-compatible server that has the reasoner, such as http://localhost:8000/v1."),
]
ApiKeyOption = Annotated[
    str | None, typer.Option(envvar="HF_MMEMBED_API_KEY", help="For the endpoint.", show_envvar=True)
]
TemplatesOption = Annotated[
    str, typer.Option(help="Version of the reasoner's prompts, or a YAML file of the same form.")
]
MaxNewTokensOption = Annotated[int, typer.Option(min=1, help="A trace ends here at the latest.")]
TemperatureOption = Annotated[
    float, typer.Option(min=0.0, help="Of a trace; 0 takes the most probable token each time.")
]
SamplingSeedOption = Annotated[int, typer.Option(help="Of the sampling of a trace.")]


@dataclass(frozen=True)
class HowToThink:
    """What the options say; traces of the same options are of the same origin in every command.

    Attributes:
        endpoint: Where the reasoner is served. None for this machine.
        api_key: For the endpoint; traces do not depend on it.
        revision: Branch, tag or commit; or the version that is served.
        templates: Version of the prompts, or their file.
        max_new_tokens: A trace ends there at the latest.
        temperature: 0 takes the most probable token each time.
        seed: Of the sampling.
        longest_edge: To what pictures are scaled down, on this machine.
    """

    endpoint: str | None = None
    api_key: str | None = field(default=None, repr=False, compare=False)
    revision: str | None = None
    templates: str = "1"
    max_new_tokens: int = 512
    temperature: float = 0.0
    seed: int = 0
    longest_edge: int | None = None

    def check(self, option: str) -> None:
        """Refuses a size of pictures for a served reasoner.

        Args:
            option: How the command spells `longest_edge`.

        Raises:
            typer.BadParameter: Both are given.
        """
        if self.endpoint is not None and self.longest_edge is not None:
            raise typer.BadParameter("the server decides on the size of pictures; leave it out", param_hint=option)


def reasoner_of(model: str, how: HowToThink, *, device: str | None, batch_size: int = 16) -> Reasoner:
    """The reasoner that the options describe.

    Args:
        model: A directory, a Hub id, the shipped model, or the name that it is served under.
        how: The options.
        device: On this machine.
        batch_size: Inputs at a time, or requests on their way at once.

    Raises:
        OSError: As `LocalReasoner`.
        ValueError: As `LocalReasoner` and `EndpointReasoner`, or there are no such templates.
    """
    from hf_mmembed.thinking.reasoner import LocalReasoner, Settings
    from hf_mmembed.thinking.templates import load_templates

    from .models import generative

    settings = Settings(max_new_tokens=how.max_new_tokens, temperature=how.temperature, seed=how.seed)
    templates = load_templates(how.templates)
    if how.endpoint is not None:
        from hf_mmembed.thinking.endpoint import EndpointReasoner

        return EndpointReasoner(
            how.endpoint, model, revision=how.revision or "", api_key=how.api_key, settings=settings,
            templates=templates, concurrency=batch_size,
        )  # fmt: skip
    return LocalReasoner(
        generative(model), revision=how.revision, settings=settings, templates=templates, batch_size=batch_size,
        longest_edge=how.longest_edge, device=device,
    )  # fmt: skip
