"""Faults for real processes: put this folder on PYTHONPATH and name a function in the environment.

`FAULT=package.module:function:n` kills the driver (the first process that sees the variable) and the calling process,
both by SIGKILL, at the n-th call of the function in any one process, before its body runs; once per FAULT_FOLDER.
`FATAL=package.module:function` kills every process that calls the function, each time.
`POISON=id:kind,id:kind` makes every batch with that token id raise, segfault, be killed (as for lack of memory), ask for
most of the memory, or hang with Python's lock held, in whichever process has it.
`SLOW=package.module:function:seconds,..` makes calls of functions longer.
Every call of `pipeline.stages.encode:encode` is counted, in rows, whether or not a fault is set; with `COUNT_BATCHES` every
batch in it, so that rows of a slice that was never finished count too.
"""

import ctypes
import importlib.abc
import importlib.util
import mmap
import os
import signal
import sys
import time

FOLDER = os.environ.get("FAULT_FOLDER", "")
COUNTED = ("pipeline.stages.encode", "encode")


class Hook(importlib.abc.MetaPathFinder):
    """Wraps functions of a module right after the module was executed."""

    def __init__(self, module, wrappers):
        self.module, self.wrappers = module, wrappers

    def find_spec(self, name, path=None, target=None):
        if name != self.module:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        execute = spec.loader.exec_module

        def exec_module(module):
            execute(module)
            for function, wrap in self.wrappers:
                *owner, name = function.split(".")
                home = getattr(module, owner[0]) if owner else module
                setattr(home, name, wrap(getattr(home, name)))

        spec.loader.exec_module = exec_module
        return spec


def killing(nth):
    calls = 0

    def wrap(function):
        def wrapped(*args, **kwargs):
            nonlocal calls
            calls += 1
            if calls == nth and first_to_fire():
                os.kill(int(os.environ["FAULT_DRIVER"]), signal.SIGKILL)
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return wrapped

    return wrap


def slowing(seconds):
    def wrap(function):
        def wrapped(*args, **kwargs):
            time.sleep(seconds)
            return function(*args, **kwargs)

        return wrapped

    return wrap


def fatal(function):
    def wrapped(*args, **kwargs):
        os.kill(os.getpid(), signal.SIGKILL)

    return wrapped


def first_to_fire():
    try:
        os.close(os.open(f"{FOLDER}/fired", os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


def raise_error():
    raise ValueError("poison")


def lose_the_device():
    from pipeline.encoder.engines.base import DeviceLost

    raise DeviceLost("the GPU failed: CUDA error: device-side assert triggered")


def take_most_memory():
    with open("/proc/meminfo") as file:
        free = next(int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable"))
    mmap.mmap(-1, free * 9 // 10, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)  # asked for, not touched


POISON = {
    "raise": raise_error,
    "lost": lose_the_device,
    "segfault": lambda: ctypes.string_at(0),
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "memory": take_most_memory,
    "hang": lambda: ctypes.PyDLL(None).sleep(3600),
}


def poisoned(kinds):
    def wrap(function):
        def wrapped(self, ids, lengths):
            for token, kind in kinds:
                if (ids == int(token)).any():
                    POISON[kind]()
            return function(self, ids, lengths)

        return wrapped

    return wrap


def counting(function):
    def wrapped(row, encoder, settings, name, on_progress=None):
        def progress(rows, tokens):
            count(rows)
            if on_progress is not None:
                on_progress(rows, tokens)

        if os.environ.get("COUNT_BATCHES"):
            return function(row, encoder, settings, name, progress)
        result = function(row, encoder, settings, name, on_progress)
        count(row.column("num_rows")[0].as_py() or 0)
        return result

    return wrapped


def count(rows):
    with open(f"{FOLDER}/encoded", "ab", buffering=0) as file:
        file.write(f"{rows}\n".encode())


if FOLDER:
    os.environ.setdefault("FAULT_DRIVER", str(os.getpid()))
    wrappers = {COUNTED[0]: [(COUNTED[1], counting)]}
    if os.environ.get("FAULT"):
        module, function, nth = os.environ["FAULT"].split(":")
        wrappers.setdefault(module, []).append((function, killing(int(nth))))
    for item in filter(None, os.environ.get("SLOW", "").split(",")):
        module, function, seconds = item.split(":")
        wrappers.setdefault(module, []).append((function, slowing(float(seconds))))
    if os.environ.get("FATAL"):
        module, function = os.environ["FATAL"].split(":")
        wrappers.setdefault(module, []).append((function, fatal))
    if os.environ.get("POISON"):
        kinds = [item.split(":") for item in os.environ["POISON"].split(",")]
        wrappers.setdefault("pipeline.encoder.engines.torch", []).append(("TorchEngine.start", poisoned(kinds)))
        wrappers.setdefault("pipeline.encoder.engines.numpy_bert", []).append(("NumpyEngine.encode", poisoned(kinds)))
        wrappers.setdefault("pipeline.encoder.engines.openvino", []).append(("OpenVinoEngine.encode", poisoned(kinds)))
    for module, chosen in wrappers.items():
        sys.meta_path.insert(0, Hook(module, chosen))
