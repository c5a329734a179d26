"""A float32 graph and rows of token ids in, the same graph in int8 out: nncf's post-training quantisation.

The rows say how large activations get; their ids are not kept. Which rows to take, and whether the result is good enough,
is not known here.
"""

import contextlib
import io
import logging
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.encoder.engines.graph import read_graph, save_graph
from pipeline.errors import InputError
from pipeline.machine.folders import temporary_folder

GROUP = 16
"""So many rows of about one length are measured in one batch, cut to the shortest of them. With each row alone, most of the
time went into single calls and into code for each length; the model was no better."""

_NAMES = ("graph.xml", "graph.bin")
_LONG_AGO = (1980, 1, 1, 0, 0, 0)


def quantised(graph: Path, rows: Sequence[NDArray[np.int32]]) -> bytes:
    """The int8 graph as one file's content. `rows`: token ids of the texts that ranges of activations are measured on.

    Raises InputError where nncf can't quantise the architecture.
    """
    with _quiet():
        import nncf

        # nncf.set_log_level would set the handlers too, and those of others among them.
        logging.getLogger("nncf").setLevel(logging.ERROR)
        batches = _batches(rows)
        # Correcting biases took a quarter of the time, and moved no vector of all-MiniLM-L6-v2 by more than 1e-4.
        advanced = nncf.AdvancedQuantizationParameters(disable_bias_correction=True)
        try:
            int8 = nncf.quantize(
                read_graph(graph),
                nncf.Dataset(batches),
                model_type=nncf.ModelType.TRANSFORMER,
                subset_size=len(batches),
                advanced_parameters=advanced,
            )
        except Exception as error:
            raise InputError(
                f"the model can't be quantised to int8: {type(error).__name__}: {' '.join(str(error).split())[:300]}; set "
                "model.precision to float32"
            ) from None
    with temporary_folder() as folder:
        save_graph(int8, folder / _NAMES[0])
        return _packed(folder)


def _batches(rows: Sequence[NDArray[np.int32]]) -> list[list[NDArray[np.int64]]]:
    """Ids and masks of GROUP rows each; padding would be measured with the texts. A row that is cut keeps its last token,
    which ends every text."""
    ordered, batches = sorted(rows, key=len), []
    for start in range(0, len(ordered), GROUP):
        group = ordered[start : start + GROUP]
        width = len(group[0])
        ids = np.stack([np.append(row[: width - 1], row[-1]) for row in group]).astype(np.int64)
        batches.append([ids, np.ones_like(ids)])
    return batches


def _packed(folder: Path) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:  # stored: weights hardly compress
        for name in _NAMES:
            archive.writestr(zipfile.ZipInfo(name, _LONG_AGO), (folder / name).read_bytes())
    return content.getvalue()


def unpack(content: bytes, folder: Path) -> None:
    """Write the graph's files into a folder."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        for name in _NAMES:
            (folder / name).write_bytes(archive.read(name))


def graph_file(folder: Path) -> Path:
    """The path of the graph in a folder that `unpack` filled."""
    return folder / _NAMES[0]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """nncf draws progress bars on stdout, where --json prints, and warns of the torch that it doesn't use here."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
