"""A model folder that changes at any moment: a refusal that names it, or the vectors of the model that was planned."""

import contextlib
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from pipeline.config import ModelSpec
from pipeline.encoder.encoder import build_encoder
from pipeline.encoder.engines.kept_graph import float32_graph
from pipeline.encoder.tokenizer import Tokenizer
from pipeline.errors import InputError, ModelChanged
from pipeline.model.digest import vector_files
from pipeline.model.folder import EncoderSpec, check_model_unchanged, encoder_spec
from pipeline.model.unchanged import load_unchanged
from tests.architectures import build_static
from tests.tiny import build_tiny_model

TEXTS = ["the first company may report new oil price", "A small day"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> tuple[Path, Path]:
    """Two models of one form, with files of the same names and sizes, but for their settings."""
    home = tmp_path_factory.mktemp("models")
    first = build_tiny_model(home / "first", dense=16, style="new")
    second = build_tiny_model(home / "second", dense=16, style="new", seed=1, max_seq_length=65, pooling=("cls",))
    settings = second / "tokenizer.json"
    settings.write_text(settings.read_text().replace('"lowercase":true', '"lowercase":false').replace("##est", "##xxx"))
    config = second / "config.json"
    config.write_text(config.read_text().replace('"gelu"', '"relu"'))
    return first, second


def vectors(spec: EncoderSpec) -> np.ndarray:
    return build_encoder(spec, "cpu", 1).encode(Tokenizer(spec, 1).tokenize(TEXTS)).vectors


def in_place(source: Path, target: Path) -> None:
    with target.open("r+b") as file:
        file.write(source.read_bytes())
        file.truncate()


def by_a_rename(source: Path, target: Path) -> None:
    shutil.copyfile(source, target.with_suffix(".partial"))
    os.replace(target.with_suffix(".partial"), target)


def with_the_old_time(source: Path, target: Path) -> None:
    status = target.stat()
    in_place(source, target)
    os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))


def for_a_moment(source: Path, target: Path) -> None:
    before = target.read_bytes()
    with_the_old_time(source, target)
    target.write_bytes(before)


WAYS = (in_place, by_a_rename, with_the_old_time, for_a_moment)


class At:
    """Calls a function once, before the n-th call of any function that `work` makes."""

    def __init__(self, number: int, change: Callable[[], None]) -> None:
        self.calls, self._number, self._change = 0, number, change

    def __enter__(self) -> "At":
        sys.setprofile(self._event)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)

    def _event(self, frame, event: str, argument) -> None:
        if event in ("call", "c_call"):
            if self.calls == self._number:
                sys.setprofile(None)
                self._change()
                sys.setprofile(self._event)
            self.calls += 1


