"""A tokenizer that can't be loaded is found while planning, in one sentence, before torch or Ray are loaded."""

import base64
import json
import shutil
import subprocess
import sys

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config import ModelSpec
from pipeline.encoder.tokenizer import Tokenizer
from pipeline.errors import InputError
from pipeline.model.folder import encoder_spec
from pipeline.model.tokenizer_files import check_tokenizer
from tests.tiny import build_tiny_model

PIECES = b"\n\x10\n\x05<unk>\x15\x00\x00\x00\x00\x18\x02"


@pytest.fixture
def folder(tmp_path):
    return build_tiny_model(tmp_path / "model")


def with_alone(folder, name, content=b""):
    """The folder with this one vocabulary."""
    for other in ("tokenizer.json", "vocab.txt"):
        (folder / other).unlink()
    (folder / name).write_bytes(content)
    return folder


def plan(folder):
    spec = encoder_spec(ModelSpec(path=str(folder)))
    check_tokenizer(spec)
    return spec


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_what_planning_lets_through_can_be_loaded(tmp_path_factory, data):
    folder = build_tiny_model(tmp_path_factory.mktemp("cut"))
    path = folder / data.draw(st.sampled_from(["tokenizer.json", "vocab.txt", "special_tokens_map.json"]))
    if path.name == "vocab.txt":
        (folder / "tokenizer.json").unlink()
    content = path.read_bytes() if path.exists() else b"{}"
    start = data.draw(st.integers(0, len(content)))
    garbage = data.draw(st.sampled_from([b"", b"\xff\xfe", b"\x00" * 100]))
    path.write_bytes(content[:start] + garbage)
    try:
        spec = plan(folder)
    except InputError as error:
        refusal = str(error)
    else:
        refusal = ""
        Tokenizer(spec, 1).tokenize(["the oil price"])
    assert not refusal or (path.name in refusal and "\n" not in refusal)


@pytest.mark.parametrize("content", [b"\x00" * 100, b"the\noil\n"])
def test_a_vocabulary_without_a_word_for_unknown_ones_is_refused(folder, content):
    with pytest.raises(InputError, match=r"vocab\.txt.*UNK"):
        plan(with_alone(folder, "vocab.txt", content))


@pytest.mark.parametrize("name", ["sentencepiece.bpe.model", "spiece.model", "spm.model", "tokenizer.model"])
def test_a_missing_package_is_named_with_the_command_that_installs_it(folder, name, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda package: None)
    with pytest.raises(InputError, match=rf"{name}.*sentencepiece.*pip install 'embedding-pipeline\[sentencepiece\]'"):
        plan(with_alone(folder, name, PIECES))


def test_a_vocabulary_of_tiktoken_needs_another_package(folder, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda package: None)
    with pytest.raises(InputError, match="pip install tiktoken"):
        plan(with_alone(folder, "tokenizer.model", base64.b64encode(b"oil") + b" 0\n"))


def test_damaged_pieces_are_told_where_the_package_is_installed(folder):
    pytest.importorskip("sentencepiece")
    with pytest.raises(InputError, match="is no tokenizer that can be read"):
        plan(with_alone(folder, "spiece.model", PIECES[:9]))


@pytest.mark.parametrize("command", ["embed", "embed --dry-run", "reindex", "reindex --dry-run"])
def test_every_command_says_it_in_one_line_before_ray_or_torch_are_loaded(folder, tmp_path, command):
    path = folder / "tokenizer.json"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    (tmp_path / "a.jsonl").write_text(json.dumps({"id": "1", "text": "oil"}))
    raw = {
        "source": {"path": str(tmp_path / "a.jsonl"), "id": "id", "text": "text"},
        "model": {"path": str(folder)},
        "table": {"path": str(tmp_path / "table")},
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(raw))
    module, *flags = f"jobs.{command}".split()
    script = (
        f"import sys; from jobs.command import main_of; from {module} import main\n"
        f"code = main_of(lambda: main({[str(tmp_path / 'run.yaml'), *flags]!r}))\n"
        "print(*sorted({'torch', 'ray'} & set(sys.modules))); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout.strip(), done.stderr.count("\n")) == (2, "", 1), done.stderr
    assert "tokenizer.json' is no tokenizer that can be read" in done.stderr


def test_a_folder_as_it_should_be_needs_no_package(folder):
    plan(folder)
    shutil.copyfile(folder / "vocab.txt", folder / "kept")
    (folder / "tokenizer.json").unlink()
    plan(folder)
