from __future__ import annotations

import inspect
import re
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, TrainerCallback, TrainingArguments

from hf_mmembed.thinking import sft
from hf_mmembed.thinking.filling import think_about_pairs
from hf_mmembed.thinking.reasoner import LocalReasoner, Settings, open_generative
from hf_mmembed.thinking.recipes import ThinkingRecipe
from hf_mmembed.thinking.sft import IGNORED, Lesson, LessonCollator, _last_complete, fine_tune, lessons
from hf_mmembed.thinking.templates import load_templates
from hf_mmembed.thinking.traces import Record, Trace, TraceStore
from tests.forks import in_processes
from tests.thinking.conftest import Parrot


@pytest.fixture
def store(parrot, some_pairs) -> TraceStore:
    store = TraceStore(":memory:")
    think_about_pairs(store, parrot, some_pairs)
    return store


def test_lessons_are_the_complete_traces(store, parrot, some_pairs):
    chosen = lessons(some_pairs, store)
    assert [(lesson.row, lesson.side) for lesson in chosen] == [
        *((row, "query") for row in range(6)), *((row, "document") for row in range(6))
    ]  # fmt: skip
    incomplete = TraceStore(":memory:")
    incomplete.put(
        Record(parrot.origin.key(content, side, "content"), content, side, "content", parrot.origin,
               Trace("cut", "length") if number else trace)
        for number, ((side, content), trace) in enumerate(store.by_content().items())
    )  # fmt: skip
    assert len(lessons(some_pairs, incomplete)) == 1


def test_nothing_to_learn(store, some_pairs):
    with pytest.raises(ValueError, match="holds no complete trace .*'missing': "):
        lessons(some_pairs, store, families="qa", sides=["query"])
    think_about_pairs(store, Parrot("second"), some_pairs)
    with pytest.raises(ValueError, match="2 origins.* into another file"):
        lessons(some_pairs, store)
    with pytest.raises(ValueError, match="holds no traces; make them with `hf-mmembed think`"):
        lessons(some_pairs, TraceStore(":memory:"))


def test_traces_that_are_there_as_of_another_family_are_named(parrot, text_pairs, caplog):
    store, pairs = TraceStore(":memory:"), text_pairs.map(lambda row: {"subset": "MSCOCO"})
    think_about_pairs(store, parrot, pairs, families="composed")
    with pytest.raises(ValueError, match=r"families.*2 of MSCOCO are there as 'composed', not 'grounding'.*MSCOCO="):
        lessons(pairs, store, sides=["query"])
    assert len(lessons(pairs, store)) == 2  # documents
    assert "2 of MSCOCO are there as 'composed', not 'grounding'" in caplog.text
    caplog.clear()
    assert len(lessons(pairs, store, families={"MSCOCO": "composed"})) == 4 and "MSCOCO" not in caplog.text


def test_traces_that_saw_the_answer_are_taken_when_it_is_said(parrot, text_pairs):
    store = TraceStore(":memory:")
    think_about_pairs(store, parrot, text_pairs, sides=["query"], show_answers=True)
    with pytest.raises(ValueError, match="holds no complete trace .*allow_gold=True .* in sight of the answer"):
        lessons(text_pairs, store, sides=["query"])
    assert [lesson.row for lesson in lessons(text_pairs, store, sides=["query"], allow_gold=True)] == [0, 1]


def test_templates_are_those_of_the_teacher(generative, store, some_pairs, tmp_path):
    other = replace(load_templates(), version="mine")
    args = TrainingArguments(str(tmp_path), report_to="none", use_cpu=True)
    with pytest.raises(ValueError, match="templates 'mine', but parrot had '1'"):
        fine_tune(generative("qwen2_vl"), some_pairs, store, args, tmp_path / "out", templates=other)


def test_nothing_is_pushed(store, some_pairs, tmp_path):
    """Not the directory of the run either, which holds pickles."""
    args = TrainingArguments(str(tmp_path / "run"), report_to="none", use_cpu=True, push_to_hub=True)
    advice = f"push_to_hub is set, .* hf upload ORG/NAME {re.escape(str(tmp_path / 'out'))}$"
    with pytest.raises(ValueError, match=advice):
        fine_tune("./never opened", some_pairs, store, args, tmp_path / "out")
    recipe = {"model": "m", "data": {}, "traces": "t", "output": "runs/sft", "training": {"push_to_hub": True}}
    with pytest.raises(ValueError, match=r"^training\.push_to_hub is set, .* hf upload ORG/NAME runs/sft/model$"):
        ThinkingRecipe("sft", **recipe)
    assert ThinkingRecipe("embedder", **recipe).training["push_to_hub"]


