"""How `auto` is filled in, and what is refused because Ray would wait for it for ever."""

from dataclasses import replace

import pytest

from pipeline.config import ResourceSpec
from pipeline.errors import ConfigError
from pipeline.execution.pools import ALONE, Load, choose_pools
from pipeline.stages.flow import EMBED, MEASURE

LAPTOP = [{"CPU": 3.0}]
"""Two cores and the logical CPU that a local Ray gets on top."""
GPU_NODES = [{"CPU": 16.0, "GPU": 4.0}, {"CPU": 16.0, "GPU": 4.0}, {"CPU": 8.0}]


def test_two_cores_become_two_encoders():
    pools = choose_pools(ResourceSpec(), LAPTOP)
    assert (pools.device, pools.encoders, pools.cpus_per_encoder) == ("cpu", 2, 1)
    assert pools.cpus_per_task * (pools.tokenizers + pools.writers) <= 1


def test_gpus_are_taken_where_there_are_any():
    pools = choose_pools(ResourceSpec(), GPU_NODES)
    assert (pools.device, pools.encoders, pools.gpus_per_encoder, pools.cpus_per_encoder) == ("cuda", 8, 1.0, 1)
    assert pools.tokenizers > 8
    assert 8 + pools.cpus_per_task * (pools.tokenizers + pools.writers) <= 40


def test_a_slice_is_prepared_beside_another_where_that_takes_no_core_of_the_engine():
    assert choose_pools(ResourceSpec(), GPU_NODES).slices_at_once == 2
    assert choose_pools(ResourceSpec(), LAPTOP).slices_at_once == 1


@pytest.mark.parametrize(
    ("share", "encoders"), [(0.5, 16), (0.25, 32), (0.3, 24), (0.1, 32), (0.7, 8), (1, 8), (2, 4), (3, 2), (4, 2)]
)
def test_a_share_is_of_one_gpu_and_more_are_of_one_node(share, encoders):
    assert choose_pools(ResourceSpec(gpus_per_encoder=share), GPU_NODES).encoders == encoders


def test_gpus_can_be_left_alone():
    pools = choose_pools(ResourceSpec(gpus_per_encoder=0), GPU_NODES)
    assert (pools.device, pools.encoders) == ("cpu", 39)


@pytest.mark.parametrize("cpus", range(2, 70))
def test_whatever_the_size_every_stage_fits_beside_the_encoders(cpus):
    pools = choose_pools(ResourceSpec(), [{"CPU": float(cpus)}])
    assert pools.encoders * pools.cpus_per_encoder < cpus
    assert pools.cpus_per_task > 0
    assert pools.encoders * pools.cpus_per_encoder + pools.cpus_per_task * (pools.tokenizers + pools.writers) <= cpus


@pytest.mark.parametrize("cpus", range(3, 20))
def test_reading_never_looks_like_encoding(cpus):
    """Ray would fuse them: test_dataflow.py."""
    pools = choose_pools(ResourceSpec(encoders=1), [{"CPU": float(cpus)}])
    assert pools.tokenizers == pools.encoders
    assert pools.cpus_per_task < pools.cpus_per_encoder


@pytest.mark.parametrize(
    ("spec", "nodes"),
    [
        (ResourceSpec(encoders=3, cpus_per_encoder=1), LAPTOP),
        (ResourceSpec(encoders=1, cpus_per_encoder=3), LAPTOP),
        (ResourceSpec(gpus_per_encoder=1), LAPTOP),
        (ResourceSpec(encoders=9), GPU_NODES),
        (ResourceSpec(cpus_per_encoder=20), GPU_NODES),
        (ResourceSpec(encoders=1), [{"CPU": 1.0}]),
    ],
)
def test_what_the_cluster_cannot_give_is_an_error(spec, nodes):
    with pytest.raises(ConfigError, match="resources ask for"):
        choose_pools(spec, nodes)


def test_auto_on_a_cluster_without_room_is_an_error_too():
    with pytest.raises(ConfigError, match="have room for 0"):
        choose_pools(ResourceSpec(), [{"CPU": 1.0}])


@pytest.mark.parametrize(
    ("most", "tasks", "encoders"), [(None, 1, 64), (None, 100, 64), (4, 100, 4), (4, 3, 3), (4, 0, 1), (100, 100, 64)]
)
def test_few_encoders_start_for_a_sample(most, tasks, encoders):
    assert MEASURE.most_encoders == 4
    assert EMBED.most_encoders is None
    assert replace(ALONE, encoders=64).at_most(most, tasks).encoders == encoders


