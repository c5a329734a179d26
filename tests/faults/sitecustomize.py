"""Faults for real processes: put this folder on PYTHONPATH and name a function in the environment.

`FAULT=package.module:function:n` kills the driver (the first process that sees the variable) and the calling process,
both by SIGKILL, at the n-th call of the function in any one process, before its body runs; once per FAULT_FOLDER.
Every call of `pipeline.stages:encode` is counted there too, in rows, whether or not a fault is set.
"""

import importlib.abc
import importlib.util
import os
import signal
import sys

FOLDER = os.environ.get("FAULT_FOLDER", "")
COUNTED = ("pipeline.stages", "encode")


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
                setattr(module, function, wrap(getattr(module, function)))

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


def first_to_fire():
    try:
        os.close(os.open(f"{FOLDER}/fired", os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


def counting(function):
    def wrapped(row, *args, **kwargs):
        result = function(row, *args, **kwargs)
        with open(f"{FOLDER}/encoded", "ab", buffering=0) as file:
            file.write(f"{row.column('num_rows')[0].as_py() or 0}\n".encode())
        return result

    return wrapped


if FOLDER:
    os.environ.setdefault("FAULT_DRIVER", str(os.getpid()))
    wrappers = {COUNTED[0]: [(COUNTED[1], counting)]}
    if os.environ.get("FAULT"):
        module, function, nth = os.environ["FAULT"].split(":")
        wrappers.setdefault(module, []).append((function, killing(int(nth))))
    for module, chosen in wrappers.items():
        sys.meta_path.insert(0, Hook(module, chosen))
