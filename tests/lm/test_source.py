"""A folder's identity is its content; what is no model is refused before torch is loaded."""

import hashlib
import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from huggingface_hub import errors as hub
from huggingface_hub.utils import _http
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from ktrace.errors import KtraceError
from ktrace.lm import hub as hub_access
from ktrace.lm import source
from ktrace.lm.source import (
    ModelSource,
    checkpoint_dtype,
    content_hashes,
    find_model,
    local_folder,
    own_dtype,
)


@pytest.fixture
def copied(model_folder: Path, tmp_path: Path) -> Path:
    return shutil.copytree(model_folder, tmp_path / "copied")


def test_a_folder_is_pinned_by_its_content_not_by_its_place(
    model_folder: Path, copied: Path
) -> None:
    here, there = find_model(str(model_folder)), find_model(str(copied))
    assert here.identity.startswith("sha256:")
    assert there.identity == here.identity
    assert (there.location, there.revision) == (str(copied), None)


def flip_last_byte(folder: Path) -> None:
    weights = folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)


def change_config(folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"rms_norm_eps": 1e-3}))


def change_tokenizer(folder: Path) -> None:
    path = folder / "tokenizer.json"
    path.write_text(path.read_text() + " ")


def add_chat_template(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{{ messages }}")


def rename_weights(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "other.safetensors")


def add_weights(folder: Path) -> None:
    shutil.copy(folder / "model.safetensors", folder / "model-2.safetensors")


@pytest.mark.parametrize(
    "change",
    [
        *(flip_last_byte, change_config, change_tokenizer, add_chat_template),
        *(rename_weights, add_weights),
    ],
)
def test_what_can_change_a_number_changes_the_identity(
    model_folder: Path, copied: Path, change: Callable[[Path], None]
) -> None:
    change(copied)
    assert find_model(str(copied)).identity != find_model(str(model_folder)).identity


def test_what_cannot_change_a_number_leaves_the_identity(model_folder: Path, copied: Path) -> None:
    (copied / "README.md").write_text("A model card.")
    (copied / "notes.txt").mkdir()
    (copied / "model.safetensors").touch()
    assert find_model(str(copied)).identity == find_model(str(model_folder)).identity


@pytest.mark.parametrize("content", ['{"base_model_name_or_path": "owner/base"}', "{", "[]", "{}"])
@pytest.mark.parametrize("has_weights", [True, False])
def test_an_adapter_is_refused_whether_it_could_be_applied_or_not(
    copied: Path, has_weights: bool, content: str
) -> None:
    """Beside full weights it would count where peft is installed, and one store would take both."""
    (copied / "adapter_config.json").write_text(content)
    if not has_weights:
        for name in ("config.json", "model.safetensors"):
            (copied / name).unlink()
    message = refusal(str(copied))
    assert message.startswith(f"model.path={copied} holds an adapter (adapter_config.json)")
    assert "merge it into its base with peft's merge_and_unload" in message
    assert ("of owner/base" in message) == ("owner" in content)


def in_shards(folder: Path, shard: str) -> Path:
    """Weights as an index names them: in one shard."""
    weights = folder / "model.safetensors"
    names = load_file(weights).keys()
    (folder / shard).parent.mkdir(exist_ok=True)
    shutil.move(weights, folder / shard)
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, shard)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder / shard


def test_shards_in_a_folder_within_are_part_of_the_identity(copied: Path) -> None:
    shard = in_shards(with_dtype(copied), "shards/model-1.safetensors")
    before = find_model(str(copied))
    assert "shards/model-1.safetensors" in before.files
    assert content_hashes(before)["weights"].keys() == {"shards/model-1.safetensors"}
    assert checkpoint_dtype(copied) == "float32"
    AutoModelForCausalLM.from_pretrained(copied)  # it is what transformers loads
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    assert find_model(str(copied)).identity != before.identity


@pytest.mark.parametrize("outside", ["../elsewhere.safetensors", "shards/../../x.safetensors"])
def test_shards_outside_the_folder_are_refused(copied: Path, outside: str) -> None:
    in_shards(copied, "model-1.safetensors")
    index = copied / "model.safetensors.index.json"
    index.write_text(index.read_text().replace("model-1.safetensors", outside, 1))
    assert refusal(str(copied)) == (
        f"model.path={copied}: {index.name} names {outside!r}: weights outside the folder are "
        "refused, copy them in"
    )


def test_an_absolute_shard_is_refused(copied: Path, tmp_path: Path) -> None:
    shard = in_shards(copied, "model-1.safetensors")
    index = copied / "model.safetensors.index.json"
    index.write_text(index.read_text().replace("model-1.safetensors", str(shard), 1))
    assert f"names {str(shard)!r}: weights outside the folder are refused" in refusal(str(copied))


def test_a_shard_that_is_not_there(copied: Path) -> None:
    in_shards(copied, "model-1.safetensors").unlink()
    message = refusal(str(copied))
    assert message.startswith(f"model.path={copied}: model-1.safetensors: No such file")


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"weight_map": 1}'])
def test_an_index_that_cannot_be_used(copied: Path, content: str) -> None:
    index = copied / "model.safetensors.index.json"
    index.write_text(content)
    assert refusal(str(copied)).startswith(f"model.path={copied}: {index.name} cannot be used: ")


