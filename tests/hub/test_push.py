from __future__ import annotations

import hashlib
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import constants
from transformers import AutoModel

from hf_mmembed.cli.main import main
from hf_mmembed.hub import (
    PublishError,
    PushError,
    RepoFile,
    check,
    prepare,
    push,
    replaced_files,
    verify,
    write_golden,
)
from hf_mmembed.model.checkpoint_mmembed import SENTENCE_TRANSFORMERS_FILES
from hf_mmembed.sentence_transformer import MMEmbedder
from hf_mmembed.training import SaHaTrainingArguments
from hf_mmembed.training.models import open_for_training, save_embedder
from tests.hub.hub_server import TOKEN, Fault

CODE = Path(__file__).parents[2] / "hf_mmembed" / "model"


@pytest.fixture
def prepared(checkpoint):
    return prepare(checkpoint, repo_id="org/my-embedder")


def test_push_and_open_by_id(hub, checkpoint):
    inputs = ["a red circle", {"text": "a dog", "instruction": "Find it."}]
    before = MMEmbedder(checkpoint, device="cpu").encode_query(inputs)
    commit = push(checkpoint, "org/my-embedder", private=True)
    assert hub.repos["org/my-embedder"].private
    uploaded = hub.files("org/my-embedder")
    assert {"model.safetensors", "README.md", "golden/vectors.safetensors", "modules.json"} <= set(uploaded)
    for path in CODE.glob("*_mmembed.py"):
        assert uploaded[path.name] == path.read_bytes()

    shutil.rmtree(checkpoint)
    found = verify("org/my-embedder", revision=commit.oid, device="cpu")
    assert found.revision == commit.oid and found.failures == [] and len(found.comparisons) == 16
    assert max(c.difference for c in found.comparisons) == 0
    shutil.rmtree(constants.HF_HUB_CACHE)
    after = MMEmbedder("org/my-embedder", revision=commit.oid, device="cpu").encode_query(inputs)
    assert np.array_equal(before, after)


def test_verify_finds_a_changed_weight_and_a_changed_prompt(checkpoint):
    write_golden(checkpoint)
    assert verify(checkpoint, device="cpu").failures == []
    processor = checkpoint / "processor_config.json"
    settings = json.loads(processor.read_text())
    settings["prompt"]["represent_text"] = "\nIn two words."
    processor.write_text(json.dumps(settings))
    failures = verify(checkpoint, device="cpu").failures
    assert failures and all(not failure.same_prompt for failure in failures)
    assert all(failure.name.startswith("query") for failure in failures)


def test_verify_without_golden_vectors_says_what_is_missing(checkpoint):
    with pytest.raises(ValueError, match="no golden vectors"):
        verify(checkpoint)


def test_dry_run_sends_nothing_and_lists_sizes_and_hashes(hub, prepared):
    assert hub.requests == []
    for file in prepared:
        assert file.size == len(file.read()) and file.sha256 == hashlib.sha256(file.read()).hexdigest()


def test_revision_and_pull_request(hub, checkpoint):
    push(checkpoint, "org/model", revision="v1")
    assert set(hub.files("org/model")) == {".gitattributes"}
    assert "model.safetensors" in hub.files("org/model", "v1")
    commit = push(checkpoint, "org/model", create_pr=True)
    assert commit.pr_url and "model.safetensors" in hub.files("org/model", "refs/pr/1")
    assert set(hub.files("org/model")) == {".gitattributes"}
    with pytest.raises(ValueError, match="starts from main"):
        push(checkpoint, "org/model", create_pr=True, revision="v1")


def test_files_of_an_earlier_version_go_in_the_same_commit(hub, checkpoint):
    (checkpoint / "notes.txt").write_text("kept")
    push(checkpoint, "org/model")
    repo = hub.repos["org/model"]
    repo.commits[repo.branches["main"]] |= {
        "model-00001-of-00002.safetensors": b"old", "pytorch_model.bin": b"old", "old_mmembed.py": b"", "mine.md": b"",
    }  # fmt: skip
    commits = len(repo.commits)
    (checkpoint / "notes.txt").write_text("changed")
    push(checkpoint, "org/model")
    assert len(repo.commits) == commits + 1
    names = set(hub.files("org/model"))
    assert "mine.md" in names and hub.files("org/model")["notes.txt"] == b"changed"
    assert names.isdisjoint({"model-00001-of-00002.safetensors", "pytorch_model.bin", "old_mmembed.py"})