def test_labels_are_the_trace_and_its_end(generative, some_pairs):
    model, processor = open_generative(generative("qwen2_vl"), load_templates())
    known = list(inspect.signature(model.forward).parameters)
    traces = ["<think> x </think> y", "<think> a longer one </think> z", "<think> 红 </think> 色"]
    some = [
        Lesson(0, "document", "content", traces[0]),
        Lesson(1, "query", "qa", traces[1]),
        Lesson(2, "query", "content", traces[2]),
    ]
    batch = LessonCollator(some_pairs, processor, load_templates(), known)(some)
    assert batch["labels"].shape == batch["input_ids"].shape == batch["attention_mask"].shape
    taught = [processor.tokenizer.decode(row[row != IGNORED]) for row in batch["labels"]]
    end = processor.tokenizer.eos_token
    assert sorted(taught) == sorted(trace + end for trace in traces)
    same = batch["labels"] != IGNORED
    assert torch.equal(batch["labels"][same], batch["input_ids"][same]) and batch["attention_mask"][same].all()
    assert torch.isfinite(model(**batch).loss)


def test_the_student_learns_to_say_it_and_does_not_forget_to_see(
    generative, store, some_pairs, tmp_path, caplog, capsys
):
    caplog.set_level("INFO")
    args = TrainingArguments(
        str(tmp_path / "run"), max_steps=12, per_device_train_batch_size=12, learning_rate=5e-3, use_cpu=True,
        report_to="none", save_strategy="no", logging_steps=1, disable_tqdm=True, seed=1,
    )  # fmt: skip
    base = generative("qwen2_vl")
    out = fine_tune(base, some_pairs, store, args, tmp_path / "student")
    assert "step 12 of 12: loss " in caplog.text and "loss" not in capsys.readouterr().out
    before, after = (AutoModelForImageTextToText.from_pretrained(path) for path in (base, out))
    changed = {
        name for (name, old), new in zip(before.named_parameters(), after.parameters(), strict=True)
        if not torch.equal(old, new)
    }  # fmt: skip
    assert changed and not any("visual" in name for name in changed)
    model, processor = open_generative(out, load_templates())
    batch = LessonCollator(some_pairs, processor, load_templates(), list(inspect.signature(model.forward).parameters))(
        lessons(some_pairs, store)
    )
    with torch.no_grad():
        assert after(**batch).loss < 0.7 * before(**batch).loss
    assert LocalReasoner(out, settings=Settings(3), device="cpu").think(["a"], "qa")[0].n_tokens


