"""Says at the end of a run how much was compared, and how far the vectors were apart at most."""

import logging
from collections.abc import Iterator
from typing import Any

import pytest

from tests.parity.figures import ALL, COSINES, FIGURES


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if ALL not in FIGURES:
        return
    write = terminalreporter.write_line
    write(f"parity: {FIGURES[ALL].combinations:,} combinations, largest difference {FIGURES[ALL].difference:.1e}")
    for title in ("card", "architecture"):
        for (section, row), figure in sorted(FIGURES.items()):
            if section == title:
                write(f"  {row}: {figure.combinations:,}, {figure.difference:.1e}")
    for (section, row), cosine in sorted(COSINES.items()):
        write(f"  {section} {row}: lowest cosine {cosine:.6f}")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small models are slower on more, and the oracle would take all there are."""
    import torch

    logging.getLogger("sentence_transformers").setLevel(logging.ERROR)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
