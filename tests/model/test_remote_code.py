"""A checkpoint opens where this package is not installed, and so does what is saved from there."""

from __future__ import annotations

import ast
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModel, AutoProcessor

# One of each kind: M-RoPE, tiles, soft tokens in a bidirectional block, patches that depend on the resolution.
FAMILIES = ("qwen2_vl", "smolvlm", "gemma3", "llava_onevision")
CODE = Path(__file__).parents[2] / "hf_mmembed" / "model"

# Runs where `import hf_mmembed` fails. Embeds with the first directory, saves it again, deletes it, opens the second.
STRANGER = """
import importlib.util, json, shutil, sys
from pathlib import Path

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "hf_mmembed":
            raise ModuleNotFoundError(name, name=name)

sys.meta_path.insert(0, Absent())
import numpy as np, torch
from PIL import Image
from transformers import AutoConfig, AutoModel, AutoProcessor

def embed(path):
    model = AutoModel.from_pretrained(path, trust_remote_code=True)
    processor = AutoProcessor.from_pretrained(path, trust_remote_code=True)
    config = AutoConfig.from_pretrained(path, trust_remote_code=True)
    assert config.model_type == "mmembed" and type(model).__module__.startswith("transformers_modules")
    picture = Image.fromarray(np.arange(20 * 32 * 3, dtype=np.uint8).reshape(20, 32, 3))
    batch = processor(text=["a dog", None], images=[None, picture], task="query", return_tensors="pt")
    with torch.no_grad():
        return model, processor, model(**batch).embeddings

for first, second in json.loads(sys.argv[1]):
    for auto in (AutoConfig, AutoModel, AutoProcessor):
        try:
            auto.from_pretrained(first, trust_remote_code=False)
        except ValueError as error:
            assert "trust_remote_code" in str(error), error
        else:
            raise AssertionError(f"{auto.__name__} ran remote code without being allowed to")
    model, processor, before = embed(first)
    model.save_pretrained(second)
    processor.save_pretrained(second)
    shutil.rmtree(first)
    _, _, after = embed(second)
    assert torch.equal(before, after)
    np.save(Path(second, "vectors.npy"), after.numpy())
"""

# Runs in another process, where the first directory is long gone.
NEXT_DAY = (
    STRANGER.partition("for first, second in")[0]
    + """
for path in json.loads(sys.argv[1]):
    _, _, vectors = embed(path)
    assert np.array_equal(vectors.numpy(), np.load(Path(path, "vectors.npy")))
print("the same")
"""
)

# What `AutoModel` offers beside loading and saving.
EXTRAS = (
    STRANGER.partition("for first, second in")[0]
    + """
path = sys.argv[1]
plain, processor, vectors = embed(path)
batch = processor(text=["a dog", "a small cat"], task="query", return_tensors="pt")

def opened(path=path, **options):
    return AutoModel.from_pretrained(path, trust_remote_code=True, **options)

def same(model):
    with torch.no_grad():
        return torch.allclose(model(**batch).embeddings, plain(**batch).embeddings, atol=1e-5)

plain.save_pretrained("sharded", max_shard_size="100KB")
assert len(list(Path("sharded").glob("*.safetensors"))) > 1 and same(opened("sharded"))

resized = opened()
resized.resize_token_embeddings(resized.get_input_embeddings().num_embeddings + 64)
resized.save_pretrained("resized")
assert same(opened("resized"))

mixed = opened(attn_implementation={"text_config": "eager", "vision_config": "sdpa"})
assert mixed.config.backbone_config.text_config._attn_implementation == "eager" and same(mixed)

offloaded = opened(device_map={"backbone.visual": "disk", "backbone.language_model": "cpu"}, offload_folder="offload")
assert offloaded.hf_device_map["backbone.visual"] == "disk" and same(offloaded)

assert opened(dtype="bfloat16").dtype == torch.bfloat16

trained = opened().train()
trained.gradient_checkpointing_enable()
trained(**batch).embeddings[:, 0].sum().backward()
assert trained.get_input_embeddings().weight.grad.abs().max() > 0

import peft
torch.manual_seed(0)
adapted = peft.get_peft_model(opened(), peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
adapted.save_pretrained("adapter")
reloaded = opened()
reloaded.load_adapter("adapter")
with torch.no_grad():
    assert torch.allclose(reloaded(**batch).embeddings, adapted(**batch).embeddings, atol=1e-6)
assert not same(reloaded)
print("all work")
"""
)


