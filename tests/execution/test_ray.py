"""What we rely on in Ray, on a real cluster: the shuffle, rewriting on workers, errors, holding encoders back."""

import json
from dataclasses import replace

import numpy as np
import pytest
import ray.data
from ray.data._internal.logical.optimizers import get_execution_plan

from jobs.embed import embed as embed_on_ray
from pipeline.config import ResourceSpec
from pipeline.errors import ConfigError, RunError, StorageError, StorageUnavailable
from pipeline.execution import by_size
from pipeline.execution.pools import MOST_CPUS_PER_TASK, Pools
from pipeline.execution.ray import cluster as ray_cluster
from pipeline.execution.ray import executor as ray_executor
from pipeline.execution.ray import flow, shuffle, workers
from pipeline.execution.ray.cluster import Cluster
from pipeline.execution.ray.executor import RayExecutor
from pipeline.execution.ray.monitor import Monitor
from pipeline.execution.strikes import Worker
from pipeline.runs import embed as runs_embed
from pipeline.runs import prepare as run
from pipeline.stages.flow import EMBED
from pipeline.storage import Folder
from pipeline.table import diff, snapshot
from pipeline.table.compare import BOTH, NEW, OLD
from pipeline.table.workers import compare_here
from pipeline.work import Task, Unit
from tests.chaos import processes
from tests.inline import embed, read_table, same_rows, spec_of


def write_corpus(path, names):
    path.write_text("".join(json.dumps({"id": name, "text": f"text of {name}"}) + "\n" for name in names))


@pytest.mark.slow
def test_the_shuffle_finds_what_this_process_finds(ray_address, tiny_model, tmp_path, monkeypatch):
    """Two tables with rows in common stand for the old and the new state of one."""
    for name, first in [("old", 0), ("new", 100)]:
        write_corpus(tmp_path / f"{name}.jsonl", [f"doc {n}" for n in range(first, first + 200)])
        embed(spec_of(tmp_path / f"{name}.jsonl", tiny_model, tmp_path / "tables" / name))
    spec = spec_of(
        tmp_path / "new.jsonl", tiny_model, tmp_path / "tables" / "new", resources={"ray_address": ray_address}
    )
    root = Folder(str(tmp_path / "tables"))
    parts = [
        replace(part, path=f"{name}/{part.path}")
        for name in ("old", "new")
        for part in snapshot.current(Folder(f"{root.url}/{name}")).parts
    ]
    monkeypatch.setattr(ray_executor, "KEYS_PER_BUCKET", 40)
    with RayExecutor(spec.resources) as executor:
        prepared = run.prepare(spec, writes=False)
        job = replace(
            prepared,
            spec=replace(spec, table=replace(spec.table, path=root.url)),
            target=replace(prepared.target, table=root),
        )
        for sides in [(OLD, NEW), (BOTH, NEW), (NEW, NEW)]:
            pairs = list(zip(parts, sides, strict=True))
            there, here = executor.compare_versions(job, pairs, renewed=False), compare_here(root, pairs)
            assert (there.new, there.changed, there.unchanged) == (here.new, here.changed, here.unchanged)
            for kind in ("upserts", "deletes", "duplicates"):
                assert sorted(getattr(there, kind).tolist()) == sorted(getattr(here, kind).tolist())
        assert (here.new, len(here.duplicates)) == (400, 200)


@pytest.mark.slow
def test_buckets_are_of_about_one_size(ray_address):
    with Cluster(ResourceSpec(ray_address=ray_address)) as cluster:
        cluster.start()
        keys = np.zeros(20_000, diff.LIVE_KEY)
        keys["id"] = np.random.default_rng(0).integers(0, 2**64, (len(keys), 2), np.uint64)
        blocks = ray.data.from_arrow(shuffle.in_buckets(keys)).repartition(20, keys=["bucket"])
        sizes = [batch.num_rows for batch in blocks.iter_batches(batch_size=None, batch_format="pyarrow")]
    assert sum(sizes) == 20_000
    assert max(sizes) < 1_300


