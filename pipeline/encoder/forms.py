"""The forms in which a graph can be computed are compared on this node, and the fastest goes out.

Comes in: an engine that has several forms, what it was built from, and rows to measure with. A form that gives other
vectors, or fails, is not taken. It knows no batches of a run and keeps nothing.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.encoder.encoder import Encoder
from pipeline.encoder.engines.base import Engine, FormingEngine, GraphForm
from pipeline.encoder.made_up_rows import Sample
from pipeline.encoder.settings import Fixed, Setup
from pipeline.encoder.token_rows import TokenRows

NEAR = 0.97
"""Of two settings the simpler one is taken if it reaches this share of the faster one's rate: the smaller batch, which
wastes less padding and memory, attention that is not fused, whose code for a new shape is made sooner, one form of the
graph instead of two, the engine that is loaded already."""
PLAIN, FUSED, FLOAT32, TORCH = "plain", "fused", "float32", "torch"
"""The forms are a graph with OpenVINO's own operators, one with fused attention, one in int8 whose rest is computed in
float32 where that of the others is in bfloat16, and torch."""
VERSION = 3
"""Raised when forms are compared otherwise: what was measured before is measured anew."""
TURNS = 6
"""Another process may slow a turn down, and hardly all of them."""
MOST_S = 4.0
"""The forms of a graph, and then the batches, are compared for at most about so many seconds; each has one turn at
least."""
BATCH_S = 0.15
"""A batch that the forms are compared by takes about so long at most."""
MOST_COMPARED = 1024
"""The forms are compared by batches of at most about so many tokens."""
LEAST_COSINE = {"float32": 0.99999, "int8": 0.99}
"""Vectors of one form of a graph are those of the other to this cosine, as between the nodes of a run; see
probes.MIN_COSINE. Rows of made-up ids lose more in int8 than texts do."""


@dataclass(frozen=True, kw_only=True)
class Fastest:
    form: GraphForm | None
    """None where torch is faster."""
    reason: str
    """It says what was measured."""


def fastest(engine: FormingEngine, setup: Setup, sample: Sample, torch: Callable[[], Engine]) -> Fastest:
    """Compare the forms that the user has left open. `torch` loads the other engine that might be faster."""
    graphs = _graphs(engine, setup.fixed)
    forms = [_Form(name, _in_form(engine, graph)) for name, graph in graphs.items()]
    if setup.spec.engine == "auto" and setup.spec.precision == "float32":
        other = torch()
        forms.append(_Form(TORCH, lambda rows: _in_one_batch(other, rows)))
    seconds = _compared(forms, sample, LEAST_COSINE[setup.spec.precision])
    told = f" ({_told(seconds, sample.widths)})"
    form, best = _fastest_graph(graphs, seconds, sample.widths)
    if TORCH in seconds and sum(seconds[TORCH]) < NEAR * best:
        return Fastest(form=None, reason=f"torch{told}")
    return Fastest(form=form, reason=_said(form, in_int8=engine.may_bfloat16) + told)


def usual(engine: FormingEngine, fixed: Fixed) -> GraphForm:
    """Return the form that the engine has by itself, but for what the user has decided."""
    fused_from = engine.form.fused_from
    if fixed.fused_attention is not None:
        fused_from = 0 if fixed.fused_attention else None
    return GraphForm(fused_from=fused_from, bfloat16=engine.may_bfloat16 and fixed.bfloat16_in_int8 is not False)


@dataclass(frozen=True, eq=False)
class _Form:
    """One way to compute the same vectors."""

    name: str
    encode: Callable[[TokenRows], NDArray[np.float32]]
    """All rows in one batch."""


def _graphs(engine: FormingEngine, fixed: Fixed) -> dict[str, GraphForm]:
    """Return the graph's forms by their names. The first is what the others' vectors are compared with."""
    bfloat16 = usual(engine, fixed).bfloat16
    fuses = engine.may_fuse and fixed.fused_attention is not False
    graphs = {}
    if fixed.fused_attention is not True or not engine.may_fuse:
        graphs[PLAIN] = GraphForm(fused_from=None, bfloat16=bfloat16)
    if fuses:
        graphs[FUSED] = GraphForm(fused_from=0, bfloat16=bfloat16)
    if bfloat16 and fixed.bfloat16_in_int8 is None:
        graphs[FLOAT32] = GraphForm(fused_from=0 if fuses else None)
    return graphs


def _in_form(engine: FormingEngine, graph: GraphForm) -> Callable[[TokenRows], NDArray[np.float32]]:
    def encode(rows: TokenRows) -> NDArray[np.float32]:
        engine.form = graph
        return _in_one_batch(engine, rows)

    return encode


def _in_one_batch(engine: Engine, rows: TokenRows) -> NDArray[np.float32]:
    whole = int(rows.lengths.max()) * len(rows)
    return Encoder(engine, 2 * whole, overhead_tokens=2 * whole).encode(rows).vectors


def _compared(forms: Sequence[_Form], sample: Sample, least_cosine: float) -> dict[str, list[float]]:
    """The least seconds per token of each form at each width. A form that fails, or gives other vectors, has none."""
    until = time.perf_counter() + MOST_S
    batches = []
    standing = {form.name: form for form in forms}
    for width in sample.widths:
        one = sample.of_width(width, 1)
        forms[0].encode(one)  # Code is made, and memory is got, before the clock runs.
        rows = sample.of_width(
            width, max(2, min(int(BATCH_S / seconds_of(forms[0].encode, one)), MOST_COMPARED // width))
        )
        batches.append(rows)
        expected = forms[0].encode(rows)
        for form in forms[1:]:
            if form.name in standing and not _agree(form, rows, expected, least_cosine):
                del standing[form.name]
    least = {name: [math.inf] * len(batches) for name in standing}
    for _ in turns(until):  # They take turns, so that a noisy moment meets all of them.
        for place, rows in enumerate(batches):
            for name, form in standing.items():
                each = seconds_of(form.encode, rows) / int(rows.lengths.sum())
                least[name][place] = min(least[name][place], each)
    return least


def turns(until: float) -> Iterator[int]:
    """Yield the numbers of the turns that all contestants take, one at least, and none that would begin after `until`."""
    yield 0
    for turn in range(1, TURNS):
        if time.perf_counter() > until:
            return
        yield turn


def seconds_of(encode: Callable[[TokenRows], object], rows: TokenRows) -> float:
    started = time.perf_counter()
    encode(rows)
    return max(time.perf_counter() - started, 1e-9)


def _agree(form: _Form, rows: TokenRows, expected: NDArray[np.float32], least_cosine: float) -> bool:
    try:
        found = form.encode(rows)
    except Exception:  # A form that can't compute these rows is none; the first one can.
        return False
    sizes = np.linalg.norm(found, axis=1) * np.linalg.norm(expected, axis=1)
    cosines = (found * expected).sum(axis=1) / np.maximum(sizes, 1e-12)
    return bool(np.isfinite(cosines).all() and cosines.mean() >= least_cosine)


def _fastest_graph(
    graphs: Mapping[str, GraphForm], seconds: Mapping[str, Sequence[float]], widths: Sequence[int]
) -> tuple[GraphForm, float]:
    """Return (the fastest form of the graph, its seconds per token of all widths together)."""
    fused_from, best = _where_fused(seconds, widths)
    if FLOAT32 in seconds and sum(seconds[FLOAT32]) < NEAR * best:
        return graphs[FLOAT32], sum(seconds[FLOAT32])
    first, *_ = graphs.values()
    return GraphForm(fused_from=fused_from, bfloat16=first.bfloat16), best


def _where_fused(seconds: Mapping[str, Sequence[float]], widths: Sequence[int]) -> tuple[int | None, float]:
    """(the width from which on attention is fused, seconds per token of all widths together)."""
    if PLAIN not in seconds:
        return 0, sum(seconds[FUSED])
    if FUSED not in seconds:
        return None, sum(seconds[PLAIN])
    plain, fused = seconds[PLAIN], seconds[FUSED]
    alone: tuple[int | None, float] = (None, sum(plain))
    if sum(fused) < NEAR * sum(plain):
        alone = (0, sum(fused))
    both: list[tuple[int | None, float]] = [
        (math.ceil(math.sqrt(widths[place - 1] * widths[place])), sum(plain[:place]) + sum(fused[place:]))
        for place in range(1, len(widths))
    ]
    mixed = min(both, key=lambda found: found[1], default=alone)
    return mixed if mixed[1] < NEAR * alone[1] else alone


def _told(seconds: Mapping[str, Sequence[float]], widths: Sequence[int]) -> str:
    rates = (f"{name} " + "/".join(f"{1e-3 / each:.1f}" for each in found) for name, found in seconds.items())
    return f"at {'/'.join(map(str, widths))} tokens measured {', '.join(rates)} thousand tokens/s"


def _said(form: GraphForm, *, in_int8: bool) -> str:
    said = {None: "attention not fused", 0: "attention fused"}.get(
        form.fused_from, f"attention fused from {form.fused_from} tokens on"
    )
    if not in_int8:
        return said
    return f"{said}, {'bfloat16' if form.bfloat16 else 'float32'} between int8 products"