OF_A_MODEL = [
    "config.json",
    "modules.json",
    "processor_config.json",
    "1_Pooling/config.json",
    "2_Dense/model.safetensors",
]
OF_AN_ADAPTER = ["adapter_config.json", "adapter_model.safetensors", "preprocessor_config.json"]
OF_A_TRAINING = ["training.json", "mining.json", "recipe.yaml", ".eval_results/mmeb.yaml"]
OF_THE_OWNER = ["mine.md", "notes/config.json", "int8/model.safetensors", "2_figures/a.png", "old/golden/inputs.json"]


@pytest.mark.parametrize(("before", "after"), [(OF_AN_ADAPTER, OF_A_MODEL), (OF_A_MODEL, OF_AN_ADAPTER)])
def test_a_model_of_another_kind_takes_the_place_of_all_of_the_earlier_one(hub, quick, before, after):
    quick()
    repo = hub.repos["org/model"]
    repo.commits[repo.branches["main"]] = dict.fromkeys(
        [*before, *OF_A_TRAINING, *OF_THE_OWNER, ".gitattributes"], b"old"
    )
    files = [RepoFile(name, b"new") for name in ["README.md", *after]]
    deleted = replaced_files(files, "org/model")
    assert set(deleted) == {*before, *OF_A_TRAINING}
    quick(files)
    assert set(hub.files("org/model")) == {"README.md", *after, *OF_THE_OWNER, ".gitattributes"}


def test_a_dry_run_lists_what_would_be_deleted_and_deletes_nothing(hub, checkpoint, capsys):
    push(checkpoint, "org/model")
    repo = hub.repos["org/model"]
    repo.commits[repo.branches["main"]]["adapter_config.json"] = b"{}"
    with pytest.raises(SystemExit) as stop:
        main(["push", str(checkpoint), "org/model", "--dry-run"])
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert stop.value.code in (0, None) and [line for line in lines if line[0] == "delete"] == [
        ["delete", "adapter_config.json"]
    ]
    assert "adapter_config.json" in hub.files("org/model")


def test_what_would_be_deleted_is_known_before_the_branch_is_made(hub, quick):
    files = [RepoFile("adapter_config.json", b"{}")]
    assert replaced_files(files, "org/model") == []
    quick()
    on_main = replaced_files(files, "org/model")
    assert on_main == replaced_files(files, "org/model", revision="v2") and "config.json" in on_main
    hub.faults.append(Fault("GET .*/tree/", 500))
    with pytest.raises(PushError, match="500"):
        replaced_files(files, "org/model")


def test_what_is_not_ours_to_publish_is_refused_with_every_finding(checkpoint, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "short-secret-token")
    (checkpoint / "pytorch_model.bin").write_bytes(b"x")
    (checkpoint / "log.txt").write_text("fine\nread from " + "/" + "home/someone/data\n")
    (checkpoint / "a.json").write_text(json.dumps({"auto_map": {"AutoModel": "other/repo--m.C"}}))
    (checkpoint / "b.md").write_text("key " + "hf_" + "a" * 34)
    (checkpoint / "c.yaml").write_text("token: short-secret-token")
    (checkpoint / "d.json").write_text("{broken")
    with pytest.raises(PublishError) as refused:
        prepare(checkpoint)
    message = str(refused.value)
    assert message.startswith("6 thing(s)")
    for name in ("pytorch_model.bin", "log.txt: line 2", "a.json", "b.md", "c.yaml", "d.json"):
        assert name in message
    assert "a" * 34 not in message and "short-secret" not in message


WEIGHTS = RepoFile("model.safetensors", (2).to_bytes(8, "little") + b"{}")


@pytest.mark.parametrize(
    "text",
    [
        "output_dir=/" + "home/someone/run",
        '"path": "/' + 'mnt/disk/a"',
        "PATH=/usr/bin:/" + "home/me/bin",
        "file:///" + "data/pictures",
        "C:\\Users\\me",
        str(Path.cwd() / "run"),
        "hf_" + "Ab1" * 12,
        "sk-" + "x" * 40,
        "github_pat_" + "x" * 50,
        "-----BEGIN RSA PRIVATE KEY-----",
    ],
)
@pytest.mark.parametrize("name", ["a.json", "notes", "run.log", "picture.png"])
def test_a_path_or_a_token_is_found_in_whatever_kind_of_file(text, name):
    content = json.dumps({"x": text}) if name == "a.json" else text
    with pytest.raises(PublishError, match=f"{name}: line 1 (names|holds)"):
        check([WEIGHTS, RepoFile(name, b"\xff\xfe" * (name != "a.json") + content.encode())])