def test_resuming_goes_on_from_the_last_complete_checkpoint(tmp_path):
    assert _last_complete(str(tmp_path / "none")) is None
    for step in (2, 10, 12):
        (tmp_path / f"checkpoint-{step}").mkdir()
        if step < 12:  # a killed run has not written the last file yet
            (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text("{}")
    assert _last_complete(str(tmp_path)) == str(tmp_path / "checkpoint-10")


def test_a_resumed_run_ends_like_one_that_was_not_interrupted(generative, store, some_pairs, tmp_path):
    def weights(*, resume: bool) -> dict[str, torch.Tensor]:
        args = TrainingArguments(
            str(tmp_path / "run"), max_steps=2, save_steps=1, logging_steps=1, per_device_train_batch_size=2,
            learning_rate=5e-3, lr_scheduler_type="constant", use_cpu=True, report_to="none", disable_tqdm=True,
        )  # fmt: skip
        out = fine_tune(generative("qwen2_vl"), some_pairs, store, args, tmp_path / "student", resume=resume)
        return load_file(out / "model.safetensors")

    whole = weights(resume=False)
    finished = weights(resume=True)
    shutil.rmtree(tmp_path / "run" / "checkpoint-2")
    for resumed in (finished, weights(resume=True)):
        assert resumed.keys() == whole.keys()
        assert all(torch.equal(resumed[name], whole[name]) for name in whole)


def test_a_run_is_resumed_only_with_what_it_began_with(generative, store, some_pairs, tmp_path):
    base = generative("qwen2_vl")

    def tune(model=base, pairs=some_pairs, *, resume=True, **changes):
        args = TrainingArguments(
            str(tmp_path / "run"), report_to="none", use_cpu=True, disable_tqdm=True,
            **{"max_steps": 1, "save_steps": 1, "per_device_train_batch_size": 2, "learning_rate": 5e-3, **changes},
        )  # fmt: skip
        return fine_tune(model, pairs, store, args, tmp_path / "student", resume=resume)

    student = tune(resume=False)
    for different, names in (
        ({"pairs": some_pairs.select([1, 0, 2, 3, 4, 5])}, {"lessons"}),
        ({"learning_rate": 0.5, "data_seed": 3}, {"training.learning_rate", "training.data_seed"}),
        ({"per_device_train_batch_size": 4}, {"lessons_per_step"}),
        ({"model": student}, {"student.weights"}),
    ):
        with pytest.raises(ValueError, match="choose another output directory") as refused:
            tune(**different)
        assert set(re.findall(r"(\S+) was ", str(refused.value))) == names
    tune(logging_steps=1)


def test_the_inputs_are_read_by_the_first_process_alone(store, some_pairs, tmp_path, monkeypatch):
    """Each of the others would read and hash all pictures, too."""
    chosen = lessons(some_pairs, store)
    monkeypatch.setattr(sft, "world", lambda: SimpleNamespace(once=lambda _: chosen, agree=lambda failure: failure))
    monkeypatch.setattr(sft, "thoughts_of_pairs", lambda *_, **__: pytest.fail("the inputs are read"))
    args = TrainingArguments(str(tmp_path), report_to="none", use_cpu=True)
    with pytest.raises(ValueError, match="no checkpoint directory"):
        fine_tune("./gone", some_pairs, store, args, tmp_path / "out")


def test_processes_are_told_the_lessons_and_read_the_traces_themselves(store, some_pairs, tmp_path, monkeypatch):
    """All of them can be gigabytes."""
    told = []

    def once(make):
        told.append(make())
        return told[-1]

    monkeypatch.setattr(sft, "world", lambda: SimpleNamespace(once=once, agree=lambda failure: failure))
    args = TrainingArguments(str(tmp_path), report_to="none", use_cpu=True)
    with pytest.raises(ValueError, match="no checkpoint directory"):
        fine_tune("./gone", some_pairs, store, args, tmp_path / "out")
    assert len(told[0]) == 12 and {lesson.trace for lesson in told[0]} == {""}
    with TraceStore(":memory:") as another, pytest.raises(ValueError, match="lacks 12 of 12 traces .* the same file"):
        sft._with_traces(told[0], another)
    assert sft._with_traces(told[0], store) == lessons(some_pairs, store)
    monkeypatch.setattr(sft, "world", lambda: SimpleNamespace(agree=lambda failure: failure or "elsewhere"))
    with pytest.raises(ValueError, match="elsewhere"):
        sft._with_traces(told[0], store)


def test_a_new_run_is_not_mixed_with_an_earlier_one(store, some_pairs, tmp_path):
    (tmp_path / "checkpoint-1").mkdir()
    args = TrainingArguments(str(tmp_path), report_to="none", use_cpu=True)
    with pytest.raises(ValueError, match="holds checkpoints of an earlier run.* choose another output directory"):
        fine_tune(tmp_path / "never opened", some_pairs, store, args, tmp_path / "out")


def test_resuming_where_there_is_no_checkpoint_begins_anew(generative, store, some_pairs, tmp_path):
    args = TrainingArguments(
        str(tmp_path / "run"), max_steps=1, per_device_train_batch_size=2, use_cpu=True, report_to="none",
        save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    out = fine_tune(generative("qwen2_vl"), some_pairs, store, args, tmp_path / "student", resume=True)
    assert (out / "config.json").is_file()


@pytest.mark.parametrize("in_config", [True, False])
def test_the_result_has_the_type_of_the_student_and_checkpoints_float32(
    generative, store, some_pairs, tmp_path, in_config
):
    base, run = tmp_path / "base", tmp_path / "run"
    shutil.copytree(generative("qwen2_vl"), base)
    AutoModelForImageTextToText.from_pretrained(base, dtype=torch.bfloat16).save_pretrained(base)
    if not in_config:
        text = (base / "config.json").read_text()
        (base / "config.json").write_text(re.sub(r'\n\s*"(torch_)?dtype": "bfloat16",', "", text))
        assert "bfloat16" not in (base / "config.json").read_text()
    args = TrainingArguments(
        str(run), max_steps=1, save_steps=1, per_device_train_batch_size=2, use_cpu=True, report_to="none",
        disable_tqdm=True,
    )  # fmt: skip
    out = fine_tune(base, some_pairs, store, args, tmp_path / "student")
    types = [
        {weight.dtype for weight in load_file(folder / "model.safetensors").values()}
        for folder in (out, run / "checkpoint-1")
    ]
    assert types == [{torch.bfloat16}, {torch.float32}]
    assert open_generative(out, load_templates())[0].dtype == torch.bfloat16


@pytest.mark.parametrize("kind", ["FSDP", "DeepSpeed ZeRO-3"])
def test_split_weights_are_refused(generative, store, some_pairs, tmp_path, monkeypatch, kind):
    original = sft._SftTrainer.create_accelerator_and_postprocess

    def split(self):
        original(self)
        self.is_fsdp_enabled = kind == "FSDP"
        plugin = None if kind == "FSDP" else SimpleNamespace(zero_stage=3)
        monkeypatch.setattr(AcceleratorState, "deepspeed_plugin", plugin)

    monkeypatch.setattr(sft._SftTrainer, "create_accelerator_and_postprocess", split)
    args = TrainingArguments(str(tmp_path), report_to="none", use_cpu=True)
    with pytest.raises(
        ValueError, match=f"{kind} splits the weights.* launch with DistributedDataParallel.* --zero_stage 2"
    ):
        fine_tune(generative("qwen2_vl"), some_pairs, store, args, tmp_path / "out")
    assert not list(tmp_path.iterdir())


class Copies(TrainerCallback):
    """Pieces of memory with gradients, and the gradients, after each part of a step."""

    def __init__(self):
        self.found = []

    def on_substep_end(self, args, state, control, model=None, **kwargs):
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        self.found.append((len({g.untyped_storage().data_ptr() for g in gradients}), len(gradients)))

    on_pre_optimizer_step = on_substep_end


def copies_of_gradients(rank, base, pairs, directory):
    copies = Copies()
    args = TrainingArguments(
        str(directory / "run"), max_steps=1, per_device_train_batch_size=1, gradient_accumulation_steps=2,
        use_cpu=True, report_to="none", save_strategy="no", disable_tqdm=True, dataloader_pin_memory=False,
        accelerator_config={"gradient_accumulation_kwargs": {"sync_each_batch": True}},
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch, TraceStore(directory / "traces.sqlite") as store:
        patch.setattr(sft, "Epochs", lambda: copies)
        fine_tune(base, pairs, store, args, directory / "student")
    return copies.found


def test_several_processes_keep_gradients_once(generative, parrot, some_pairs, tmp_path):
    with TraceStore(tmp_path / "traces.sqlite") as store:
        think_about_pairs(store, parrot, some_pairs)
    for found in in_processes(
        copies_of_gradients, generative("qwen2_vl"), some_pairs, tmp_path, store=tmp_path / "group"
    ):
        assert [pieces < gradients for pieces, gradients in found] == [True, True]


def test_activation_checkpointing_leaves_the_frozen_tower_alone(generative, store, some_pairs, tmp_path, monkeypatch):
    passes = {"tower": 0, "decoder": 0}

    def count(part):
        def backward(*_):
            passes[part] += 1

        return backward

    def open_counted(*args, **kwargs):
        student, processor = open_generative(*args, **kwargs)
        student.model.visual.blocks[0].register_full_backward_hook(count("tower"))
        student.model.language_model.layers[0].register_full_backward_hook(count("decoder"))
        return student, processor

    monkeypatch.setattr(sft, "open_generative", open_counted)
    args = TrainingArguments(
        str(tmp_path / "run"), max_steps=1, per_device_train_batch_size=2, use_cpu=True, report_to="none",
        save_strategy="no", disable_tqdm=True, activation_checkpointing=True,
    )  # fmt: skip
    fine_tune(generative("qwen2_vl"), some_pairs, store, args, tmp_path / "student")
    assert passes == {"tower": 0, "decoder": 1}
