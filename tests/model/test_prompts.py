"""What stands in front of documents and queries is what `encode_document` and `encode_query` put there, or nothing is done."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import pipeline
from jobs import search, verify
from pipeline.config import ModelSpec
from pipeline.encoder.embedder import embedder
from pipeline.errors import InputError
from pipeline.model.folder import encoder_spec
from pipeline.runs import prepare
from tests import inline
from tests.tiny import build_tiny_model, load_oracle

TEXTS = ["oil", "the new year of the market"]
FOR_DOCUMENTS = ("document", "passage", "corpus")
OTHERS = FOR_DOCUMENTS[1:]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return build_tiny_model(tmp_path_factory.mktemp("prompts") / "model")


def with_prompts(model: Path, prompts: dict[str, str | None], default: str | None = None) -> Path:
    where = model / "config_sentence_transformers.json"
    config = json.loads(where.read_text()) | {"prompts": prompts, "default_prompt_name": default}
    where.write_text(json.dumps(config))
    return model


def spec_of(model: Path, **overrides):
    return encoder_spec(ModelSpec(path=str(model), **overrides))


def vectors(spec) -> np.ndarray:
    return embedder(spec).encode(TEXTS).vectors


NAMED = st.dictionaries(
    st.sampled_from([*FOR_DOCUMENTS, "query", "title"]), st.sampled_from([None, "", "small: ", "a report of "])
)


@settings(max_examples=60, deadline=None)
@given(prompts=NAMED)
@example(prompts={"query": "query: ", "passage": "passage: "})
@example(prompts={})
@pytest.mark.slow
def test_documents_and_queries_are_those_of_sentence_transformers_or_refused(model, prompts):
    oracle = load_oracle(with_prompts(model, prompts))
    own, others = prompts.get("document"), [name for name in OTHERS if prompts.get(name)]
    if not own and others:
        with pytest.raises(InputError, match=rf'model\.prompt_name: {others[0]}.*or model\.prompt: "" for none'):
            spec_of(model)
        for name in others:
            expected = oracle.encode(TEXTS, prompt_name=name)
            assert np.abs(vectors(spec_of(model, prompt_name=name)) - expected).max() <= 1e-5
    spec = spec_of(model, prompt="") if not own and others else spec_of(model)
    assert np.abs(vectors(spec) - oracle.encode_document(TEXTS)).max() <= 1e-5
    assert np.abs(vectors(spec.for_queries()) - oracle.encode_query(TEXTS)).max() <= 1e-5


@pytest.mark.parametrize("default", [None, "query", *FOR_DOCUMENTS, "title"])
def test_the_default_prompt_is_for_documents_that_have_none_of_their_own(model, default):
    """Without a default, all 2 ** 5 choices of prompts are those of the test above."""
    for names in itertools.product([False, True], repeat=4):
        given = [name for name, there in zip([*FOR_DOCUMENTS, "query"], names, strict=True) if there]
        prompts = {name: f"{name}: " for name in dict.fromkeys([*given, *([default] if default else [])])}
        with_prompts(model, prompts, default)
        expected = prompts.get("document") or prompts.get(default, "")
        if "document" not in prompts and set(OTHERS) & set(prompts) and default not in OTHERS:
            with pytest.raises(InputError, match="no prompt named 'document'"):
                spec_of(model)
        else:
            assert spec_of(model).prompt == expected
            assert spec_of(model).for_queries().prompt == prompts.get("query", "")


def test_a_prompt_of_the_configuration_is_not_for_queries(model):
    with_prompts(model, {"query": "", "document": "d: "})
    for overrides in ({"prompt": "mine: "}, {"prompt_name": "document"}, {}):
        assert spec_of(model, **overrides).for_queries().prompt == ""


def test_encode_takes_the_prompt_for_documents_and_similarity_needs_none(model):
    with_prompts(model, {"document": "a report of "})
    assert np.abs(pipeline.encode(model, TEXTS) - load_oracle(model).encode_document(TEXTS)).max() <= 1e-5
    with_prompts(model, {"passage": "passage: "})
    with pytest.raises(InputError, match=r"model\.prompt_name: passage"):
        pipeline.encode(model, TEXTS)
    found = pipeline.encode(model, TEXTS, prompt_name="passage")
    assert np.allclose(np.diag(pipeline.similarity(found, found, model=model)), 1, atol=1e-5)


# --- tables that were built before documents had their own prompt ---------------------------------------------------


@pytest.mark.parametrize(
    ("prompts", "default", "earlier"),
    [
        ({"document": "d: "}, None, ""),
        ({"passage": "p: "}, None, ""),
        ({"document": "d: ", "all": "every: "}, "all", "every: "),
    ],
)
def test_a_table_keeps_the_prompt_that_it_was_built_with(model, prompts, default, earlier):
    with_prompts(model, prompts, default)
    built = spec_of(model, prompt=earlier).identity()
    spec = ModelSpec(path=str(model))
    kept = encoder_spec(spec, built)
    assert (kept.prompt, kept.identity()) == (earlier, built)
    assert "keeps it" in kept.notes[-1]
    # One that the configuration names is another model's, and told as such.
    named = encoder_spec(ModelSpec(path=str(model), prompt_name=next(iter(prompts))), built)
    assert named.identity() != built
    # Neither another model's table nor one with a prompt of the user's own decides.
    for other in (built | {"model": "another"}, built | {"prompt": "the user's: "}):
        if "document" in prompts:
            assert encoder_spec(spec, other).prompt == prompts["document"]
        else:
            with pytest.raises(InputError, match=r"model\.prompt_name: passage"):
                encoder_spec(spec, other)


def test_a_table_of_today_s_rule_says_nothing_of_it(model):
    with_prompts(model, {"document": "d: "})
    today = spec_of(model)
    assert encoder_spec(ModelSpec(path=str(model)), today.identity()) == today
    assert today.notes == ()


def test_every_command_goes_on_with_a_table_of_the_earlier_rule(tmp_path):
    model = with_prompts(build_tiny_model(tmp_path / "model"), {"document": "a report of ", "query": "small "})
    (tmp_path / "a.jsonl").write_text(
        "".join(json.dumps({"id": str(n), "text": f"{n} days"}) + "\n" for n in range(20))
    )
    inline.embed(inline.spec_of(tmp_path / "a.jsonl", model, tmp_path / "table", model={"prompt": ""}))
    spec = inline.spec_of(tmp_path / "a.jsonl", model, tmp_path / "table")
    assert prepare.prepare(spec, writes=False).plan.changes_nothing
    assert not prepare.prepare(spec, writes=False, new_model=True).target.renews
    assert verify.verify(verify.published(spec), 10, 0, "pipeline").passed
    assert search.search(spec, "3 days", 1).num_rows == 1
    named = inline.spec_of(tmp_path / "a.jsonl", model, tmp_path / "table", model={"prompt_name": "document"})
    with pytest.raises(InputError, match=r'model\.prompt was "", is "a report of "'):
        prepare.prepare(named, writes=False)
    # A table that is built anew for another reason takes the prompt of today's rule.
    other = inline.spec_of(tmp_path / "a.jsonl", model, tmp_path / "table", model={"truncate_dim": 8})
    assert prepare.prepare(other, writes=False, new_model=True).encoder.prompt == "a report of "
