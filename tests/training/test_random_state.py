"""Generators of random numbers go back to where they were, on every kind of device."""

from __future__ import annotations

import pytest
import torch

from hf_mmembed.training.random_state import random_state, set_random_state


def test_the_cpu_draws_the_same_again():
    state = random_state()
    first = torch.rand(4)
    set_random_state(state)
    assert torch.equal(torch.rand(4), first)


@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_a_gpu_draws_the_same_again(device, monkeypatch):
    """A GPU whose generator is one of the CPU's."""
    generator = torch.Generator()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: device == "cuda")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: device == "mps")
    monkeypatch.setattr(torch.cuda, "get_rng_state_all", lambda: [generator.get_state()])
    monkeypatch.setattr(torch.cuda, "set_rng_state_all", lambda states: generator.set_state(states[0]))
    monkeypatch.setattr(torch.mps, "get_rng_state", generator.get_state)
    monkeypatch.setattr(torch.mps, "set_rng_state", generator.set_state)
    state = random_state()
    first = torch.rand(4, generator=generator)
    set_random_state(state)
    assert torch.equal(torch.rand(4, generator=generator), first)
