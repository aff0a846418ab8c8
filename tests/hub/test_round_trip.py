"""Push with every `push_to_hub` there is, forget everything local, open by id where this package is not installed."""

from __future__ import annotations

import json
import re
import shutil

import numpy as np
import pytest

from tests.fresh import FreshInterpreter
from tests.hub.hub_server import TOKEN, running_hub

OWNER = """
import shutil, sys
from pathlib import Path
import numpy as np, torch
from peft import LoraConfig, get_peft_model
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, AutoProcessor
from hf_mmembed import MMEmbedder
from hf_mmembed.hub import push

local, out = Path(sys.argv[1]), Path(sys.argv[2])
texts = ["a red circle", "a dog"]

push(local, "org/pushed")
model, processor = AutoModel.from_pretrained(local), AutoProcessor.from_pretrained(local)
model.push_to_hub("org/by-parts")
processor.push_to_hub("org/by-parts")
embedder = MMEmbedder(local, device="cpu")
embedder.push_to_hub("org/by-st")
batch = processor(text=texts, task="query", return_tensors="pt")
with torch.no_grad():
    np.save(out / "automodel.npy", model(**batch).pooler_output.numpy())
plain = SentenceTransformer(str(local), device="cpu")
np.save(out / "plain.npy", plain.encode_query([{"text": text} for text in texts]))

torch.manual_seed(0)
base = AutoModel.from_pretrained("org/pushed", revision="main")
tuned = get_peft_model(base, LoraConfig(r=2, target_modules=r".*language_model.*\\.(q_proj|v_proj)", init_lora_weights=False))
tuned.push_to_hub("org/by-peft")
tuned.save_pretrained(out / "adapter")
push(out / "adapter", "org/adapter")
with torch.no_grad():
    np.save(out / "adapter.npy", tuned.eval()(**batch).pooler_output.numpy())

push(local, "org/moved")
torch.manual_seed(0)
config = LoraConfig(r=2, target_modules=r".*language_model.*\\.(q_proj|v_proj)", init_lora_weights=False)
get_peft_model(AutoModel.from_pretrained("org/moved"), config).save_pretrained(out / "pinned")
push(out / "pinned", "org/pinned")
with torch.no_grad():
    for weight in model.parameters():
        weight.mul_(1.5)
model.save_pretrained(local)
push(local, "org/moved")  # after the adapter was made
shutil.rmtree(local)
"""

STRANGER = """
import sys
from pathlib import Path

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "hf_mmembed":
            raise ModuleNotFoundError(name, name=name)

sys.meta_path.insert(0, Absent())
import numpy as np, torch
from peft import PeftModel
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, AutoProcessor

out = Path(sys.argv[1])
revision = sys.argv[2]
texts = ["a red circle", "a dog"]
expected, plain = np.load(out / "automodel.npy"), np.load(out / "plain.npy")

def embed(model, processor):
    with torch.no_grad():
        return model(**processor(text=texts, task="query", return_tensors="pt")).pooler_output.numpy()

for repo, at in (("org/pushed", revision), ("org/by-parts", "main")):
    model = AutoModel.from_pretrained(repo, revision=at, trust_remote_code=True)
    processor = AutoProcessor.from_pretrained(repo, revision=at, trust_remote_code=True)
    assert type(model).__module__.startswith("transformers_modules")
    assert np.array_equal(embed(model, processor), expected), repo
for repo in ("org/pushed", "org/by-st"):
    model = SentenceTransformer(repo, trust_remote_code=True, device="cpu")
    assert np.array_equal(model.encode_query([{"text": text} for text in texts]), plain), repo
for repo in ("org/adapter", "org/by-peft"):
    base = AutoModel.from_pretrained("org/pushed", trust_remote_code=True)
    tuned = PeftModel.from_pretrained(base, repo).eval()
    assert np.array_equal(embed(tuned, processor), np.load(out / "adapter.npy")), repo
    assert not np.array_equal(embed(tuned, processor), expected)
pinned = AutoModel.from_pretrained("org/pinned", trust_remote_code=True).eval()
assert np.allclose(embed(pinned, processor), np.load(out / "adapter.npy"), atol=1e-6)
"""


@pytest.fixture(scope="module")
def computer(tmp_path_factory):
    """A Hub, an interpreter that asks it, and the interpreter's home."""
    home = tmp_path_factory.mktemp("home")
    with running_hub() as hub:
        interpreter = FreshInterpreter(
            home,
            HF_ENDPOINT=hub.endpoint,
            HF_HOME=str(home),
            HF_TOKEN=TOKEN,
            HF_HUB_DISABLE_XET="1",
            HF_HUB_OFFLINE="0",
            HF_HUB_DISABLE_TELEMETRY="1",
        )
        yield hub, interpreter, home
        interpreter.close()


@pytest.fixture(scope="module")
def published(embedder, computer, tmp_path_factory):
    """The Hub after the owner has pushed and deleted everything, and the folder with the embeddings to expect."""
    hub, interpreter, home = computer
    folder = tmp_path_factory.mktemp("owner")
    local = shutil.copytree(embedder("qwen2_vl"), folder / "local")
    interpreter.run(OWNER, str(local), str(folder), cwd=folder)
    assert not local.exists()
    shutil.rmtree(home / "hub")
    return hub, folder


def test_a_stranger_opens_everything_by_id_with_the_same_numbers(published, computer, tmp_path):
    hub, folder = published
    _, interpreter, _ = computer
    interpreter.run(STRANGER, str(folder), hub.repos["org/pushed"].branches["main"], cwd=tmp_path)


def test_no_way_to_push_uploads_a_machine_path_a_token_or_a_pickle(published):
    hub, folder = published
    foreign = re.compile(TOKEN + "|" + re.escape(str(folder)) + r"|(?<![\w.:/])/(?:home|root|tmp|work|Users)/\w")
    names = ("pushed", "by-parts", "by-st", "by-peft", "adapter", "moved", "pinned")
    assert set(hub.repos) == {f"org/{name}" for name in names}
    for repo in hub.repos:
        for name, content in hub.files(repo).items():
            assert not name.endswith((".bin", ".pt", ".pkl")), f"{repo}/{name}"
            found = foreign.search(content.decode("utf-8", errors="replace"))
            assert not found, f"{repo}/{name}: {found[0]}"


def test_an_adapter_names_its_base_and_revision(published):
    hub, _ = published
    config = json.loads(hub.files("org/adapter")["adapter_config.json"])
    assert config["base_model_name_or_path"] == "org/pushed"
    assert config["revision"] == hub.repos["org/pushed"].branches["main"]


def test_expected_embeddings_are_unit_vectors(published):
    _, folder = published
    assert np.allclose(np.linalg.norm(np.load(folder / "plain.npy"), axis=1), 1, atol=1e-6)