def copied(models: tuple[Path, Path], folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(models[0], folder)
    return folder


@pytest.fixture(scope="module")
def expected(models) -> np.ndarray:
    return vectors(encoder_spec(ModelSpec(path=str(models[0]))))


@pytest.fixture(scope="module")
def calls(models) -> int:
    """That building an encoder and a tokenizer makes."""
    spec = encoder_spec(ModelSpec(path=str(models[0])))
    vectors(spec)  # what is loaded once for the process is not counted
    with At(-1, lambda: None) as counted:
        vectors(spec)
    return counted.calls


def test_the_two_models_differ_in_what_matters(models, expected):
    changed = {file.name for file in changed_files(models)}
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= changed
    for name in ("model.safetensors", "tokenizer.json", "2_Dense/model.safetensors"):
        assert (models[0] / name).stat().st_size == (models[1] / name).stat().st_size
    assert np.abs(vectors(encoder_spec(ModelSpec(path=str(models[1])))) - expected).max() > 0.1


def changed_files(models: tuple[Path, Path]) -> list[Path]:
    return [file for file in vector_files(models[0]) if file.read_bytes() != other(models, file).read_bytes()]


def other(models: tuple[Path, Path], file: Path) -> Path:
    return models[1] / file.relative_to(models[0])


@settings(max_examples=120, deadline=None)
@given(data=st.data())
def test_any_file_changed_at_any_moment_is_refused_or_changes_nothing(models, expected, calls, tmp_path_factory, data):
    folder = copied(models, tmp_path_factory.mktemp("model") / "m")
    file = data.draw(st.sampled_from(changed_files(models)), "file")
    way = data.draw(st.sampled_from(WAYS), "way")
    when = data.draw(st.integers(0, calls), "call")
    spec = encoder_spec(ModelSpec(path=str(folder)))
    found = None
    with (
        contextlib.suppress(ModelChanged),
        At(when, lambda: way(other(models, file), folder / file.relative_to(models[0]))),
    ):
        found = vectors(spec)
    assert found is None or np.abs(found - expected).max() <= 1e-6


@pytest.mark.parametrize("way", WAYS[:3])
def test_an_encoder_that_is_loaded_keeps_its_model(models, tmp_path, way, expected):
    folder = copied(models, tmp_path / "m")
    spec = encoder_spec(ModelSpec(path=str(folder)))
    encoder, tokenizer = build_encoder(spec, "cpu", 1), Tokenizer(spec, 1)
    mapped = Path("/proc/self/maps").read_text() if sys.platform == "linux" else ""
    assert str(folder) not in mapped
    check_model_unchanged(spec)
    for file in vector_files(models[0]):
        way(other(models, file), folder / file.relative_to(models[0]))
    assert np.abs(encoder.encode(tokenizer.tokenize(TEXTS)).vectors - expected).max() <= 1e-6
    for refused in (check_model_unchanged, vectors):
        with pytest.raises(ModelChanged, match="put it back, or start again to plan with the new one"):
            refused(spec)


def test_a_static_embedding_that_is_loaded_keeps_its_vectors(models, tmp_path):
    tokenizer = tokenizers.Tokenizer.from_file(str(models[0] / "tokenizer.json"))
    tokenizer.no_truncation()
    build_static(tmp_path / "m", tokenizer)
    spec = encoder_spec(ModelSpec(path=str(tmp_path / "m")))
    encoder, tokens = build_encoder(spec, "cpu", 1), Tokenizer(spec, 1).tokenize(TEXTS)
    before = encoder.encode(tokens).vectors
    for file in (tmp_path / "m").rglob("model.safetensors"):
        with file.open("r+b") as opened:
            opened.seek(file.stat().st_size // 2)
            opened.write(bytes(file.stat().st_size - file.stat().st_size // 2))
    assert np.array_equal(encoder.encode(tokens).vectors, before)
    with pytest.raises(ModelChanged):
        build_encoder(spec, "cpu", 1)


def test_a_graph_is_never_kept_of_another_model(models, tmp_path, monkeypatch):
    pytest.importorskip("openvino")
    from pipeline.encoder.engines import torch as torch_engine

    folder = copied(models, tmp_path / "m")
    spec = encoder_spec(ModelSpec(path=str(folder), engine="openvino"))
    load = torch_engine._load

    def late(spec):
        in_place(models[1] / "model.safetensors", folder / "model.safetensors")
        return load(spec)

    with monkeypatch.context() as patched:
        patched.setattr(torch_engine, "_load", late)
        with pytest.raises(ModelChanged):
            float32_graph(spec, token_types=False)
    shutil.copyfile(models[0] / "model.safetensors", folder / "model.safetensors")
    torch_spec = encoder_spec(ModelSpec(path=str(folder)))
    assert torch_spec.origin.digest == spec.origin.digest
    assert np.abs(vectors(spec) - vectors(torch_spec)).max() <= 1e-5


# --- load_unchanged itself


@pytest.fixture
def small(tmp_path) -> tuple[Path, str]:
    import torch

    from pipeline.model.digest import folder_digest

    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    return tmp_path, folder_digest(tmp_path)


def test_a_folder_that_is_only_touched_is_loaded_again(small):
    folder, digest = small
    loads = []

    def load() -> int:
        loads.append(1)
        if len(loads) == 1:
            os.utime(folder / "model.safetensors")
        return len(loads)

    assert load_unchanged(folder, digest, load) == 2


def test_a_folder_that_is_never_quiet_is_refused(small):
    folder, digest = small
    with pytest.raises(ModelChanged, match="again and again"):
        load_unchanged(folder, digest, lambda: os.utime(folder / "model.safetensors"))


def test_an_error_of_loading_is_told_unless_the_change_explains_it(small):
    folder, digest = small

    def fails() -> None:
        raise InputError("the weights are of no use")

    with pytest.raises(InputError, match="of no use"):
        load_unchanged(folder, digest, fails)

    def fails_after_a_change() -> None:
        (folder / "model.safetensors").write_bytes(b"")
        fails()

    with pytest.raises(ModelChanged):
        load_unchanged(folder, digest, fails_after_a_change)


def test_a_folder_that_is_gone_or_not_to_be_read_is_told(small):
    folder, digest = small
    shutil.rmtree(folder)
    with pytest.raises(ModelChanged, match="No such file or directory"):
        load_unchanged(folder, digest, lambda: None)
