"""An engine that gives vectors at a set rate and takes no processor for it, in place of a model's: for benchmarks alone.

With this folder on PYTHONPATH and `METRONOME=rows per second:folder` in the environment, every encoder that a process of a
run builds is such a one. Each writes into a file of the folder, batch by batch, when it began, when it ended, and how many
rows it took. It stands for a GPU: what lies between two batches is the time in which a GPU would have waited.
"""

import importlib.abc
import importlib.util
import os
import sys
import time

GIVEN = os.environ.get("METRONOME", "")
BATCH_TOKENS = 65536


class Hook(importlib.abc.MetaPathFinder):
    """It changes a module right after it was executed."""

    def __init__(self, module, change):
        self._module, self._change = module, change

    def find_spec(self, name, path=None, target=None):
        if name != self._module:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        execute = spec.loader.exec_module

        def exec_module(module):
            execute(module)
            self._change(module)

        spec.loader.exec_module = exec_module
        return spec


def in_place_of_engines(encoder):
    """What builds encoders gives them a metronome."""
    encoder.build_encoder = lambda spec, device, threads, **_: encoder.Encoder(Metronome(spec.dim), BATCH_TOKENS)


def as_beside_a_gpu(pools):
    """An encoder has as many slices in hand as one of a GPU."""
    gpu = pools.replace(pools.ALONE, device="cuda")
    pools.Pools.slices_at_once = gpu.slices_at_once


class Metronome:
    """It implements engines.base.StreamingEngine, as engines of GPUs do: a batch can be started while another is in work."""

    name = "metronome"
    in_flight = 3

    def __init__(self, dim):
        import numpy as np

        rate, _, folder = GIVEN.partition(":")
        self.dim = dim
        self._rate = float(rate)
        self._free = 0.0
        self._vectors = np.random.default_rng(0).standard_normal((65536, dim), np.float32)
        self._told = open(os.path.join(folder, f"{os.getpid()}.beats"), "a", buffering=1)  # noqa: SIM115

    def encode(self, ids, lengths):
        return self.start(ids, lengths)()

    def start(self, ids, lengths):
        began = max(time.time(), self._free)
        ends = self._free = began + len(lengths) / self._rate

        def answer():
            time.sleep(max(0.0, ends - time.time()))
            self._told.write(f"{began!r} {ends!r} {len(lengths)}\n")
            return self._vectors[: len(lengths)]

        return answer


if GIVEN:
    sys.meta_path.insert(0, Hook("pipeline.encoder.encoder", in_place_of_engines))
    sys.meta_path.insert(0, Hook("pipeline.execution.pools", as_beside_a_gpu))
