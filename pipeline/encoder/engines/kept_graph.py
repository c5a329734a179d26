"""A model in, the file of its float32 graph on this node out: made and proven once, then kept."""

import hashlib
import json
from importlib.metadata import version
from pathlib import Path

from pipeline.encoder.engines.graph import Unsupported
from pipeline.model.cache import is_kept, kept
from pipeline.model.folder import EncoderSpec

FORMAT = 4
"""Raised when a graph is made otherwise: graphs that are kept on nodes are then made anew."""
PROOF_WIDTH = 512
"""Tokens in a row of the widest batch that a graph is proven with."""

_NAME, _REFUSED = "graph.xml", "unsupported"


def is_made(spec: EncoderSpec, *, token_types: bool) -> bool:
    """Whether there is a graph on this node, made and proven before. A model that has none for good has been refused."""
    if not is_kept("graphs", _key(spec, token_types, _width(spec))):
        return False
    try:
        float32_graph(spec, token_types=token_types)
    except Unsupported:
        return False
    return True


def float32_graph(spec: EncoderSpec, *, token_types: bool) -> Path:
    """The file of the model's float32 graph on this node, made and proven by now or by this call.

    `token_types`: as in TorchEngine. Raises Unsupported where torch and the graph don't agree, InputError where the model
    doesn't load.
    """
    if spec.needs_all_layers:
        raise Unsupported("a module reads the token vectors of all layers")
    width = _width(spec)

    def make(folder: Path) -> None:
        # torch and transformers load only where there is no graph yet.
        from pipeline.encoder.engines.tracing import trace

        try:
            trace(spec, folder / _NAME, token_types=token_types, width=width)
        except Unsupported as reason:  # kept, too: finding out takes seconds
            (folder / _REFUSED).write_text(str(reason), encoding="utf-8")

    folder = kept("graphs", _key(spec, token_types, width), make)
    if (folder / _REFUSED).exists():
        raise Unsupported((folder / _REFUSED).read_text(encoding="utf-8"))
    return folder / _NAME


def _width(spec: EncoderSpec) -> int:
    return min(spec.max_seq_length or PROOF_WIDTH, PROOF_WIDTH)


def _key(spec: EncoderSpec, token_types: bool, width: int) -> str:
    content = {
        "format": FORMAT,
        "model": spec.origin.digest,
        "transformer": spec.transformer,
        "width": width,
        "token_types": token_types,
        "versions": [version(package) for package in ("openvino", "transformers", "torch")],
    }
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:32]
