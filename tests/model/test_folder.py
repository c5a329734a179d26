"""A model folder is described exactly, in either style of key, and refused by name where it holds what isn't known."""

import collections
import contextlib
import json
import os
import pickle
import shutil
import subprocess
import sys
import warnings

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from pipeline.config import ModelSpec
from pipeline.encoder.engines.torch import TorchEngine
from pipeline.errors import InputError
from pipeline.model import digest
from pipeline.model.digest import folder_digest, vector_files
from pipeline.model.folder import encoder_spec, resolve_model
from pipeline.model.saved_modules import POOLING_MODES, Dense, Normalize
from tests.tiny import as_it_stands, build_tiny_model


@pytest.fixture(autouse=True)
def cache_home(tmp_path_factory, monkeypatch):
    home = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(home))
    return home


@pytest.fixture
def folder(tmp_path):
    return build_tiny_model(tmp_path / "model", dense=8)


def spec_of(folder, **overrides):
    return encoder_spec(ModelSpec(path=str(folder), **overrides))


def change(folder, name, *, drop=(), **keys):
    path = folder / name
    value = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({key: item for key, item in (value | keys).items() if key not in drop}))


def change_module(folder, number, **keys):
    modules = json.loads((folder / "modules.json").read_text())
    modules[number] |= keys
    (folder / "modules.json").write_text(json.dumps(modules))


def append_module(folder, name, path, **keys):
    modules = json.loads((folder / "modules.json").read_text())
    modules.append({"idx": 9, "name": "9", "path": path, "type": f"sentence_transformers.models.{name}", **keys})
    (folder / "modules.json").write_text(json.dumps(modules))


# --- where the model is ----------------------------------------------------------------------------------------------


def test_a_local_folder_is_found(folder, monkeypatch):
    assert resolve_model(str(folder)) == folder
    monkeypatch.chdir(folder.parent)
    assert resolve_model("model") == folder


