"""How many cores an encoder has: what is tried, what is chosen, and that it is measured once, by real encoders."""

from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import ResourceSpec
from pipeline.execution import side_by_side
from pipeline.execution.arrangement import Arrangement, Size, candidates, choice
from pipeline.execution.pools import Load, choose_pools
from pipeline.runs import arrange, prepare
from pipeline.runs import embed as runs
from tests import inline


@given(cpus=st.integers(1, 200), held=st.integers(1, 300))
def test_every_arrangement_fits_and_all_cores_in_one_encoder_are_among_them(cpus, held):
    tried = candidates(cpus, held)
    assert tried[-1] == (1, cpus)
    assert [threads for _, threads in tried] == sorted({threads for _, threads in tried})
    for encoders, threads in tried:
        assert 1 <= encoders <= held
        assert encoders * threads <= cpus
        assert encoders == held or (encoders + 1) * threads > cpus


@pytest.mark.parametrize(
    ("rates", "threads"),
    [
        ([(4, 1, 100.0), (2, 2, 80.0)], 1),
        ([(4, 1, 100.0), (2, 2, 102.0), (1, 4, 90.0)], 1),  # the other is hardly faster
        ([(4, 1, 100.0), (2, 2, 130.0), (1, 4, 120.0)], 2),
        ([(4, 1, 0.0), (2, 2, 50.0)], 2),  # four find no memory
        ([(4, 1, 0.0), (2, 2, 0.0)], 1),  # nothing works: as if nothing had been measured
    ],
)
def test_the_fastest_is_chosen_and_of_equals_the_one_with_fewer_cores_each(rates, threads):
    found = choice(rates)
    assert found.threads == threads
    assert "4 x 1" in found.reason
    assert "2 x 2" in found.reason


@pytest.mark.parametrize(
    ("load", "spec", "expected"),
    [
        (Load(), ResourceSpec(), (16, 1)),
        (Load(threads=4), ResourceSpec(), (4, 4)),
        (Load(threads=4), ResourceSpec(cpus_per_encoder=2), (8, 2)),  # what the user says is not measured
    ],
)
def test_pools_have_what_was_measured(load, spec, expected):
    pools = choose_pools(spec, [{"CPU": 17.0}], load=load)
    assert (pools.encoders, pools.cpus_per_encoder) == expected


def test_no_core_is_left_idle_where_memory_holds_few_encoders():
    pools = choose_pools(ResourceSpec(), [{"CPU": 17.0, "memory": 8e9}], encoder_bytes=2 * 10**9)
    assert (pools.encoders, pools.cpus_per_encoder) == (4, 4)
    pools = choose_pools(ResourceSpec(encoders=2), [{"CPU": 17.0, "memory": 8e9}], encoder_bytes=2 * 10**9)
    assert (pools.encoders, pools.cpus_per_encoder) == (2, 1)  # as it is said of `auto`
    on_gpus = [{"CPU": 17.0, "GPU": 1.0, "memory": 8e9}]
    assert choose_pools(ResourceSpec(), on_gpus, encoder_bytes=2 * 10**9).cpus_per_encoder == 1


@pytest.fixture
def corpus(tmp_path):
    rows = pa.table({"id": [str(number) for number in range(20)], "text": [f"oil and gas {n}" for n in range(20)]})
    pq.write_table(rows, tmp_path / "rows.parquet")
    return tmp_path / "rows.parquet"


@pytest.fixture
def prepared(corpus, tiny_model, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return prepare.prepare(inline.spec_of(corpus, tiny_model, tmp_path / "table"), writes=True)


def test_real_encoders_work_side_by_side_once_on_a_node(prepared, monkeypatch):
    monkeypatch.setattr(side_by_side, "MEASURED_S", 0.1)
    worker = prepared.worker_spec(inline.POOLS)
    size = Size(tokens=20, encoder_bytes=10**8)
    found = side_by_side.measure(size, worker, 2)
    assert found.threads in (1, 2)
    assert "2 x 1" in found.reason
    assert "0.0" not in found.reason
    monkeypatch.setattr(side_by_side, "_tokens_per_s", lambda *_: pytest.fail("measured again"))
    assert side_by_side.measure(size, worker, 2) == found


def test_encoders_that_do_not_come_up_are_no_arrangement(prepared, tmp_path):
    worker = prepared.worker_spec(inline.POOLS)
    lost = replace(worker.encode.encoder, folder=str(tmp_path / "nowhere"))
    broken = replace(worker, encode=replace(worker.encode, encoder=lost))
    assert side_by_side._tokens_per_s(broken, 2, 1, 20) == 0.0


class _TwoCores(inline.InProcess):
    """It has two encoders, and measures nothing itself."""

    asked = 0

    def with_all_cpus(self, job, do, item):
        self.asked += 1
        return Arrangement(threads=2, reason="encoders x cores measured 2 x 1 1.0, 1 x 2 2.0 thousand tokens/s")


@pytest.mark.parametrize(
    ("resources", "from_s", "asked"),
    [({}, 0.0, 1), ({}, 600.0, 0), ({"encoders": 1}, 0.0, 0), ({"cpus_per_encoder": 1}, 0.0, 0)],
    ids=["long", "short", "encoders are given", "cores are given"],
)
def test_a_long_run_measures_what_is_left_open_and_tells_it(
    resources, from_s, asked, corpus, tiny_model, tmp_path, monkeypatch
):
    monkeypatch.setattr(arrange, "ARRANGED_FROM_S", from_s)
    executor = _TwoCores(encoders=2)
    spec = inline.spec_of(corpus, tiny_model, tmp_path / "table", resources=resources)
    summary = runs.embed(spec, executor)
    assert executor.asked == asked
    assert ("1 x 2 2.0" in summary.runs.workers) == bool(asked)


def test_an_arrangement_reaches_the_pools(prepared):
    assert prepared.load.threads is None
    arrangement = Arrangement(threads=2, reason="")
    assert replace(prepared, arrangement=arrangement).load.threads == 2