@pytest.mark.parametrize(
    "text",
    [
        "https://host/data/x",
        "https://data/x/y",
        "./data/x",
        "a/storage/x",
        "hf://datasets/data/x",
        "sk-short",
        "/v1/data",
    ],
)
def test_addresses_and_relative_paths_may_be_published(text):
    check([WEIGHTS, RepoFile("README.md", text.encode())])


def test_an_adapter_names_the_commit_of_the_base_it_was_trained_on(hub, checkpoint, tmp_path, caplog):
    trained_on = push(checkpoint, "org/base").oid
    args = SaHaTrainingArguments(str(tmp_path / "run"), use_cpu=True, lora_rank=2)
    save_embedder(open_for_training("org/base", args, device="cpu"), tmp_path / "adapter")
    (checkpoint / "notes.txt").write_text("newer")
    newer = push(checkpoint, "org/base").oid
    config = tmp_path / "adapter" / "adapter_config.json"
    files = {file.path: file for file in prepare(tmp_path / "adapter")}
    assert json.loads(files[config.name].read())["revision"] == trained_on != newer
    assert "does not say" not in caplog.text
    # Where nothing says what it was trained on, the commit is a guess, and called one.
    config.write_text(json.dumps({**json.loads(config.read_text()), "revision": None}))
    files = {file.path: file for file in prepare(tmp_path / "adapter")}
    assert json.loads(files[config.name].read())["revision"] == newer
    assert f"does not say which commit of org/base it was trained on; assumed the newest, {newer}" in caplog.text


def test_an_adapter_over_a_base_of_this_machine_is_refused(checkpoint, tmp_path):
    for base, said in (
        (str(checkpoint), "the local directory"),
        ("/" + "home/gone/base", "the local"),
        (None, "not named"),
    ):
        (tmp_path / "adapter").mkdir(exist_ok=True)
        (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base}))
        with pytest.raises(PublishError, match=f"base is {said}.* push the base first"):
            prepare(tmp_path / "adapter")


def test_weights_whose_header_names_a_machine_are_refused(checkpoint):
    from safetensors.numpy import save_file

    path = {"made_in": "/" + "scratch/run7"}
    save_file({"x": np.zeros(2)}, checkpoint / "more.safetensors", metadata=path)
    with pytest.raises(PublishError, match="more.safetensors: line 1 names a path"):
        prepare(checkpoint)


def test_training_leftovers_stay_behind(checkpoint):
    (checkpoint / "checkpoint-10").mkdir()
    (checkpoint / "checkpoint-10" / "optimizer.pt").write_bytes(b"x")
    for name in ("training_args.bin", "optimizer.pt", "rng_state_0.pth", "trainer_state.json", ".secret"):
        (checkpoint / name).write_bytes(b"x")
    assert not {"training_args.bin", "optimizer.pt", "rng_state_0.pth", "trainer_state.json", ".secret"} & {
        Path(file.path).name for file in prepare(checkpoint)
    }


def test_nothing_that_is_uploaded_names_a_machine_or_a_token(hub, checkpoint):
    push(checkpoint, "org/model")
    foreign = re.compile(rb"/(?:home|root|Users|tmp|work)/|" + TOKEN.encode() + b"|" + str(checkpoint.parent).encode())
    for name, content in hub.files("org/model").items():
        assert not foreign.search(content), name


def test_no_checkpoint_is_refused(tmp_path):
    with pytest.raises(PublishError, match="no directory"):
        prepare(tmp_path / "absent")
    with pytest.raises(PublishError, match="neither config.json"):
        prepare(tmp_path)


@pytest.fixture
def quick(monkeypatch, tmp_path):
    """A push that takes no time to prepare: what is tested is the sending."""
    from safetensors.numpy import save

    content = save({"x": np.arange(5000, dtype=np.float32)})
    files = [
        RepoFile("config.json", b"{}"),
        RepoFile("README.md", b"---\ntags: [a]\n---\n"),
        RepoFile("model.safetensors", content),
        RepoFile("golden/vectors.safetensors", save({"x": np.zeros(3, np.float32)})),
    ]
    import sys

    def pushed(files=files):
        monkeypatch.setattr(sys.modules["hf_mmembed.hub.push"], "prepare", lambda directory, repo_id: files)
        return push(tmp_path, "org/model")

    return pushed