TITLES = Load(tokens=16, weights=10_616_832, vector_bytes=1536)
"""They are short texts for a small transformer of 384 dimensions, as float32."""
PAGES = Load(tokens=256, weights=302_000_000, vector_bytes=4096)
"""They are long texts for a large transformer of 1,024 dimensions."""
SIZES = [(gpus, cores) for gpus in (1, 2, 8) for cores in (16, 32, 64, 128, 192)]


@pytest.mark.parametrize(
    ("gpus", "cores", "titles", "pages"),
    [
        (1, 16, (14, 1), (1, 1)),
        (1, 32, (16, 2), (1, 1)),
        (1, 64, (16, 2), (1, 1)),
        (1, 128, (16, 2), (1, 1)),
        (1, 192, (16, 2), (1, 1)),
        (2, 16, (13, 1), (2, 1)),
        (2, 32, (27, 3), (2, 1)),
        (2, 64, (31, 4), (2, 1)),
        (2, 128, (31, 4), (2, 1)),
        (2, 192, (31, 4), (2, 1)),
        (8, 16, (7, 1), (5, 1)),
        (8, 32, (22, 2), (5, 1)),
        (8, 64, (51, 5), (5, 1)),
        (8, 128, (109, 11), (5, 1)),
        (8, 192, (121, 13), (5, 1)),
    ],
)
def test_workers_around_gpus_are_as_many_as_the_gpus_keep_busy(gpus, cores, titles, pages):
    for load, expected in ((TITLES, titles), (PAGES, pages)):
        pools = choose_pools(ResourceSpec(), [{"CPU": float(cores), "GPU": float(gpus)}], 0, load)
        assert pools.encoders == gpus
        assert (pools.tokenizers, pools.writers) == expected


@pytest.mark.parametrize(("gpus", "cores"), SIZES)
@pytest.mark.parametrize("share", [1, 0.5])
@pytest.mark.parametrize("load", [TITLES, PAGES, Load(), Load(tokens=8, vector_bytes=16_384), Load(vector_bytes=16)])
def test_neither_reading_nor_writing_starves_a_gpu_while_cores_are_left(gpus, cores, share, load):
    pools = choose_pools(ResourceSpec(gpus_per_encoder=share), [{"CPU": float(cores), "GPU": float(gpus)}], 0, load)
    spare = cores - pools.encoders
    workers = {"read": (pools.tokenizers, load.read_s), "write": (pools.writers, load.write_s)}
    assert sum(count for count, _ in workers.values()) <= max(2, spare)
    given = gpus * load.gpu_rows_per_s
    for count, seconds in workers.values():
        others = sum(other for other, _ in workers.values()) - count
        # It keeps up, or one worker more would be one too many, or take one from a kind that is as scarce.
        assert count / seconds >= given or count + others >= spare
    read, write = (count / seconds for count, seconds in workers.values())
    if min(read, write) < given:
        slower, faster = sorted(workers.values(), key=lambda one: one[0] / one[1])
        assert (slower[0] + 1) / slower[1] >= (faster[0] - 1) / faster[1]


def test_more_bytes_need_more_writers_and_more_tokens_more_tokenizers():
    def pools(load):
        return choose_pools(ResourceSpec(), [{"CPU": 192.0, "GPU": 8.0}], 0, load)

    assert pools(Load(vector_bytes=16_384)).writers > pools(Load(vector_bytes=1536)).writers
    # As many tokens are fewer rows, so that fewer are written.
    assert pools(Load(tokens=512)).writers < pools(Load(tokens=16)).writers
    assert pools(Load(weights=302_000_000)).tokenizers < pools(Load()).tokenizers


@pytest.mark.parametrize(
    ("cores", "tokenizers", "writers"), [(2, 1, 1), (8, 1, 2), (16, 1, 4), (64, 4, 16), (128, 8, 32), (192, 12, 48)]
)
@pytest.mark.parametrize("load", [TITLES, PAGES])
def test_workers_around_cpu_encoders_go_by_their_number(cores, tokenizers, writers, load):
    pools = choose_pools(ResourceSpec(), [{"CPU": cores + 1.0}], 0, load)
    assert (pools.encoders, pools.tokenizers, pools.writers) == (cores, tokenizers, writers)


def test_a_number_that_is_given_is_taken_as_it_is():
    pools = choose_pools(ResourceSpec(tokenizers=3, writers=5), [{"CPU": 64.0, "GPU": 8.0}], 0, TITLES)
    assert (pools.tokenizers, pools.writers) == (3, 5)