def test_weights_that_the_config_names_elsewhere_are_refused(copied: Path) -> None:
    with_dtype(copied, transformers_weights="shards/model.safetensors")
    assert "config.json names its weights 'shards/model.safetensors'" in refusal(str(copied))
    with_dtype(copied, transformers_weights="model.safetensors")
    assert find_model(str(copied)).identity


def test_a_home_folder_is_found(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(copied.parent))
    assert find_model("~/copied").location == str(copied)


def refusal(path: str, revision: str | None = None) -> str:
    with pytest.raises(KtraceError) as raised:
        find_model(path, revision)
    return str(raised.value)


def test_no_config(copied: Path) -> None:
    (copied / "config.json").unlink()
    assert refusal(str(copied)) == f"model.path={copied} is not a model: it has no config.json"


def test_no_weights(copied: Path) -> None:
    (copied / "model.safetensors").rename(copied / "pytorch_model.bin")
    assert refusal(str(copied)) == f"model.path={copied} has no weights: no *.safetensors in it"


def test_weights_are_a_link_to_nothing(copied: Path) -> None:
    """Copying a snapshot out of the hub cache copies links, and may leave their targets behind."""
    (copied / "model.safetensors").unlink()
    (copied / "model.safetensors").symlink_to("../../blobs/0123")
    assert refusal(str(copied)).startswith(f"model.path={copied}: model.safetensors: No such file")


def test_a_file_is_no_model(facts_file: Path) -> None:
    assert refusal(str(facts_file)).startswith(f"model.path={facts_file} is a file: give the fold")


@pytest.mark.parametrize("path", ["/no/such", "./no/such", "../no-such", "~/no-such"])
def test_what_is_written_as_a_folder_is_never_asked_of_the_hub(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_access, "hf_hub_download", None)
    assert refusal(path) == f"model.path={path} is not a folder"


def test_a_folder_has_no_revision(copied: Path) -> None:
    assert refusal(str(copied), "main") == (
        f"model.revision='main' is for hub models; model.path={copied} is a folder"
    )


def test_a_name_that_no_hub_model_can_have(in_folder: Path) -> None:
    assert "is neither a folder here nor a hub id (owner/name)" in refusal("a/b/c")


