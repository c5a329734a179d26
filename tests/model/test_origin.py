"""One model, wherever it is from: the same files, the same identity, on the driver and on every node, or no run."""

import json
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path

import fsspec
import pytest
import s3fs
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from pipeline.config import ModelSpec
from pipeline.errors import InputError, StorageError
from pipeline.model import copied, digest
from pipeline.model.copied import ModelFile, copied_folder
from pipeline.model.digest import folder_digest, vector_file_names
from pipeline.model.folder import encoder_spec
from pipeline.model.origin import FolderOrigin, HubOrigin, PackageOrigin, StoreOrigin, locate
from tests.hub import TOKEN, hub_server, result
from tests.tiny import build_tiny_model


@pytest.fixture(autouse=True)
def cache_home(tmp_path_factory, monkeypatch):
    home = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(home))
    return home


@pytest.fixture(scope="module")
def hub():
    with hub_server() as server:
        yield server


@pytest.fixture(scope="module")
def bucket(moto):
    return moto.make_bucket("models")


@pytest.fixture
def folder(tmp_path):
    """With everything beside the model that real repositories carry and no encoder needs."""
    folder = build_tiny_model(tmp_path / "model", dense=8)
    for name in OTHER_FILES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"not needed: {name}")
    return folder


OTHER_FILES = [
    ".gitattributes", "README.md", "LICENSE", "onnx/model.onnx", "openvino/openvino_model.bin", "pytorch_model.bin",
    "tf_model.h5", "flax_model.msgpack", "rust_model.ot", "2_Dense/pytorch_model.bin", "train_script.py", "figure.png",
]  # fmt: skip


def upload(folder, url, moto):
    filesystem = s3fs.S3FileSystem(**moto.storage_options, use_listings_cache=False)
    for path in folder.rglob("*"):
        if path.is_file():
            filesystem.pipe_file(f"{url}/{path.relative_to(folder).as_posix()}", path.read_bytes())
    return filesystem


def in_store(url, moto, **keys):
    return ModelSpec(path=url, storage_options=moto.storage_options, **keys)


# --- which files -----------------------------------------------------------------------------------------------------

NAMES = st.builds(
    "/".join,
    st.lists(
        st.sampled_from(["a", "onnx", ".git", "1_Pooling", "README.md", *OTHER_FILES[4:], "model.safetensors"])
        | st.sampled_from(["config.json", "vocab.txt", "MODEL.BIN", "model.safetensors.index.json", "readme", "x.PNG"]),
        min_size=1,
        max_size=3,
    ),
)


@given(st.sets(NAMES), st.data())
def test_leaving_out_what_is_not_needed_changes_nothing(names, data):
    needed = vector_file_names(names)
    others = sorted(names - set(needed))
    some = data.draw(st.sets(st.sampled_from(others))) if others else set()
    assert vector_file_names({*needed, *some}) == needed


def test_exactly_the_needed_files_of_a_repository_are_named(folder):
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert set(vector_file_names(names)) == names - set(OTHER_FILES)
    assert {"pytorch_model.bin", "2_Dense/pytorch_model.bin"} <= set(vector_file_names(names - WEIGHTS))


WEIGHTS = {"model.safetensors", "2_Dense/model.safetensors"}


def test_links_are_followed_and_a_round_trip_ends(folder, tmp_path):
    linked = tmp_path / "linked"
    shutil.copytree(folder, linked)
    shutil.move(linked / "2_Dense", tmp_path / "blob")
    (linked / "2_Dense").symlink_to(tmp_path / "blob")
    shutil.move(linked / "config.json", tmp_path / "sha")
    (linked / "config.json").symlink_to(tmp_path / "sha")
    assert folder_digest(linked) == folder_digest(folder)
    (linked / "1_Pooling/up").symlink_to(linked)
    assert folder_digest(linked) == folder_digest(folder)


# --- the kinds of places ---------------------------------------------------------------------------------------------


