"""An engine in a process of its own: the same vectors, and a row that ends or hangs the process costs itself."""

import pickle
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from pipeline.config import ModelSpec
from pipeline.encoder.encoder import Encoder, build_encoder
from pipeline.encoder.isolated import IsolatedEngine
from pipeline.encoder.tokenizer import Tokenizer
from pipeline.model.folder import encoder_spec
from tests.faulty import ROOT, environment

TEXTS = ["oil price", "the world", "中", "a team won", "new game"]
POISONED = 2
REASONS = {
    "raise": "ValueError: poison",
    "segfault": "was ended by SIGSEGV",
    "lost": "lost its device: the GPU failed",
    "kill": "was ended by SIGKILL, most often for lack of memory",
    "memory": "Cannot allocate memory",
    "hang": r"gave no answer for 20 s \(limits.unit_timeout_s\)",
}


@pytest.fixture(scope="module")
def spec(tiny_model):
    return encoder_spec(ModelSpec(path=str(tiny_model)))


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize("kind", REASONS)
def test_a_poison_row_fails_and_all_others_have_their_vectors(spec, kind, tmp_path, monkeypatch):
    tokens = Tokenizer(spec, 1).tokenize(TEXTS)
    monkeypatch.syspath_prepend(str(ROOT / "tests" / "faults"))
    monkeypatch.setenv("FAULT_FOLDER", str(tmp_path))
    monkeypatch.setenv("POISON", f"{token_of(tokens)}:{kind}")
    with IsolatedEngine(spec, "cpu", 1, timeout_s=20) as engine:
        encoded = Encoder(engine, 1000).encode(tokens)
    assert list(encoded.failed) == [POISONED]
    assert (kind in ("raise", "memory")) == ("with no other row in work" not in encoded.failed[POISONED])
    assert re.search(REASONS[kind], encoded.failed[POISONED]), encoded.failed
    expected = build_encoder(spec, "cpu", 1).encode(tokens).vectors
    good = [row for row in range(len(TEXTS)) if row != POISONED]
    np.testing.assert_allclose(encoded.vectors[good], expected[good], atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("at_work", [False, True])
def test_the_child_ends_with_its_parent(at_work, spec, tmp_path):
    """Even by SIGKILL, and in the middle of a batch: an encoder that Ray ends must leave nothing behind on its GPU."""
    program = (
        "import pickle, sys, time, numpy; from pipeline.encoder.isolated import IsolatedEngine\n"
        "engine = IsolatedEngine(pickle.load(sys.stdin.buffer), 'cpu', 1, 60); engine._child = engine._started()\n"
        "print(engine._child._process.pid, flush=True)\n"
        f"time.sleep(60) if not {at_work} else engine.encode(numpy.ones((1, 3), 'int32'), numpy.array([3], 'int32'))"
    )
    slow = environment(tmp_path, SLOW="pipeline.encoder.engines.torch:TorchEngine.start:60")
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, cwd=ROOT, env=slow, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        parent.stdin.write(pickle.dumps(spec))
        parent.stdin.close()
        child = int(parent.stdout.readline())
        time.sleep(1)  # it is in the batch then
        assert is_running(child)
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    until = time.monotonic() + 10
    while is_running(child) and time.monotonic() < until:
        time.sleep(0.05)
    assert not is_running(child)


def token_of(tokens) -> int:
    first, stop = tokens.offsets[POISONED], tokens.offsets[POISONED + 1]
    return int(tokens.ids[first:stop][1])


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