@pytest.mark.slow
def test_a_commit_whose_heavy_parts_run_on_workers_gives_the_same_table(ray_address, tiny_model, tmp_path, monkeypatch):
    write_corpus(tmp_path / "a.jsonl", [f"doc {n}" for n in range(300)])
    embed(spec_of(tmp_path / "a.jsonl", tiny_model, tmp_path / "here", limits={"unit_rows": 40}))
    monkeypatch.setattr(by_size, "KEYS_HERE", 0)
    monkeypatch.setattr(by_size, "CLUSTER_START_S", 0.0)
    limits, resources = {"unit_rows": 40}, {"ray_address": ray_address}
    there = spec_of(tmp_path / "a.jsonl", tiny_model, tmp_path / "there", limits=limits, resources=resources)
    assert embed_on_ray(there).counts.new == 300
    same_rows(read_table(tmp_path / "there"), read_table(tmp_path / "here"))


def stages_of(pools: Pools) -> list[str]:
    """The operators that Ray makes of the flow, from the last to the first."""
    task = Task(unit=Unit(unit_id="0" * 32, spans=(), sources=()), done=())
    rows = flow.run_stages([task], "run", pools, EMBED, 60.0)
    operators = [get_execution_plan(rows._logical_plan)[0].dag]
    while operators[-1].input_dependencies:
        operators += operators[-1].input_dependencies
    return [operator.name for operator in operators]


def test_reading_encoding_and_writing_are_stages_of_their_own(ray_address):
    with Cluster(ResourceSpec(ray_address=ray_address, encoders=1)) as cluster:
        pools = replace(cluster.pools(), cpus_per_task=MOST_CPUS_PER_TASK)
        write, encode, read, _ = stages_of(pools)
        assert "write" in write
        assert "EncodeStage" in encode
        assert "read" in read
        # Why: with a whole CPU each, Ray makes one of them.
        assert len(stages_of(replace(pools, cpus_per_task=1.0))) == 3


def test_a_measurement_has_more_slices_than_may_be_unrecorded(ray_address, tiny_model, tmp_path):
    """Nobody records what is only measured; encoders waited for it for ever."""
    for number in range(12):
        write_corpus(tmp_path / f"{number}.jsonl", [f"doc {number} {n}" for n in range(20)])
    resources = {"ray_address": ray_address, "encoders": 1, "writers": 1}
    spec = spec_of(
        f"{tmp_path}/*.jsonl", tiny_model, tmp_path / "table", resources=resources, table={"dtype": "int8"},
        limits={"unit_timeout_s": 30.0},
    )  # fmt: skip
    assert embed_on_ray(spec).counts.new == 240


def test_slices_that_overlap_within_an_encoder_give_the_same_table(ray_address, tiny_model, tmp_path, monkeypatch):
    """As within one of a GPU; slices of one encoder that are in hand together, and the engine takes them in turn."""
    write_corpus(tmp_path / "a.jsonl", [f"doc {n}" for n in range(200)])
    limits = {"unit_rows": 8}
    embed(spec_of(tmp_path / "a.jsonl", tiny_model, tmp_path / "here", limits=limits))
    at_once = 0

    def counted(self):
        nonlocal at_once
        at_once += 1
        return 2

    monkeypatch.setattr(Pools, "slices_at_once", property(counted))
    resources = {"ray_address": ray_address, "encoders": 1}
    there = spec_of(tmp_path / "a.jsonl", tiny_model, tmp_path / "there", limits=limits, resources=resources)
    summary = embed_on_ray(there)
    assert at_once
    assert summary.counts.new == 200
    assert 0 < summary.busy_share <= 1
    same_rows(read_table(tmp_path / "there"), read_table(tmp_path / "here"))


def test_the_chaos_suite_knows_rays_processes_by_their_work():
    stages = {"tokenizer": workers.read_stage, "writer": workers.write_stage}
    for kind, stage in stages.items():
        assert processes.TITLES[kind] == f"ray::MapBatches({stage.__name__})"
    assert processes.TITLES["encoder"] == f"ray::MapWorker(MapBatches({workers.EncodeStage.__name__}))"