def test_the_identity_does_not_depend_on_where_the_model_is_from(folder, tmp_path, monkeypatch, hub, moto, bucket):
    package = tmp_path / "some_package_with_a_model"
    shutil.copytree(folder, package / "model")
    (package / "__init__.py").touch()
    (package / "model/__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    upload(folder, f"{bucket}/same/model", moto)
    hub.repository("org/same").commit(folder)
    local = encoder_spec(ModelSpec(path=str(folder)))
    packaged = encoder_spec(ModelSpec(path=f"package:{package.name}/model"))
    stored = encoder_spec(in_store(f"{bucket}/same/model/", moto))
    fetched = hub.run(describe("org/same"), tmp_path / "home")
    kinds = [type(spec.origin) for spec in (local, packaged, stored)]
    assert [*kinds, fetched["kind"]] == [FolderOrigin, PackageOrigin, StoreOrigin, HubOrigin.__name__]
    assert local.identity() == packaged.identity() == stored.identity() == fetched["identity"]
    assert len({local.folder, packaged.folder, stored.folder, fetched["folder"]}) == 4


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"path": "/no/such", "revision": "main"}, "model.revision 'main'"),
        ({"path": "package:json/x", "revision": "main"}, "model.revision 'main'"),
        ({"path": "s3://bucket/model", "revision": "main"}, "model.revision 'main'"),
        ({"path": "org/name", "storage_options": {"token": "s3cret"}}, "HF_TOKEN"),
        ({"path": "/no/such", "storage_options": {"key": "s3cret"}}, "not in an object store"),
        ({"path": "hf://org/name/folder"}, "expected hf://organisation/name"),
        ({"path": "hf://org/name@main"}, "model.revision"),
        ({"path": "ftp://host/model"}, "ftp"),
        ({"path": "org/name"}, "no local folder in the working directory .*, and .*offline mode is on"),
        ({"path": "bert-base-uncased"}, "no local folder in the working directory .*, and .*offline mode is on"),
        ({"path": "org--x/na..me"}, "no name on the Hub"),
        ({"path": "a/b/c"}, "does not exist"),
    ],
)
def test_what_does_not_fit_together_is_refused(tmp_path, monkeypatch, keys, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message) as refused:
        locate(ModelSpec(**keys))
    assert "s3cret" not in str(refused.value)


def test_a_local_folder_comes_before_a_hub_id(folder, tmp_path, monkeypatch):
    shutil.copytree(folder, tmp_path / "org/name")
    monkeypatch.chdir(tmp_path)
    origin, found = locate(ModelSpec(path="org/name"))
    assert (type(origin), found) == (FolderOrigin, tmp_path / "org/name")
    with pytest.raises(InputError, match="write hf://organisation/name"):
        locate(ModelSpec(path="org/name", revision="main"))


# --- the same model on every node ------------------------------------------------------------------------------------


def test_here_is_the_same_encoder_where_the_model_stands(folder):
    spec = encoder_spec(ModelSpec(path=str(folder)))
    assert spec.here() == spec
    assert pickle.loads(pickle.dumps(spec)).here() == spec


def test_a_node_without_the_folder_or_with_another_model_is_named(folder):
    spec = encoder_spec(ModelSpec(path=str(folder)))
    with (folder / "vocab.txt").open("a") as file:
        file.write("more\n")
    with pytest.raises(InputError, match=rf"{re.escape(str(folder))}.*on node '.+' is another one.*every node"):
        spec.here()
    shutil.rmtree(folder)
    with pytest.raises(InputError, match=r"does not exist on node '.+'"):
        spec.here()


