"""How much arithmetic an encoder's tokens take, and how fast this machine can do it.

The ceiling is a large matrix product by the fastest kernel at hand: float32 by torch's own (MKL) or oneDNN's packed linear,
int8 by OpenVINO, whose int8 kernels the int8 engine runs on.
"""

import functools
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

SHAPES = ((1024, 1536, 1536), (1024, 4096, 4096), (2048, 2048, 2048))
"""(rows, inner, columns): none is best everywhere."""
MEASURE_S = 0.25


def flops_of(lengths: Sequence[int], model: Path) -> float:
    """Multiplications and additions in the matrix products of a BERT-like encoder over rows of so many tokens, unpadded.

    A layer's weights are 4 h^2 (query, key, value, output) and 2 h i (the two of the feed-forward part; i = 4 h makes 12 h^2
    in all), each of which a token meets once: 2 operations. Scores and their weighted sum are 4 * length * h more per token.
    """
    config = json.loads((model / "config.json").read_text())
    layers, hidden, inner = config["num_hidden_layers"], config["hidden_size"], config["intermediate_size"]
    tokens = np.asarray(lengths, np.float64)
    weights = 2 * (4 * hidden**2 + 2 * hidden * inner)
    return float(layers * (weights * tokens.sum() + 4 * hidden * (tokens**2).sum()))


def float32_products(threads: int) -> dict[str, Callable[[], object]]:
    """What to run and time, by name `<kernel> <shape>`."""
    import torch

    torch.set_num_threads(threads)
    products: dict[str, Callable[[], object]] = {}
    for rows, inner, columns in SHAPES:
        left, right = torch.randn(rows, inner), torch.randn(columns, inner)
        products[f"torch {rows}x{inner}x{columns}"] = functools.partial(torch.matmul, left, right.T)
        try:
            packed = torch.ops.mkldnn._reorder_linear_weight(right, rows)
        except (AttributeError, RuntimeError):  # not in this build, or not for this processor
            continue
        products[f"oneDNN {rows}x{inner}x{columns}"] = functools.partial(
            torch.ops.mkldnn._linear_pointwise, left, packed, None, "none", [], ""
        )
    return products


def int8_products(threads: int) -> dict[str, Callable[[], object]]:
    """The same with 8-bit integers; the product's float32 input is rounded on the way, as it is inside a model."""
    import openvino
    from openvino import opset13 as ops

    chance, products = np.random.default_rng(0), {}
    properties = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    core = openvino.Core()
    bounds = [np.array(value, np.float32) for value in (-4, 4, -4, 4)]
    for rows, inner, columns in SHAPES:
        weights = np.clip(np.round(chance.standard_normal((columns, inner)) * 127 / 4), -127, 127).astype(np.int8)
        scale = ops.constant(np.full((columns, 1), 4 / 127, np.float32))
        left = ops.parameter([rows, inner], np.float32)
        right = ops.multiply(ops.convert(ops.constant(weights), np.float32), scale)
        product = ops.matmul(ops.fake_quantize(left, *bounds, 256), right, False, True)
        compiled = core.compile_model(openvino.Model([ops.result(product)], [left]), "CPU", properties)
        request = compiled.create_infer_request()
        request.set_input_tensor(openvino.Tensor(chance.standard_normal((rows, inner)).astype(np.float32)))
        products[f"OpenVINO {rows}x{inner}x{columns}"] = request.infer
    return products


PRODUCTS = {"float32": float32_products, "int8": int8_products}


def rates(products: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Operations per second of each."""
    return {name: _rate(name, run) for name, run in products.items()}


def _rate(name: str, run: Callable[[], object]) -> float:
    rows, inner, columns = map(int, name.split()[1].split("x"))
    run()
    done, started = 0, time.perf_counter()
    while (seconds := time.perf_counter() - started) < MEASURE_S:
        run()
        done += 1
    return 2.0 * rows * inner * columns * done / seconds