FAULTS = [
    pytest.param(Fault("POST /api/repos/create", 401), "401.*hf auth login", id="401-create"),
    pytest.param(Fault("POST .*/commit/", 401), "401.*hf auth login", id="401-commit"),
    pytest.param(Fault("POST .*/preupload/", 403), "403.*may not write to org/model", id="403"),
    pytest.param(Fault("POST .*/commit/", 409), "409.*Someone else changed org/model", id="409"),
    pytest.param(Fault("POST .*/preupload/", 429), "429.*rate limit", id="429"),
    pytest.param(Fault("POST .*/commit/", 500), "500.*trouble of its own", id="500-commit"),
    pytest.param(Fault("PUT /lfs/", 500), "model.safetensors|vectors.safetensors", id="500-upload"),
    pytest.param(Fault("PUT /lfs/", "cut"), "the connection was cut", id="cut-upload"),
    pytest.param(Fault("POST .*/commit/", "cut"), "the connection was cut", id="cut-commit"),
]


@pytest.mark.parametrize(("fault", "message"), FAULTS)
def test_an_error_of_the_server_is_explained_and_leaves_the_repository_as_it_was(hub, quick, fault, message):
    quick()
    before = dict(hub.files("org/model"))
    commits = len(hub.repos["org/model"].commits)
    hub.blobs.clear()
    hub.repos["org/model"].commits[hub.repos["org/model"].branches["main"]] = {**before, "config.json": b"older"}
    hub.faults.append(fault)
    if fault.pattern.endswith("create"):
        hub.repos.clear()
    with pytest.raises(PushError, match=f"(?s){message}") as stopped:
        quick()
    assert "Nothing was committed to org/model" in str(stopped.value)
    if hub.repos:
        assert len(hub.repos["org/model"].commits) == commits
        assert hub.files("org/model")["config.json"] == b"older"
    hub.faults.clear()
    quick()
    assert hub.files("org/model")["config.json"] == b"{}"


def test_a_card_that_the_hub_refuses_is_told_before_a_repository_is_made(hub, quick):
    with pytest.raises(PublishError, match='refuses the metadata of README.md: "license" must be one of .apache'):
        quick([RepoFile("README.md", b"---\nlicense: apache-two\n---\n"), RepoFile("config.json", b"{}")])
    assert hub.repos == {}


def test_without_a_hub_by_choice_it_says_what_to_unset(hub, quick, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(PushError, match="unset HF_HUB_OFFLINE") as stopped:
        quick()
    assert "was cut" not in str(stopped.value) and hub.requests == []


def test_a_mistake_of_ours_is_not_taken_for_the_network(hub, quick, monkeypatch):
    def broken(*args, **kwargs):
        raise RuntimeError("a bug")

    monkeypatch.setattr("huggingface_hub.HfApi.create_commit", broken)
    with pytest.raises(RuntimeError, match="^a bug$"):
        quick()


def test_a_rate_limit_that_passes_is_waited_for(hub, quick):
    hub.faults.append(Fault("POST .*/preupload/", 429, times=2))
    hub.faults.append(Fault("PUT /lfs/", 503, times=1))
    quick()
    assert hub.files("org/model")["config.json"] == b"{}"


def test_saving_with_push_to_hub_sends_what_sentence_transformers_reads(hub, checkpoint, tmp_path):
    model = AutoModel.from_pretrained(checkpoint)
    for repo in ("org/first", "org/second"):  # the second time, the three files are in the directory already
        model.save_pretrained(tmp_path / "saved", push_to_hub=True, repo_id=repo)
        sent = hub.files(repo)
        assert {"config.json", "model.safetensors", *SENTENCE_TRANSFORMERS_FILES} <= set(sent)
        assert json.loads(sent["modules.json"]) == SENTENCE_TRANSFORMERS_FILES["modules.json"]


def test_what_has_arrived_is_not_sent_twice(hub, quick):
    hub.faults.append(Fault("POST .*/commit/", 500))
    with pytest.raises(PushError):
        quick()
    hub.faults.clear()
    hub.requests.clear()
    quick()
    assert not [request for request in hub.requests if request.startswith("PUT")]


def test_a_wrong_token_never_reaches_the_message(hub, quick, monkeypatch):
    wrong = "hf_" + "wrong" * 8
    monkeypatch.setenv("HF_TOKEN", wrong)
    with pytest.raises(PushError, match="hf auth login") as stopped:
        quick()
    assert wrong not in str(stopped.value)
