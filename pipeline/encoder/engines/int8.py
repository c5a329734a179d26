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
        samples = nncf.Dataset([[row[None].astype(np.int64), np.ones((1, len(row)), np.int64)] for row in rows])
        try:
            int8 = nncf.quantize(
                read_graph(graph), samples, model_type=nncf.ModelType.TRANSFORMER, subset_size=len(rows)
            )
        except Exception as error:
            raise InputError(
                f"the model can't be quantised to int8: {type(error).__name__}: {' '.join(str(error).split())[:300]}; set "
                "model.precision to float32"
            ) from None
    with temporary_folder() as folder:
        save_graph(int8, folder / _NAMES[0])
        return _packed(folder)


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
