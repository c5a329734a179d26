"""What a core that writes can do: slices with vectors in, staged parts and records out, by dtype and encoding.

    python -m benchmarks.writing [--rounds 5] [--dim 384] [--rows 8192] [--profile]

Everything that a writer does is in the figure: the cells of the slice, the columns of the table, sorting, Parquet, the file
and its record on a disk. The texts are titles where `data` has them, else made up; the vectors are means of seeded numbers,
of unit length. One process writes with one thread of Arrow, as a run's writer on one core does.
"""

import argparse
import cProfile
import pstats
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks import corpora, seeded
from pipeline.encoder.tokenizer import Tokenizer
from pipeline.execution.pools import ALONE
from pipeline.runs.prepare import prepare
from pipeline.stages import read, slice_row, write
from pipeline.stages.worker_spec import WorkerSpec
from pipeline.table.quantize import quantize
from tests.inline import spec_of

CASES = (("float32", "plain"), ("float32", "byte_stream_split"), ("float16", "plain"), ("binary", "plain"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=corpora.DATA, help="the folder of the evaluation corpora")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--rows", type=int, default=8192, help="of a slice")
    parser.add_argument("--slices", type=int, default=4, help="written per round")
    parser.add_argument("--profile", action="store_true", help="show where the time goes, instead of rates")
    arguments = parser.parse_args()
    pa.set_cpu_count(1)
    with tempfile.TemporaryDirectory() as name:
        cases = {case: _Case(Path(name) / "-".join(case), *case, arguments) for case in CASES}
        if arguments.profile:
            for case, writer in cases.items():
                _profile(case, writer)
            return
        rates: dict[tuple[str, str], list[float]] = {case: [] for case in cases}
        for number in range(arguments.rounds + 1):
            for case, writer in cases.items():
                seconds, cpu_s = writer.write()
                if number:  # the first is to warm up
                    rates[case].append(writer.rows / cpu_s)
                print(f"{' '.join(case):26} {writer.rows / seconds:>9,.0f} docs/s", flush=True)
        print("| vectors | docs/s of a core, median (min .. max) | us/doc | bytes/doc |\n|---|---|---|---|")
        for case, found in rates.items():
            middle = statistics.median(found)
            print(
                f"| {' '.join(case)} | {middle:,.0f} ({min(found):,.0f} .. {max(found):,.0f}) | {1e6 / middle:.1f} | "
                f"{cases[case].bytes_per_row:,.0f} |"
            )


class _Case:
    """Slices that are ready to be written, and the specification of their writer."""

    def __init__(self, folder: Path, dtype: str, encoding: str, arguments: argparse.Namespace) -> None:
        texts = titles(arguments.data, arguments.rows * arguments.slices)
        corpora.write(corpora.Corpus(name="titles", texts=texts), folder)
        model = seeded.build_static(folder / "model", arguments.dim)
        table = {"dtype": dtype, "encoding": encoding}
        spec = spec_of(f"{folder}/rows", model, f"{folder}/table", table=table, limits={"unit_rows": arguments.rows})
        prepared = prepare(spec, writes=True)
        given = prepared.worker_spec(replace(ALONE, device="cuda"))
        self._spec = replace(given, read=replace(given.read, slice_rows=arguments.rows))
        tokenizer = Tokenizer(given.encode.encoder, 1)
        units = list(prepared.plan.tasks)
        rows = [row for task in units for row in read.read_rows(task, self._spec, tokenizer)]
        chance = np.random.default_rng(0)
        self._slices = [_with_vectors(row, self._spec, dtype, chance) for row in rows]
        self.rows = len(texts)
        self.bytes_per_row = 0.0

    def write(self) -> tuple[float, float]:
        """Return the seconds, and those of the processor, that writing all slices takes."""
        table = self._spec.open_table()
        table.delete([info.path for info in table.list("staging/")])
        started, cpu = time.perf_counter(), time.process_time()
        for row in self._slices:
            write.write_rows(row, self._spec)
        seconds, cpu_s = time.perf_counter() - started, time.process_time() - cpu
        sizes = [info.size for info in table.list("staging/") if info.path.endswith(".parquet")]
        self.bytes_per_row = sum(sizes) / self.rows
        return seconds, cpu_s


def titles(data: Path, count: int) -> list[str]:
    """Return so many titles, each of them another text; made-up ones where `data` has none."""
    source = corpora.SOURCES["arXiv titles"]
    path = data / "corpora" / source.file
    known = source.read(path) if path.is_file() else seeded.texts_of(seeded.lengths_of("news", 20_000, 32), 5000)
    rounds = -(-count // len(known))
    return [text if not number else f"{text} {number}" for number in range(rounds) for text in known][:count]


def _with_vectors(row: pa.Table, spec: WorkerSpec, dtype: str, chance: np.random.Generator) -> pa.Table:
    """Return the slice as an encoder gives it back."""
    count = slice_row.from_cell(row, "documents").num_rows
    vectors = chance.standard_normal((count, spec.encode.encoder.dim)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    codes = np.ascontiguousarray(quantize(vectors, dtype))
    changed: dict[str, Any] = {
        "tokens": pa.nulls(1, pa.large_binary()),
        "vectors": slice_row.cell(pa.py_buffer(codes)),
        "bad_vectors": pa.array([0], pa.int64()),
        "encoder": pa.array(["benchmark"]),
        "engine": pa.array(["none"]),
        "encode_start": pa.array([0.0]),
        "encode_stop": pa.array([1.0]),
    }
    columns = [changed.get(name, row.column(name)) for name in slice_row.FLOW.names]
    return pa.table(columns, schema=slice_row.FLOW)


def _profile(case: tuple[str, str], writer: _Case) -> None:
    writer.write()
    with cProfile.Profile() as profile:
        writer.write()
    print(" ".join(case), f"{writer.rows:,} rows")
    pstats.Stats(profile).sort_stats("tottime").print_stats(14)


if __name__ == "__main__":
    main()
