"""Small runs of the trainer, and how to compare their weights."""

from __future__ import annotations

import numpy as np
import torch
from transformers import TrainerCallback

from hf_mmembed.training.arguments import SaHaTrainingArguments

CLUSTERS = np.arange(12).reshape(6, 2)


def arguments(directory, **options):
    chosen = {
        "global_batch_size": 4, "num_train_epochs": 2, "learning_rate": 1e-2, "warmup_steps": 0, "lora_rank": 2,
        "use_dora": False, "save_steps": 1, "save_total_limit": None, "logging_steps": 1, "mini_batch_size": 3, "use_cpu": True,
    }  # fmt: skip
    return SaHaTrainingArguments(str(directory), **{**chosen, **options})


# Without chance, and with updates in proportion to gradients: Adam blows up the rounding of those that are nearly zero.
COMPARABLE = {"lora_dropout": 0.0, "optim": "sgd", "learning_rate": 0.5, "save_strategy": "no"}


def trained_weights(model):
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        assert torch.equal(found[name], weight), name


class Steps(TrainerCallback):
    """Weights after every step, and a chance to do something then."""

    def __init__(self, action=lambda step: None):
        self.weights, self.action = {}, action

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.weights[state.global_step] = trained_weights(model)
        self.action(state.global_step)