def test_a_model_in_a_package_is_found_without_importing_it(tmp_path, monkeypatch):
    package = tmp_path / "somepackage"
    (package / "models" / "inner").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    assert resolve_model("package:somepackage/models/inner") == package / "models/inner"
    assert resolve_model("package:somepackage.models/inner") == package / "models/inner"
    assert resolve_model("package:somepackage") == package


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("package:somepackage/../secret", "leaves the package"),
        ("package:somepackage//etc", "leaves the package"),
        ("package:somepackage/absent", "no folder 'absent'"),
        ("package:no_such_package_here/model", "no Python package"),
        ("package:json/model", "no folder"),
        ("package:sys/model", "no Python package"),
        ("package:", "names no package"),
        ("package:../x", "names no package"),
        ("organisation/absent", "does not exist"),
        ("/no/such/folder", "does not exist"),
        ("", "does not exist"),
    ],
)
def test_a_path_that_is_no_model_folder_is_refused(tmp_path, monkeypatch, path, message):
    (tmp_path / "somepackage").mkdir()
    (tmp_path / "secret").mkdir()
    (tmp_path / "somepackage/__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match=message):
        resolve_model(path)


def test_a_file_is_no_model_folder(folder):
    with pytest.raises(InputError, match="is a file"):
        resolve_model(str(folder / "modules.json"))


# --- what it says ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("style", ["legacy", "new"])
def test_both_styles_of_save_are_described_alike(tmp_path, style):
    folder = build_tiny_model(
        tmp_path, style=style, pooling=("cls", "mean"), dense=8, max_seq_length=40, include_prompt=False
    )
    spec = spec_of(folder)
    assert spec.max_seq_length == 40
    assert spec.pooling == ("cls", "mean")
    dense = Dense(folder="2_Dense", in_features=64, out_features=8, bias=True, activation="Tanh")
    assert spec.post_modules == (dense, Normalize())
    assert not spec.include_prompt
    assert spec.dim == 8
    assert spec.notes == ()


@pytest.mark.parametrize("count", range(1, 7))
def test_legacy_modes_stand_in_the_order_of_concatenation(tmp_path, count):
    spec = spec_of(build_tiny_model(tmp_path, pooling=POOLING_MODES[::-1][:count], normalize=False))
    assert spec.pooling == POOLING_MODES[-count:]
    assert spec.dim == 32 * count


def test_the_keys_of_2_0_are_enough(folder):
    config = {"word_embedding_dimension": 32, "pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}
    (folder / "1_Pooling/config.json").write_text(json.dumps(config))
    spec = spec_of(folder)
    assert spec.pooling == ("mean",)
    assert spec.include_prompt


def test_no_mode_at_all_is_mean(folder):
    (folder / "1_Pooling/config.json").write_text('{"word_embedding_dimension": 32}')
    assert spec_of(folder).pooling == ("mean",)


def test_a_transformer_in_a_folder_of_its_own_is_found(folder):
    inner = folder / "0_Transformer"
    inner.mkdir()
    for file in [path for path in folder.iterdir() if path.is_file() and path.name not in ("modules.json",)]:
        if file.name != "config_sentence_transformers.json":
            file.rename(inner / file.name)
    change_module(folder, 0, path="0_Transformer")
    spec = spec_of(folder)
    assert spec.transformer == "0_Transformer"
    assert spec.transformer_folder == inner


def test_a_plain_transformers_folder_gets_mean_pooling_and_says_so(folder):
    for name in ("modules.json", "sentence_bert_config.json", "config_sentence_transformers.json"):
        (folder / name).unlink()
    spec = spec_of(folder)
    assert (spec.pooling, spec.post_modules, spec.dim, spec.max_seq_length) == (("mean",), (), 32, 512)
    assert "mean pooling" in spec.notes[0]


def test_the_length_is_the_models_own_then_the_tokenizers_then_the_positions(folder):
    assert spec_of(folder).max_seq_length == 64
    change(folder, "sentence_bert_config.json", drop=["max_seq_length"])
    change(folder, "tokenizer_config.json", model_max_length=100)
    assert spec_of(folder).max_seq_length == 100
    change(folder, "tokenizer_config.json", model_max_length=int(1e30))
    assert spec_of(folder).max_seq_length == 512
    (folder / "tokenizer_config.json").unlink()
    assert spec_of(folder).max_seq_length == 512


def test_an_older_name_of_the_settings_file_is_read(folder):
    (folder / "sentence_bert_config.json").rename(folder / "sentence_distilbert_config.json")
    assert spec_of(folder).max_seq_length == 64


def test_a_length_in_tokenizer_args_comes_first(folder):
    change(folder, "sentence_bert_config.json", tokenizer_args={"model_max_length": 20}, model_args={})
    assert spec_of(folder).max_seq_length == 20


def test_the_configured_length_overrides_the_models(folder):
    assert spec_of(folder, max_seq_length=512).max_seq_length == 512
    with pytest.raises(InputError, match="at most 512"):
        spec_of(folder, max_seq_length=513)


def test_a_length_of_the_model_beyond_its_positions_is_refused(folder):
    change(folder, "sentence_bert_config.json", max_seq_length=1024)
    with pytest.raises(InputError, match=r"own max_seq_length is 1024.* at most 512"):
        spec_of(folder)


def test_roberta_likes_have_two_positions_less(folder):
    change(folder, "config.json", model_type="roberta", max_position_embeddings=514, pad_token_id=1)
    assert spec_of(folder, max_seq_length=512).max_seq_length == 512
    with pytest.raises(InputError, match="at most 512"):
        spec_of(folder, max_seq_length=513)
    change(folder, "sentence_bert_config.json", drop=["max_seq_length"])
    change(folder, "tokenizer_config.json", drop=["model_max_length"])
    assert spec_of(folder).max_seq_length == 512


@pytest.mark.parametrize(
    ("overrides", "prompt"),
    [
        ({}, "default: "),
        ({"prompt": ""}, ""),
        ({"prompt": "mine: "}, "mine: "),
        ({"prompt_name": "query"}, "query: "),
        ({"prompt_name": "document"}, ""),
    ],
)
def test_the_prompt_is_the_given_one_the_named_one_or_the_default(tmp_path, overrides, prompt):
    folder = build_tiny_model(tmp_path, prompts={"query": "query: ", "d": "default: "}, default_prompt_name="d")
    assert spec_of(folder, **overrides).prompt == prompt


def test_an_unknown_prompt_name_is_refused_and_the_known_are_named(tmp_path):
    folder = build_tiny_model(tmp_path, prompts={"title": "t: "})
    with pytest.raises(InputError, match=r"'titel' is not known.*'title'"):
        spec_of(folder, prompt_name="titel")
    change(folder, "config_sentence_transformers.json", default_prompt_name="gone")
    with pytest.raises(InputError, match="default_prompt_name 'gone'"):
        spec_of(folder)


def test_truncate_dim_is_the_configured_or_the_models_own(tmp_path):
    folder = build_tiny_model(tmp_path, truncate_dim=16)
    assert (spec_of(folder).truncate_dim, spec_of(folder).dim) == (16, 16)
    assert spec_of(folder, truncate_dim=8).dim == 8
    assert (spec_of(folder, truncate_dim=32).truncate_dim, spec_of(folder, truncate_dim=32).dim) == (None, 32)
    with pytest.raises(InputError, match="1 to 32"):
        spec_of(folder, truncate_dim=33)


def test_a_normalisation_that_changes_nothing_is_left_out(tmp_path):
    ends = build_tiny_model(tmp_path / "a")
    bare = build_tiny_model(tmp_path / "b", normalize=False)
    assert not spec_of(ends, normalize=True).normalize
    assert spec_of(ends, normalize=True, truncate_dim=8).normalize
    assert spec_of(bare, normalize=True).normalize
    assert not spec_of(bare, normalize=False).normalize


def test_half_precision_is_said_to_be_for_gpus(folder):
    assert "GPU" in spec_of(folder, precision="bfloat16").notes[0]
    assert spec_of(folder).notes == ()


# --- what it refuses -------------------------------------------------------------------------------------------------

REFUSALS = {
    "module": (lambda f: append_module(f, "LSTM", "4_LSTM"), "LSTM"),
    "custom module": (lambda f: change_module(f, 0, type="my_code.Transformer"), "my_code"),
    "sparse module": (
        lambda f: change_module(f, 1, type="sentence_transformers.sparse_encoder.models.Pooling"),
        "sparse",
    ),
    "module without pooling": (lambda f: change_module(f, 1, type="sentence_transformers.models.Normalize"), "Pooling"),
    "module key": (lambda f: change_module(f, 1, extra=1), "'extra'"),
    "module kwargs": (lambda f: change_module(f, 0, kwargs=["task"]), "task"),
    "path upwards": (lambda f: change_module(f, 1, path="../1_Pooling"), "leaves"),
    "absolute path": (lambda f: change_module(f, 1, path="/1_Pooling"), "leaves"),
    "windows path": (lambda f: change_module(f, 1, path="C:\\1_Pooling"), "leaves"),
    "modules are no list": (lambda f: (f / "modules.json").write_text("{}"), "JSON list"),
    "broken JSON": (lambda f: (f / "modules.json").write_text("["), "can't be read"),
    "transformer key": (lambda f: change(f, "sentence_bert_config.json", new_key=1), "'new_key'"),
    "model argument": (lambda f: change(f, "sentence_bert_config.json", model_args={"rope": 1}), "'rope'"),
    "task": (lambda f: change(f, "sentence_bert_config.json", transformer_task="fill-mask"), "fill-mask"),
    "processing": (
        lambda f: change(f, "sentence_bert_config.json", processing_kwargs={"text": {}}),
        "processing_kwargs",
    ),
    "document_length": (lambda f: change(f, "sentence_bert_config.json", document_length=9), "document_length"),
    "architecture": (lambda f: change(f, "config.json", model_type="new"), "'new'"),
    "custom code": (lambda f: change(f, "config.json", auto_map={"AutoModel": "x.Y"}), "auto_map"),
    "unknown with code": (
        lambda f: change(f, "config.json", model_type="new", auto_map={"AutoModel": "x.Y"}),
        "never run",
    ),
    "custom tokenizer": (lambda f: change(f, "tokenizer_config.json", auto_map={"AutoTokenizer": "x.Y"}), "auto_map"),
    "quantized": (lambda f: change(f, "config.json", quantization_config={"bits": 4}), "quantization_config"),
    "positions": (lambda f: change(f, "config.json", position_embedding_type="relative_key"), "relative_key"),
    "adapter": (lambda f: change(f, "adapter_config.json", r=8), "adapter"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "no weights"),
    "no tokenizer": (lambda f: [(f / n).unlink() for n in ("tokenizer.json", "vocab.txt")], "no tokenizer"),
    "pooling key": (lambda f: change(f, "1_Pooling/config.json", pooling_mode_median=True), "pooling_mode_median"),
    "pooling mode": (lambda f: change(f, "1_Pooling/config.json", pooling_mode=["mean", "median"]), "median"),
    "pooling type": (lambda f: change(f, "1_Pooling/config.json", pooling_mode_mean_tokens="yes"), "expected bool"),
    "pooling width": (lambda f: change(f, "1_Pooling/config.json", word_embedding_dimension=33), "33"),
    "pooling absent": (lambda f: shutil.rmtree(f / "1_Pooling"), "is missing"),
    "dense key": (lambda f: change(f, "2_Dense/config.json", dropout=0.1), "'dropout'"),
    "dense residual": (lambda f: change(f, "2_Dense/config.json", use_residual="yes"), "use_residual"),
    "custom code module": (lambda f: append_module(f, "X", "4_X", type="modeling_x.Pooler"), "custom code"),
    "router": (lambda f: change_module(f, 0, type="sentence_transformers.base.modules.router.Router"), "queries and"),
    "images": (lambda f: change_module(f, 0, type="sentence_transformers.models.CLIPModel"), "images"),
    "bag of words": (lambda f: change_module(f, 0, type="sentence_transformers.models.BoW"), "counts words"),
    "other library": (lambda f: change_module(f, 0, type="sentence_transformers_x.models.Transformer"), "custom code"),
    "dense input": (
        lambda f: change(f, "2_Dense/config.json", module_input_name="token_embeddings"),
        "module_input_name",
    ),
    "dense width": (lambda f: change(f, "2_Dense/config.json", in_features=16), "gets 32"),
    "dense weights": (lambda f: (f / "2_Dense/model.safetensors").unlink(), "no weights"),
    "activation": (
        lambda f: change(f, "2_Dense/config.json", activation_function="torch.nn.Linear"),
        "torch.nn.Linear",
    ),
    "custom activation": (lambda f: change(f, "2_Dense/config.json", activation_function="os.system"), "os.system"),
    "sparse model": (
        lambda f: change(f, "config_sentence_transformers.json", model_type="SparseEncoder"),
        "SparseEncoder",
    ),
    "prompts": (lambda f: change(f, "config_sentence_transformers.json", prompts={"query": 1}), "prompts"),
    "nothing in it": (lambda f: [(f / name).unlink() for name in ("modules.json", "config.json")], "neither"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_is_not_known_is_refused_by_name(folder, case):
    spec_of(folder)
    damage, name = REFUSALS[case]
    damage(folder)
    with pytest.raises(InputError, match=name):
        spec_of(folder)


def test_what_sentence_transformers_ignores_is_ignored(folder):
    change(folder, "config_sentence_transformers.json", similarity_fn_name="dot", other=1)
    change(folder, "sentence_bert_config.json", model_args={"torch_dtype": "float16"}, unpad_inputs=True)
    loading = {"trust_remote_code": True}
    change(folder, "sentence_bert_config.json", tokenizer_args={"padding_side": "left", **loading}, config_args=loading)
    spec_of(folder)


def test_a_missing_activation_is_tanh_and_null_is_none(folder):
    change(folder, "2_Dense/config.json", drop=["activation_function"])
    assert spec_of(folder).post_modules[0].activation == "Tanh"
    change(folder, "2_Dense/config.json", activation_function=None)
    assert spec_of(folder).post_modules[0].activation == "Identity"


def test_requirements_of_the_model_are_checked_where_they_are_ours(folder):
    asked = {"transformers": ">=5", "pytorch": {"specifier": ">=2", "reason": "x"}}
    change(folder, "config_sentence_transformers.json", requirements=asked)
    assert spec_of(folder).notes == ()
    change(
        folder, "config_sentence_transformers.json", requirements={"transformers": {"specifier": "<2", "reason": "bug"}}
    )
    with pytest.raises(InputError, match=r"transformers <2 \(bug\), but 5"):
        spec_of(folder)
    for untold in ({"sentence_transformers": ">=7"}, {"torch": "newest"}, ["torch>=9"], {"torch": 2}):
        change(folder, "config_sentence_transformers.json", requirements=untold)
        assert "not checked" in spec_of(folder).notes[0]


def test_planning_loads_neither_torch_nor_transformers(folder):
    code = (
        "import sys\n"
        "from pipeline.config import ModelSpec\n"
        "from pipeline.model.folder import encoder_spec\n"
        f"encoder_spec(ModelSpec(path={str(folder)!r})).identity()\n"
        "assert not {'torch', 'transformers', 'tokenizers', 'ray', 'huggingface_hub', 'datasets'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


# --- identity --------------------------------------------------------------------------------------------------------


def test_identity_is_json_and_the_same_wherever_the_folder_is(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "elsewhere")
    identity = spec_of(folder).identity()
    assert json.loads(json.dumps(identity)) == identity
    assert spec_of(tmp_path / "elsewhere").identity() == identity
    assert str(tmp_path) not in json.dumps(identity)


@pytest.mark.parametrize(
    "overrides", [{"max_seq_length": 32}, {"prompt": "x"}, {"truncate_dim": 4}, {"precision": "float16"}]
)
def test_whatever_changes_a_vector_changes_the_identity(folder, overrides):
    assert spec_of(folder, **overrides).identity() != spec_of(folder).identity()


@pytest.mark.parametrize(
    "overrides",
    [{"max_seq_length": 64}, {"truncate_dim": 8}, {"prompt": ""}, {"normalize": True}, {"normalize": False}],
)
def test_saying_what_the_model_says_already_changes_nothing(folder, overrides):
    assert spec_of(folder, **overrides).identity() == spec_of(folder).identity()


@pytest.mark.parametrize(
    "name", ["model.safetensors", "config.json", "tokenizer.json", "1_Pooling/config.json", "2_Dense/model.safetensors"]
)
def test_a_change_of_a_file_that_matters_changes_the_digest(folder, name):
    before = folder_digest(folder)
    with (folder / name).open("ab") as file:
        file.write(b" ")
    assert folder_digest(folder) != before


@pytest.mark.parametrize(
    "name",
    [
        *[
            ".hidden",
            ".git/config",
            "README.md",
            "onnx/model.onnx",
            "openvino/x.bin",
            "pytorch_model.bin",
            "tf_model.h5",
        ],
        *["LICENSE", "model.gguf", "figure.png", "paper.pdf", "train.py", "__pycache__/x.pyc"],
    ],
)
def test_a_file_that_cannot_matter_does_not(folder, name):
    before = folder_digest(folder)
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text("anything")
    assert folder_digest(folder) == before


def test_old_weights_count_where_there_are_no_others(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert folder / "pytorch_model.bin" in vector_files(folder)


def test_each_file_is_read_once(folder, cache_home, monkeypatch):
    monkeypatch.setattr(digest, "_SETTLED_NS", -1)
    first = folder_digest(folder)
    monkeypatch.setattr(digest, "_file_digest", lambda path: pytest.fail(f"{path} was read again"))
    assert folder_digest(folder) == first
    assert [path.name for path in (cache_home / "embedding-pipeline").iterdir()] == ["file_digests.json"]


def test_a_file_that_was_just_written_is_not_remembered(folder, cache_home):
    folder_digest(folder)
    assert not [path for path in cache_home.rglob("*") if path.is_file()]


def test_other_weights_with_the_size_and_time_of_the_old_ones_are_seen(folder, cache_home, monkeypatch):
    monkeypatch.setattr(digest, "_SETTLED_NS", -1)
    first, weights = folder_digest(folder), folder / "model.safetensors"
    stat, content = weights.stat(), bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    os.utime(weights, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert folder_digest(folder) != first


@pytest.mark.parametrize("content", ["", "[]", "{", '{"a": 1}', '{"a": [1, 2, 3]}', '{"a": [1, 2, "x"]}', "\udc80"])
def test_a_broken_cache_is_ignored(folder, cache_home, monkeypatch, content):
    monkeypatch.setattr(digest, "_SETTLED_NS", -1)
    first = folder_digest(folder)
    file = cache_home / "embedding-pipeline/file_digests.json"
    file.write_bytes(content.encode("utf-8", "surrogateescape"))
    assert folder_digest(folder) == first


def test_a_cache_that_cannot_be_written_is_no_error(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(digest, "_SETTLED_NS", -1)
    first = folder_digest(folder)
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert folder_digest(folder) == first


# --- what would reach beyond the folder, or run --------------------------------------------------------------------------


class RunsCode:
    """Unpickled, it makes a folder."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return os.mkdir, (self.marker,)


def with_pickles(folder, **more):
    """The weights of all modules as torch.save writes them, and `more` in each file."""
    for weights in folder.rglob("model.safetensors"):
        torch.save({**load_file(weights), **more}, weights.with_name("pytorch_model.bin"))
        weights.unlink()


def legacy(value, path):
    torch.save(value, path, _use_new_zipfile_serialization=False)


def zipped_with_protocol_4(value, path):
    torch.save(value, path, pickle_protocol=4)


@pytest.mark.parametrize("place", ["", "2_Dense"])
@pytest.mark.parametrize(
    "save", [torch.save, legacy, zipped_with_protocol_4, lambda value, path: path.write_bytes(pickle.dumps(value))]
)
def test_weights_that_would_run_code_are_refused_while_planning_and_never_run(folder, place, save, tmp_path):
    with_pickles(folder)
    spec = spec_of(folder)
    path = folder / place / "pytorch_model.bin"
    save({**torch.load(path, weights_only=True), "more": RunsCode(tmp_path / "marker")}, path)
    with pytest.raises(InputError, match=r"pytorch_model\.bin"):
        spec_of(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch is astonished at the pickle's protocol
        with pytest.raises(InputError, match="hold more than tensors") as caught:
            TorchEngine(as_it_stands(spec), "cpu", 1)  # and where planning didn't see it
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("place", ["", "2_Dense"])
def test_damaged_weights_are_refused_while_planning(folder, place):
    path = folder / place / "model.safetensors"
    whole = path.read_bytes()
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"
    for content in (b"", pointer, whole[:-1], whole + b"x", b"\xff" * 8 + whole[8:]):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"model\.safetensors' can't be read"):
            spec_of(folder)


def test_a_damaged_pickle_is_refused_while_planning(folder):
    with_pickles(folder)
    path = folder / "pytorch_model.bin"
    whole = path.read_bytes()
    for content in (b"", b"PK\x03\x04", b"garbage", whole[: len(whole) // 2], b"\x80\x02}q\0" * 9):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"pytorch_model\.bin"):
            spec_of(folder)


@pytest.mark.parametrize("save", [torch.save, legacy])
def test_pickles_of_tensors_are_fine(folder, save):
    with_pickles(folder)
    for path in folder.rglob("pytorch_model.bin"):
        weights = torch.load(path, weights_only=True)
        save(collections.OrderedDict((name, torch.nn.Parameter(value)) for name, value in weights.items()), path)
    TorchEngine(spec_of(folder), "cpu", 1)


@pytest.mark.parametrize("kind", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("shard", ["../model.safetensors", "/etc/passwd", "C:\\x", "a/../../b", "\0"])
def test_a_shard_outside_the_folder_is_refused(folder, kind, shard):
    (folder / "model.safetensors").unlink()
    (folder / f"{kind}.index.json").write_text(json.dumps({"weight_map": {"a": shard}}))
    with pytest.raises(InputError, match="leaves the model folder"):
        spec_of(folder)


def test_a_link_out_of_the_folder_counts_with_what_it_leads_to(folder, tmp_path):
    """As in the Hub's own cache: files are links to where their content lies."""
    (folder / "2_Dense").rename(tmp_path / "elsewhere")
    (folder / "2_Dense").symlink_to(tmp_path / "elsewhere")
    before = spec_of(folder).identity()
    (tmp_path / "elsewhere/config.json").write_text((tmp_path / "elsewhere/config.json").read_text() + " ")
    assert spec_of(folder).identity() != before
    (folder / "2_Dense").unlink()
    (folder / "2_Dense").symlink_to(tmp_path / "nowhere")
    with pytest.raises(InputError, match="2_Dense"):
        spec_of(folder)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-2, 2**70)
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["", "../x"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
FILES = ["modules.json", "config.json", "sentence_bert_config.json", "config_sentence_transformers.json",
         "tokenizer_config.json", "1_Pooling/config.json", "2_Dense/config.json"]  # fmt: skip


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data(), name=st.sampled_from(FILES), value=JSON)
def test_whatever_stands_in_its_files_a_model_is_described_or_refused(tiny_folder, data, name, value):
    path = tiny_folder / name
    whole = path.read_text()
    content = json.loads(whole)
    inside = content[data.draw(st.integers(0, len(content) - 1))] if isinstance(content, list) else content
    keys = ["rope_parameters", "rope_scaling", "requirements", "prompts", "word_weights", "dtype", "tokenizer_args"]
    if name == "config.json":
        inside["model_type"] = data.draw(st.sampled_from(["bert", "roberta", "modernbert", "deberta", "gte"]))
    inside[data.draw(st.sampled_from([*inside, *keys]))] = value
    text = data.draw(st.sampled_from([json.dumps(content), json.dumps(value), whole[: len(whole) // 2], "[" * 10**5]))
    try:
        path.write_text(text)
        with contextlib.suppress(InputError):
            json.dumps(spec_of(tiny_folder).identity())
    finally:
        path.write_text(whole)


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory):
    return build_tiny_model(tmp_path_factory.mktemp("hostile") / "model", dense=8)