def test_a_model_that_cannot_be_read_names_the_node(folder, monkeypatch):
    def refused(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(digest, "_file_digest", refused)  # who runs the tests may be allowed to read everything
    with pytest.raises(InputError, match=r"can't be read on node '.+' \(Permission denied\)"):
        encoder_spec(ModelSpec(path=str(folder)))


def test_another_version_of_the_package_on_a_node_is_refused(folder, tmp_path, monkeypatch):
    package = tmp_path / "a_package_on_the_node"
    shutil.copytree(folder, package / "model")
    (package / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    spec = encoder_spec(ModelSpec(path=f"package:{package.name}/model"))
    assert spec.here() == spec
    (package / "model/config_sentence_transformers.json").unlink()
    with pytest.raises(InputError, match="one version of the package"):
        spec.here()


# --- in an object store ----------------------------------------------------------------------------------------------


def test_only_the_needed_files_are_copied_and_only_once(folder, cache_home, moto, bucket, monkeypatch):
    upload(folder, f"{bucket}/once", moto)
    spec = encoder_spec(in_store(f"{bucket}/once", moto))
    models = cache_home / "embedding-pipeline/models"
    assert sorted(path.suffix for path in models.iterdir()) == ["", ".lock"]
    names = {path.relative_to(spec.folder).as_posix() for path in spec.transformer_folder.rglob("*") if path.is_file()}
    assert not names & set(OTHER_FILES)
    monkeypatch.setattr(copied, "pinned", lambda *_: pytest.fail("copied again"))
    assert spec.here() == spec


@pytest.mark.parametrize("url", ["memory://models/tiny", "memory:///models/tiny/"])
def test_any_store_will_do(folder, url):
    memory = fsspec.filesystem("memory")
    for name in vector_file_names(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()):
        memory.pipe_file(f"/models/tiny/{name}", (folder / name).read_bytes())
    try:
        spec = encoder_spec(ModelSpec(path=url))
    finally:
        memory.rm("/models", recursive=True)
    assert spec.identity() == encoder_spec(ModelSpec(path=str(folder))).identity()
    assert spec.here() == spec


def test_secrets_are_never_shown(folder, moto, bucket):
    upload(folder, f"{bucket}/secret", moto)
    spec = encoder_spec(in_store(f"{bucket}/secret", moto))
    assert moto.storage_options["secret"] not in repr(spec)
    assert hash(spec.origin) == hash(pickle.loads(pickle.dumps(spec.origin)))


def test_a_replaced_model_is_another_copy_and_the_old_one_cannot_be_fetched(
    folder, tmp_path, moto, bucket, monkeypatch
):
    filesystem = upload(folder, f"{bucket}/replaced", moto)
    before = encoder_spec(in_store(f"{bucket}/replaced", moto))
    filesystem.pipe_file(f"{bucket}/replaced/vocab.txt", (folder / "vocab.txt").read_bytes() + b"more\n")
    after = encoder_spec(in_store(f"{bucket}/replaced", moto))
    assert after.folder != before.folder
    assert after.identity() != before.identity()
    assert before.here() == before
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another-node"))
    assert after.here().identity() == after.identity()
    with pytest.raises(StorageError, match="was replaced after this run had begun"):
        before.here()


def test_a_damaged_copy_is_made_again_and_an_altered_one_refused(folder, moto, bucket):
    upload(folder, f"{bucket}/damaged", moto)
    spec = encoder_spec(in_store(f"{bucket}/damaged", moto))
    vocabulary = spec.transformer_folder / "vocab.txt"
    whole = vocabulary.read_bytes()
    vocabulary.write_bytes(whole[:5])
    assert spec.here() == spec
    assert vocabulary.read_bytes() == whole
    vocabulary.write_bytes(whole.swapcase())
    with pytest.raises(InputError, match=r"on node '.+' is another one.*copied again"):
        spec.here()


def test_what_a_killed_copy_left_is_not_taken_for_a_model(folder, moto, bucket, monkeypatch):
    upload(folder, f"{bucket}/killed", moto)
    real, calls = copied.pinned, []

    def dies_at_the_third(*arguments):
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(copied, "pinned", dies_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        locate(in_store(f"{bucket}/killed", moto))
    origin, found = locate(in_store(f"{bucket}/killed", moto))
    assert origin.digest == folder_digest(folder)
    assert [path.name for path in found.parent.iterdir() if path.suffix == ".partial"] == []


def test_two_processes_make_one_copy(folder, tmp_path, moto, bucket):
    upload(folder, f"{bucket}/two", moto)
    code = (
        "import json, sys, time\n"
        "from pipeline.config import ModelSpec\n"
        "from pipeline.model import copied\n"
        "from pipeline.model.origin import locate\n"
        "real, opened = copied.pinned, []\n"
        "def slow(file, *more):\n"
        "    opened.append(file.name)\n"
        "    time.sleep(0.2)\n"
        "    return real(file, *more)\n"
        "copied.pinned = slow\n"
        "options = json.loads(sys.argv[2])\n"
        "origin, folder = locate(ModelSpec(path=sys.argv[1], storage_options=options))\n"
        "print(json.dumps([origin.digest, str(folder), len(opened)]))\n"
    )
    command = [sys.executable, "-c", code, f"{bucket}/two", json.dumps(moto.storage_options)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    results = [result(process) for process in [subprocess.Popen(command, **pipes) for _ in range(2)]]
    assert {digest for digest, _, _ in results} == {folder_digest(folder)}
    assert len({place for _, place, _ in results}) == 1
    assert sorted(opened > 0 for _, _, opened in results) == [False, True]


@pytest.mark.parametrize("name", ["../escape.json", "a/../../escape.json", "a//b.json", "./b.json", "a\\..\\b.json"])
def test_a_listing_that_would_leave_the_folder_is_refused(monkeypatch, moto, name):
    listed = [ModelFile(name="", path=f"s3://bucket/model/{name}", size=1, version="v")]
    monkeypatch.setattr(copied, "list_pattern", lambda *_: listed)
    with pytest.raises(InputError, match="no path inside it"):
        locate(in_store("s3://bucket/model", moto))


@pytest.mark.parametrize(
    ("path", "message"),
    [("absent", "no file matches"), ("refused/modules.json", "is a file"), ("ref*", "is a pattern")],
)
def test_an_address_that_is_no_folder_is_refused(folder, moto, bucket, path, message):
    upload(folder, f"{bucket}/refused", moto)
    with pytest.raises(InputError, match=message):
        locate(in_store(f"{bucket}/{path}", moto))


def test_a_cache_that_cannot_be_written_names_the_node(folder, tmp_path, moto, bucket, monkeypatch):
    upload(folder, f"{bucket}/nowhere", moto)
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(StorageError, match=r"cache of node '.+'.*XDG_CACHE_HOME"):
        copied_folder(f"{bucket}/nowhere", copied.list_model(f"{bucket}/nowhere", moto.storage_options), {})


# --- on the Hub ------------------------------------------------------------------------------------------------------


def describe(path, revision=None, then=""):
    """Code that prints what becomes of the model, or the InputError's message; `then` may change `spec` before."""
    return f"""
import json, sys
from dataclasses import replace
from pathlib import Path
from pipeline.config import ModelSpec
from pipeline.errors import InputError
from pipeline.model.folder import encoder_spec
try:
    spec = encoder_spec(ModelSpec(path={path!r}, revision={revision!r}))
    {then or "pass"}
    files = sorted(file.relative_to(spec.folder).as_posix() for file in Path(spec.folder).rglob("*") if file.is_file())
    loaded = sorted({{"torch", "transformers", "tokenizers", "ray", "datasets"}} & set(sys.modules))
    print(json.dumps({{"identity": spec.identity(), "folder": spec.folder, "files": files, "notes": spec.notes,
        "kind": type(spec.origin).__name__, "same_here": spec.here() == spec, "loaded": loaded}}))
except InputError as error:
    print(json.dumps(str(error)))
"""


def test_a_model_on_the_hub_is_the_local_one_and_is_downloaded_once(hub, folder, tmp_path):
    sha = hub.repository("org/tiny").commit(folder)
    hub.requests.clear()
    first = hub.run(describe("org/tiny"), tmp_path / "home")
    local = encoder_spec(ModelSpec(path=str(folder)))
    assert first["identity"] == local.identity()
    assert first["files"] == vector_file_names(first["files"])  # nothing else was fetched
    assert len(hub.downloads) == len(first["files"])
    assert first["notes"] == [f"model org/tiny at commit {sha}"]
    assert (first["same_here"], first["loaded"]) == (True, [])
    hub.requests.clear()
    assert hub.run(describe("hf://org/tiny"), tmp_path / "home") == first
    assert hub.requests == ["GET /api/models/org/tiny/revision/main"]
    hub.requests.clear()
    assert hub.run(describe("org/tiny"), tmp_path / "home", HF_HUB_OFFLINE="1") == first
    assert hub.run(describe("org/tiny"), tmp_path / "home", HF_ENDPOINT="http://127.0.0.1:9") == first
    assert hub.requests == []


def test_pickled_weights_are_fetched_where_there_are_no_others(hub, folder, tmp_path):
    for name in WEIGHTS:
        torch.save(load_file(folder / name), (folder / name).with_name("pytorch_model.bin"))
        (folder / name).unlink()
    hub.repository("org/old").commit(folder)
    files = hub.run(describe("org/old"), tmp_path / "home")["files"]
    assert {name for name in files if name.endswith(".bin")} == {"pytorch_model.bin", "2_Dense/pytorch_model.bin"}


def test_a_revision_is_a_branch_a_tag_or_a_commit(hub, folder, tmp_path):
    repository = hub.repository("org/moving")
    first = repository.commit(folder, "main", "v1")
    (folder / "vocab.txt").write_text("another")
    second = repository.commit(folder, "main", "refs/pr/1")
    expected = {None: second, "main": second, "refs/pr/1": second, "v1": first, first: first}
    for revision, sha in expected.items():
        told = hub.run(describe("org/moving", revision), tmp_path / "home")
        assert told["notes"] == [f"model org/moving at commit {sha}"], revision


def test_an_old_name_without_organisation_is_found(hub, folder, tmp_path):
    hub.legacy_names["tinybert"] = "org/tinybert"
    sha = hub.repository("org/tinybert").commit(folder)
    told = hub.run(describe("tinybert"), tmp_path / "home")
    assert (told["notes"], told["same_here"]) == ([f"model tinybert at commit {sha}"], True)


def test_a_bare_name_is_that_of_sentence_transformers_unless_a_local_folder_has_it(hub, folder, tmp_path, monkeypatch):
    hub.legacy_names["short"] = "org/short"
    (tmp_path / "other").mkdir()
    shutil.copytree(folder, tmp_path / "other", dirs_exist_ok=True)
    (tmp_path / "other" / "vocab.txt").write_text("another")
    hub.repository("org/short").commit(tmp_path / "other")
    sha = hub.repository("sentence-transformers/short").commit(folder)
    told = hub.run(describe("short"), tmp_path / "home")
    assert told["notes"] == [f"model sentence-transformers/short at commit {sha}"]
    assert hub.run(describe("short"), tmp_path / "home", HF_HUB_OFFLINE="1")["notes"] == told["notes"]
    said = hub.run(describe("nowhere"), tmp_path / "home")
    assert "model 'sentence-transformers/nowhere' is not on the Hub" in said
    assert f"model.path 'nowhere' is no local folder in the working directory {str(Path.cwd())!r}, and " in said
    (tmp_path / "here").mkdir()
    shutil.copytree(folder, tmp_path / "here" / "short")
    monkeypatch.chdir(tmp_path / "here")
    assert hub.run(describe("short"), tmp_path / "home")["notes"] == []


def test_a_node_gets_the_drivers_commit_after_the_branch_has_moved(hub, folder, tmp_path):
    repository = hub.repository("org/moved")
    sha = repository.commit(folder)
    save = f"import pickle; Path({str(tmp_path / 'spec')!r}).write_bytes(pickle.dumps(spec))"
    driver = hub.run(describe("org/moved", then=save), tmp_path / "driver")
    (folder / "vocab.txt").write_text("another")
    repository.commit(folder)
    load = f"import pickle; spec = pickle.loads(Path({str(tmp_path / 'spec')!r}).read_bytes()).here()"
    node = hub.run(describe("org/moved", then=load), tmp_path / "node")
    assert node["identity"] == driver["identity"]
    assert node["folder"].startswith(str(tmp_path / "node"))
    assert node["folder"].endswith(sha)
    wrong = load.replace(".here()", "; spec = replace(spec, origin=replace(spec.origin, digest='0' * 64)).here()")
    refused = hub.run(describe("org/moved", then=wrong), tmp_path / "node")
    assert re.search(r"on node '.+' is another one .*expected 000000000000\): delete it there", refused)


def test_two_processes_fetch_at_once(hub, folder, tmp_path):
    hub.repository("org/both").commit(folder)
    started = [hub.start(describe("org/both"), tmp_path / "home") for _ in range(2)]
    first, second = (result(process) for process in started)
    assert first == second
    assert first["identity"] == encoder_spec(ModelSpec(path=str(folder))).identity()


@pytest.mark.parametrize(
    ("path", "revision", "variables", "message"),
    [
        (
            "org/absent",
            None,
            {},
            "^model.path 'org/absent' is no local folder in the working directory '.*', and is not on the Hub, or is private",
        ),
        ("org/known", "v9", {}, "no revision 'v9' on the Hub"),
        ("org/known", "0" * 40, {}, "no revision '0000"),
        (
            "hf://org/known",
            None,
            {"HF_HUB_OFFLINE": "1"},
            "^model 'org/known' is not.* in the Hub's cache on node .*offline",
        ),
        ("org/known", None, {"HF_ENDPOINT": "http://127.0.0.1:9"}, "check the network"),
        ("org/gated", None, {}, "is gated: accept its conditions"),
        ("org/gated", None, {"HF_TOKEN": "hf_not-a-member"}, "is gated: accept its conditions"),
        ("org/empty", None, {}, "neither modules.json nor config.json"),
    ],
)
def test_what_the_hub_does_not_give_is_an_input_error(hub, folder, tmp_path, path, revision, variables, message):
    hub.repository("org/known").commit(folder)
    gated = hub.repository("org/gated")
    gated.gated = True
    gated.commit(folder)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/weights.txt").touch()
    hub.repository("org/empty").commit(tmp_path / "empty")
    said = hub.run(describe(path, revision), tmp_path / "home", **variables)
    assert isinstance(said, str), said
    assert re.search(message, said), said
    assert "hf_" not in said
    assert "\n" not in said


def test_a_token_opens_a_gated_model_and_is_kept_nowhere(hub, folder, tmp_path):
    gated = hub.repository("org/members")
    gated.gated = True
    gated.commit(folder)
    code = describe("org/members", then="assert 'hf_' not in repr(spec)")
    told = hub.run(code, tmp_path / "home", HF_TOKEN=TOKEN)
    assert told["identity"] == encoder_spec(ModelSpec(path=str(folder))).identity()


def test_a_download_that_broke_off_is_not_taken_for_a_model_offline(hub, folder, tmp_path):
    hub.repository("org/partial").commit(folder)
    told = hub.run(describe("org/partial"), tmp_path / "home")
    snapshot = next((tmp_path / "home/huggingface/hub").glob("models--org--partial/snapshots/*"))
    assert str(snapshot) == told["folder"]
    (snapshot / "tokenizer.json").unlink()  # transformers would make do with vocab.txt
    said = hub.run(describe("org/partial"), tmp_path / "home", HF_HUB_OFFLINE="1")
    assert "is not whole in" in said


def test_a_cache_that_an_older_client_filled_is_used_offline(hub, folder, tmp_path):
    hub.repository("org/older").commit(folder)
    told = hub.run(describe("org/older"), tmp_path / "home")
    shutil.rmtree(next((tmp_path / "home/huggingface/hub").glob("models--org--older/trees")))
    assert hub.run(describe("org/older"), tmp_path / "home", HF_HUB_OFFLINE="1") == told
