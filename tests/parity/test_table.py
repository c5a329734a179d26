"""docs/model-format.md says what was proven and how well: the table of what is supported is made of this run's figures.

It comes last, and only where all of tests/parity ran: `make parity`, with `UPDATE_DOCS=1` to write the table anew.
"""

import math
from collections.abc import Iterable, Mapping

import pytest

from pipeline.model.architectures import ARCHITECTURES
from pipeline.model.saved_modules import POOLING_MODES
from tests.architectures import ARCHITECTURE_NAMES
from tests.parity.cards import CARDS
from tests.parity.combinations import CUT_CHOICES, DENSE_CHOICES, PROMPT_CHOICES
from tests.parity.document import MARGIN, Block
from tests.parity.figures import ALL, COSINES, FIGURES, bound
from tests.parity.test_edge_texts import KINDS
from tests.parity.test_modules import CHAINS, LAYOUTS, LENGTHS, STATIC_KEYS
from tests.parity.texts import EDGE_TEXTS, LONG_TEXTS

STYLES = {"legacy": "keys of releases up to 5.3", "new": "keys of 5.4 and newer"}
SECTIONS: Mapping[tuple[str, str], Iterable[str]] = {
    ("style", "style of the files"): STYLES,
    ("pooling", "Pooling: mode"): [*POOLING_MODES, "two modes, concatenated"],
    ("include_prompt", "Pooling: include_prompt"): ["true", "false"],
    ("dense", "Dense"): [*DENSE_CHOICES, "every activation"],
    ("normalize", "Normalize at the end"): ["module", "none"],
    ("module", "other modules"): [*CHAINS, "StaticEmbedding"],
    ("static", "StaticEmbedding: keys of its weights"): STATIC_KEYS,
    ("prompt", "prompt"): [*PROMPT_CHOICES, "longer than max_seq_length"],
    ("cut", "truncate_dim"): CUT_CHOICES,
    ("max_seq_length", "max_seq_length comes from"): [*LENGTHS, "model.max_seq_length"],
    ("layout", "files and keys"): [*LAYOUTS, "no modules.json: mean", "no modules.json, causal: lasttoken"],
    ("weights", "weights"): [
        "pytorch_model.bin",
        "stored in float16, run in float32",
        "stored in bfloat16, run in float32",
    ],
    ("edge texts", "edge texts: tokenizer"): dict.fromkeys(KINDS.values()),
    ("architecture", "model_type of config.json"): sorted(ARCHITECTURE_NAMES),
}
"""(section of FIGURES, title) -> its rows."""
WHOLE_FOLDERS = ("whole folders", "all")
PRECISIONS = {
    "float16": "tiny models",
    "float16, all-MiniLM-L6-v2": "AG News",
    "bfloat16": "tiny models",
    "bfloat16, all-MiniLM-L6-v2": "AG News",
}


def test_every_architecture_that_is_read_is_proven():
    assert sorted(ARCHITECTURE_NAMES) == sorted(ARCHITECTURES)


def test_the_docs_say_what_was_proven():
    rows = [(section, row) for (section, _), names in SECTIONS.items() for row in names]
    rows += [("card", card.name) for card in CARDS] + [("edge text", name) for name in (*EDGE_TEXTS, *LONG_TEXTS)]
    missing = [row for row in rows if row not in FIGURES]
    missing += [("precision", name) for name in PRECISIONS if ("precision", name) not in COSINES]
    if missing:
        pytest.skip(
            f"run all of tests/parity to compare the table: {len(missing)} rows were not proven, as {missing[0]}"
        )
    assert sorted({*FIGURES} - {*rows, ALL, WHOLE_FOLDERS}) == []
    tables = [cards(), *(table(section, title, names) for (section, title), names in SECTIONS.items()), precisions()]
    Block("supported").check(total() + "".join(tables))


def total() -> str:
    everything, whole = FIGURES[ALL], FIGURES[WHOLE_FOLDERS]
    return (
        f"{everything.combinations:,} combinations in all, {whole.combinations:,} of them folders that were loaded from first "
        f"to last by both sides; the largest difference was <= {bound(MARGIN * everything.difference)}.\n\n"
    )


def cards() -> str:
    lines = ["| model card | hidden | max_seq_length | behind mean pooling | vectors compared | largest difference |\n"]
    lines.append("| --- | --- | --- | --- | --- | --- |\n")
    for card in CARDS:
        figure = FIGURES["card", card.name]
        after = f"Dense {card.hidden} -> {card.dense}, Tanh" if card.dense else "-"
        shown = [card.name, card.hidden, card.max_seq_length, after, f"{figure.combinations:,}"]
        lines.append(f"| {' | '.join(map(str, shown))} | <= {bound(MARGIN * figure.difference)} |\n")
    return "".join(lines) + "\n"


def table(section: str, title: str, names: Iterable[str]) -> str:
    lines = [f"| {title} | combinations | largest difference |\n", "| --- | --- | --- |\n"]
    for name in names:
        figure = FIGURES[section, name]
        shown = f"{name}: {STYLES[name]}" if section == "style" else name
        lines.append(f"| {shown} | {figure.combinations:,} | <= {bound(MARGIN * figure.difference)} |\n")
    return "".join(lines) + "\n"


def precisions() -> str:
    lines = ["| model.precision | on | lowest cosine with float32 |\n", "| --- | --- | --- |\n"]
    for name, texts in PRECISIONS.items():
        nines = min(5, math.floor(-math.log10(max(MARGIN * (1 - COSINES["precision", name]), 1e-9))))
        lines.append(f"| {name} | {texts} | >= {1 - 10.0**-nines:.{nines}f} |\n")
    return "".join(lines) + "\n"