def test_a_hub_model_is_not_in_the_cache_and_there_is_no_network(
    in_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    message = refusal("nobody/no-such-model", "v1")
    assert message.startswith("model.path=nobody/no-such-model model.revision=v1 is no folder here")
    assert "HF_HUB_OFFLINE is set" in message


COMMIT = "0123456789abcdef0123456789abcdef01234567"


def no_such_file() -> hub.EntryNotFoundError:
    raised = hub.EntryNotFoundError.__new__(hub.EntryNotFoundError)  # its own needs a response
    raised.args = ("what the hub said",)
    return raised


@pytest.mark.parametrize("has_weights", [True, False])
def test_a_hub_models_adapter_is_refused(
    in_folder: Path, monkeypatch: pytest.MonkeyPatch, has_weights: bool
) -> None:
    snapshot = in_folder / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (snapshot / "adapter_config.json").write_text('{"base_model_name_or_path": "owner/base"}')

    def download(hub_id: str, name: str, revision: str | None) -> str:
        if name == "config.json" and not has_weights:
            raise no_such_file()
        return str(snapshot / name)

    monkeypatch.setattr(hub_access, "hf_hub_download", download)
    assert refusal("owner/name").startswith(
        "model.path=owner/name holds an adapter (adapter_config.json) of owner/base, which is not"
    )


def test_a_hub_model_is_pinned_by_its_commit(
    in_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def download(hub_id: str, name: str, revision: str | None) -> str:
        asked.append((hub_id, name, revision))
        if name != "config.json":
            raise no_such_file()
        return f"/cache/models--owner--name/snapshots/{COMMIT}/config.json"

    monkeypatch.setattr(hub_access, "hf_hub_download", download)
    found = find_model("owner/name", "main")
    assert asked == [
        ("owner/name", "config.json", "main"),
        ("owner/name", "adapter_config.json", COMMIT),
    ]
    # Not `main`, which may be another commit when the weights are loaded.
    assert (found.location, found.revision) == ("owner/name", COMMIT)
    assert found.identity == f"commit:{COMMIT}"


def with_dtype(folder: Path, **named: object) -> Path:
    path = folder / "config.json"
    content = json.loads(path.read_text())
    for key in ("dtype", "torch_dtype"):
        content.pop(key, None)
    path.write_text(json.dumps(content | named))
    return folder


@pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
@pytest.mark.parametrize("name", ["bfloat16", "torch.bfloat16"])
def test_the_config_says_the_checkpoints_dtype(copied: Path, key: str, name: str) -> None:
    assert checkpoint_dtype(with_dtype(copied, **{key: name})) == "bfloat16"


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
def test_else_the_weights_do(copied: Path, dtype: str) -> None:
    with_dtype(copied)
    weights = {
        "a": torch.zeros(2, dtype=torch.int64),
        "b": torch.zeros(2, dtype=getattr(torch, dtype)),
    }
    save_file(weights, copied / "model.safetensors")
    assert checkpoint_dtype(copied) == dtype


def test_neither_says_the_dtype(copied: Path) -> None:
    save_file({"a": torch.zeros(2, dtype=torch.int64)}, with_dtype(copied) / "model.safetensors")
    assert checkpoint_dtype(copied) is None


@pytest.mark.parametrize("content", [b"", b"garbage", b"\xff" * 64])
def test_weights_that_say_nothing_readable(copied: Path, content: bytes) -> None:
    (with_dtype(copied) / "model.safetensors").write_bytes(content)
    with pytest.raises(KtraceError, match=r"the model cannot be loaded: model\.safetensors: "):
        checkpoint_dtype(copied)


def test_a_hub_models_weights_are_fetched_when_its_config_is_silent(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = copied / "model.safetensors"
    content = weights.read_bytes()
    weights.unlink()
    asked = []

    def download(hub_id: str, name: str, revision: str | None) -> str:
        asked.append((hub_id, name, revision))
        weights.write_bytes(content)
        return str(copied / name)

    monkeypatch.setattr(hub_access, "hf_hub_download", download)
    found = ModelSource("owner/name", COMMIT, f"commit:{COMMIT}", copied)
    assert own_dtype(found) == "float32"  # its config says so
    assert asked == []
    with_dtype(copied)
    assert own_dtype(found) == "float32"
    assert asked == [("owner/name", "model.safetensors", COMMIT)]


def test_weights_and_tokenizer_are_named_with_their_digests(model_folder: Path) -> None:
    found = content_hashes(find_model(str(model_folder)))
    files = {**found["weights"], **found["tokenizer"]}
    assert {"model.safetensors", "tokenizer.json", "tokenizer_config.json"} == files.keys()
    for name, digest in files.items():
        assert digest == hashlib.sha256((model_folder / name).read_bytes()).hexdigest()


def test_a_hub_models_digests_are_those_of_the_cache(tmp_path: Path) -> None:
    """Large files link to a blob named by its SHA-256, small ones to git's name."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / COMMIT
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    for name, blob in (("model.safetensors", "ab" * 32), ("tokenizer.json", "cd" * 20)):
        (blobs / blob).write_text("content")
        (snapshot / name).symlink_to(blobs / blob)
    (snapshot / "README.md").write_text("")
    assert content_hashes(ModelSource("owner/name", COMMIT, "", snapshot)) == {
        "weights": {"model.safetensors": "ab" * 32},
        "tokenizer": {"tokenizer.json": hashlib.sha256(b"content").hexdigest()},
    }


def test_a_local_folder_is_found_without_the_hub(
    copied: Path, in_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_access, "hf_hub_download", None)
    assert local_folder(str(copied)) == copied
    assert local_folder("/nowhere") is None
    assert local_folder("nobody/no-such-model", "v1") is None
    cached = str(copied / "config.json")
    monkeypatch.setattr(source, "try_to_load_from_cache", lambda *args, **kwargs: cached)
    assert local_folder("owner/name") == copied


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (hub.GatedRepoError, "is gated: accept its licence at https://huggingface.co/owner/name"),
        (hub.RepositoryNotFoundError, "no such folder here, and the hub has no such model"),
        (hub.RevisionNotFoundError, "the hub has no such revision"),
        (hub.EntryNotFoundError, "owner/name: the repository has no config.json"),
        (hub.LocalEntryNotFoundError, "the hub is out of reach: go online once"),
        (hub.HfHubHTTPError, "cannot be reached: what the hub said"),
        (ConnectionError, "cannot be reached: what the hub said"),
    ],
)
def test_every_answer_of_the_hub_has_its_own_message(
    error: type[Exception], message: str, in_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The classes inherit from each other: in another order one would speak for its neighbour."""

    def download(*args: object, **kwargs: object) -> str:
        raised = error.__new__(error)  # the hub's own need a response
        raised.args = ("what the hub said",)
        raise raised

    monkeypatch.setattr(hub_access, "hf_hub_download", download)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    refused = refusal("owner/name")
    assert refused.startswith("model.path=owner/name")
    assert message in refused


def test_the_hub_library_tells_of_no_tries(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def download(*_: object, **__: object) -> str:
        logging.getLogger(_http.__name__).warning("Retrying in 1s [Retry 1/5].")
        raise hub.LocalEntryNotFoundError("not here")

    tries = logging.getLogger(_http.__name__)
    monkeypatch.setattr(tries, "handlers", [caplog.handler])
    monkeypatch.setattr(hub_access, "hf_hub_download", download)
    with pytest.raises(KtraceError, match="not in the hub cache"):
        hub_access.hub_file("a/b", "config.json", revision=None, asked="model.path=a/b")
    assert not caplog.messages
    assert tries.level == logging.NOTSET