@pytest.mark.slow
def test_an_encoder_that_does_not_give_the_tables_vectors_is_refused(ray_address, tiny_model, tmp_path):
    """The snapshot's probe vectors are bent by hand, as another library or device would bend the encoder's."""
    write_corpus(tmp_path / "a.jsonl", ["one", "two"])
    spec = spec_of(tmp_path / "a.jsonl", tiny_model, tmp_path / "table", resources={"ray_address": ray_address})
    embed(spec)
    path = tmp_path / "table" / "meta" / "versions" / "000001.json"
    state = json.loads(path.read_text())
    state["probes"] = [[value + 0.5 for value in vector] for vector in state["probes"]]
    path.write_text(json.dumps(state))
    write_corpus(tmp_path / "a.jsonl", ["one", "two", "three"])
    with pytest.raises(RunError, match="no longer gives the vectors"):
        embed_on_ray(spec)
    assert read_table(tmp_path / "table").num_rows == 2


@pytest.mark.slow
def test_a_file_that_changes_under_the_run_is_planned_again(ray_address, tiny_model, tmp_path, monkeypatch):
    write_corpus(tmp_path / "a.jsonl", ["one", "two"])
    spec = spec_of(tmp_path / "a.jsonl", tiny_model, tmp_path / "table", resources={"ray_address": ray_address})
    prepare = run.prepare
    plans = []

    def and_then_it_changes(*args, **kwargs):
        plans.append(prepare(*args, **kwargs))
        if len(plans) == 1:
            write_corpus(tmp_path / "a.jsonl", ["one", "two", "three"])
        return plans[-1]

    monkeypatch.setattr(runs_embed, "prepare", and_then_it_changes)
    assert embed_on_ray(spec).counts.rows == 3
    assert len(plans) == 2


def test_an_address_that_does_not_answer_is_a_configuration_error():
    with (
        Cluster(ResourceSpec(ray_address="127.0.0.1:1")) as cluster,
        pytest.raises(ConfigError, match=r"127\.0\.0\.1:1"),
    ):
        cluster.start()


def test_resources_that_the_cluster_lacks_are_an_error_before_any_work(ray_address, tiny_model, tmp_path):
    write_corpus(tmp_path / "a.jsonl", ["one"])
    resources = {"ray_address": ray_address, "gpus_per_encoder": 1}
    with pytest.raises(ConfigError, match="room for 0"):
        embed_on_ray(spec_of(tmp_path / "a.jsonl", tiny_model, tmp_path / "table", resources=resources))
    assert not (tmp_path / "table" / "staging" / "records").exists()


def test_a_workers_error_comes_out_of_rays_wrappings():
    class Wrapped(Exception):
        cause = StorageError("the disk is full")

    assert str(ray_cluster.translate(Wrapped())) == "the disk is full"
    assert isinstance(ray_cluster.translate(ValueError("x\ny")), RunError)
    told = "Traceback ..\npipeline.errors.StorageUnavailable: can't write x\nFailed to apply UDF transform"
    assert repr(ray_cluster.translate(RuntimeError(told))) == repr(StorageUnavailable("can't write x"))


def test_encoders_wait_for_writers_and_an_encoder_that_died_does_not_block_its_slice():
    monitor = Monitor(lambda: {"here"}, unrecorded=2, encoders=1)
    first, second, third = ("u", 0), ("u", 5), ("v", 0)
    one, two = Worker("one", "here"), Worker("two", "here")
    assert monitor.claim(first, one) == 0
    assert monitor.claim(second, two) == 0
    assert monitor.claim(third, two) is None
    assert monitor.claim(first, two) == 1
    monitor.release(second)
    assert monitor.claim(third, two) == 0


def test_encoders_that_die_before_they_are_ready_are_counted_beyond_those_that_start_together():
    alive = {"a", "b"}
    monitor = Monitor(lambda: alive, unrecorded=2, encoders=2)
    assert [monitor.starting(Worker(name, "a")) for name in ("1", "2")] == [0, 0]
    assert monitor.starting(Worker("3", "b")) == 1
    monitor.ready(Worker("3", "b"))
    assert monitor.starting(Worker("4", "b")) == 1
    alive.remove("a")
    assert monitor.starting(Worker("5", "b")) == 0