@pytest.fixture(scope="module")
def visited(embedder, fresh_interpreter, tmp_path_factory):
    """Directories that a process without the package has opened and saved again, one per family."""
    folder = tmp_path_factory.mktemp("stranger")
    pairs = []
    for family in FAMILIES:
        shutil.copytree(embedder(family), folder / f"{family}-first")
        pairs.append((str(folder / f"{family}-first"), str(folder / f"{family}-second")))
    fresh_interpreter(STRANGER, json.dumps(pairs), cwd=folder)
    return {family: Path(second) for family, (_, second) in zip(FAMILIES, pairs, strict=True)}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_stranger_gets_our_numbers_and_saves_a_whole_checkpoint(visited, embedder, family):
    second, ours = visited[family], embedder(family)
    names = {entry.name for entry in ours.iterdir()} - {"README.md"}
    assert {entry.name for entry in second.iterdir()} == names | {"vectors.npy"}
    for name in names - {"model.safetensors"}:
        if name.endswith((".py", ".jinja")) or name in ("modules.json", "processor_config.json"):
            assert (second / name).read_text() == (ours / name).read_text(), name
    picture = Image.fromarray(np.arange(20 * 32 * 3, dtype=np.uint8).reshape(20, 32, 3))
    for path in (ours, second):
        processor, model = AutoProcessor.from_pretrained(path), AutoModel.from_pretrained(path)
        batch = processor(text=["a dog", None], images=[None, picture], task="query", return_tensors="pt")
        with torch.no_grad():
            vectors = model(**batch).embeddings
        assert np.abs(vectors.numpy() - np.load(second / "vectors.npy")).max() <= 1e-6


def test_another_stranger_opens_what_the_first_one_saved(visited, fresh_interpreter, tmp_path_factory):
    paths = json.dumps([str(path) for path in visited.values()])
    assert "the same" in fresh_interpreter(NEXT_DAY, paths, cwd=tmp_path_factory.mktemp("next day"))


def test_the_extras_of_auto_model_work_for_a_stranger(embedder, fresh_interpreter, tmp_path_factory):
    pytest.importorskip("peft")
    folder = tmp_path_factory.mktemp("extras")
    assert "all work" in fresh_interpreter(EXTRAS, str(embedder("qwen2_vl")), cwd=folder)


def test_the_code_that_travels_is_flat_and_imports_little():
    allowed = {"PIL", "jinja2", "numpy", "safetensors", "torch", "transformers"} | sys.stdlib_module_names
    files = sorted(CODE.glob("*_mmembed.py"))
    assert len(files) >= 5
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level:
                assert node.level == 1 and node.module and "." not in node.module, file
                assert (CODE / f"{node.module}.py") in files, file
            elif isinstance(node, (ast.Import, ast.ImportFrom)):
                modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module]
                assert {module.partition(".")[0] for module in modules} <= allowed, file


def test_every_reference_in_the_checkpoint_is_to_its_own_files(embedder):
    path = embedder("qwen2_vl")
    for name in ("config.json", "processor_config.json", "tokenizer_config.json"):
        for reference in json.loads((path / name).read_text()).get("auto_map", {}).values():
            module, _, attribute = reference.partition(".")
            assert "--" not in reference and "." not in attribute
            assert (path / f"{module}.py").is_file()
