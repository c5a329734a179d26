"""How `auto` is filled in, and what is refused because Ray would wait for it for ever."""

from dataclasses import replace

import pytest

from pipeline.config import ResourceSpec
from pipeline.errors import ConfigError
from pipeline.execution.pools import ALONE, choose_pools
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
