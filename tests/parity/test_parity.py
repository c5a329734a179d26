"""Every setting of the format with every other: tokens exact, vectors to 1e-5, in every composition of batches.

Two ways. A drawn part is proven on whole folders, which both sides load and run from first to last. All combinations are
proven on folders whose transformer is kept (tests/parity/kept.py): both sides read the folder, load and run all else.
"""

import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor

import pytest

from tests.architectures import ARCHITECTURE_NAMES
from tests.parity import figures
from tests.parity.combinations import FAST, SharedTransformer, sample
from tests.parity.proofs import (
    prepare_process,
    prove_architecture,
    prove_kept,
    prove_share,
    prove_whole_folders,
    seed_of,
    shared_transformer,
)

SHARES = 8
Submit = Callable[..., "Future[figures.Recorded]"]


@pytest.fixture(scope="module")
def shared(tmp_path_factory) -> Callable[[str], SharedTransformer]:
    """model_type -> its saved transformer."""
    built: dict[str, SharedTransformer] = {}

    def get(model_type: str) -> SharedTransformer:
        if model_type not in built:
            built[model_type] = shared_transformer(model_type, tmp_path_factory.mktemp(model_type))
        return built[model_type]

    return get


@pytest.mark.parametrize("model_type", FAST)
def test_whole_folders(shared, tmp_path, model_type):
    prove_whole_folders(shared(model_type), model_type, sample(8, seed_of(model_type)), tmp_path)


@pytest.mark.parametrize("model_type", FAST)
def test_a_sample_of_all_combinations(shared, tmp_path, monkeypatch, model_type):
    monkeypatch.setenv("XDG_CACHE_HOME", os.devnull)  # as in proofs.prepare_process
    prove_kept(shared(model_type), model_type, sample(32, seed_of(model_type) + 1), tmp_path / "kept")


@pytest.fixture(scope="module")
def proofs(request, tmp_path_factory) -> "Iterator[dict[str | int, Future[figures.Recorded]]]":
    """The slow proofs that are selected, all begun at once, on all cores."""
    context = multiprocessing.get_context("spawn")
    selected = [item for item in request.session.items if "proofs" in item.fixturenames]
    with ProcessPoolExecutor(os.cpu_count(), context, prepare_process) as pool:
        begun: dict[str | int, Future[figures.Recorded]] = {}
        for item in selected:
            ((_, value),) = item.callspec.params.items()
            place = str(tmp_path_factory.mktemp("proof"))
            if isinstance(value, int):
                begun[value] = pool.submit(prove_share, value, SHARES, place)
            else:
                begun[value] = pool.submit(prove_architecture, value, place)
        yield begun
        for future in begun.values():
            future.cancel()


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("share", range(SHARES))
def test_all_combinations(proofs, share):
    figures.merge(proofs[share].result())


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("model_type", ARCHITECTURE_NAMES)
def test_every_architecture(proofs, model_type):
    figures.merge(proofs[model_type].result())
