"""Thresholds in seconds say when a cluster is worth its start.

Every threshold between this process and a cluster stands here. The rates are rough: they choose who works, never what
comes out.
"""

CLUSTER_START_S = 4.0
"""A local Ray takes about so long until its first worker works, one that needs no model. Less work than that is done in this
process."""
LOCAL_ENCODING_S = 120.0
"""Encoding that is expected to take less is done by processes of this machine. Ray would add ten seconds to the start, a
tenth to the processor time of two cores, and its memory."""
ENCODER_START_S = 5.0
"""A process that encodes takes about so long to load torch and a model. A second one must have more to do than that."""

LIGHT_THREADS = 8
"""An encoder without torch uses at most so many cores: it computes a batch on each, and Python stands between them."""
LIGHT_S = 6.0
"""Encoding that torch would do in less, on these cores, is done without torch. That takes a third longer and starts at
once."""

NUMPY_CORE_S = 1.5
"""Encoding that torch would do on one core in less is left to numpy, though the node has the model's graph: OpenVINO is some
times faster, and takes a second longer to start."""

READ_ROWS_PER_S = 50_000
"""A process reads and hashes so many source rows a second."""
SCAN_ROWS_PER_S = 500_000
"""A process looks through the keys of so many live rows a second."""
REWRITE_BYTES_PER_S = 128 * 2**20
"""A process rewrites parts at so many bytes a second, as they are in memory."""

KEYS_HERE = 2_000_000
"""The driver holds the keys of so many rows at most, at 57 bytes each. More keys meet in the cluster's shuffle."""

SEND_ROWS_HERE = 200_000
"""The driver's threads send so many rows to a store before a cluster, where there is one, is worth its start."""

GPU_FLOPS = 100e12
"""A GPU computes so many operations a second inside a transformer in half precision. It is a guess, since nothing was run on
a GPU."""
GPU_TOKENS_PER_S = 3_200_000
"""A GPU takes no more tokens a second, however small the model: what stands around the matrix products takes its time."""
TOKENIZE_TOKENS_PER_S = 400_000
"""A core makes so many tokens a second of text."""
WRITE_BYTES_PER_S = 375e6
"""A core writes so many bytes of vectors a second, as they are in memory. It was measured by benchmarks/writing.py: 159,000
rows of 384 float32 numbers a second, and 450,000 rows of 384 bits."""
WRITE_ROW_S = 2.1e-6
"""A core writes the other columns of a row in so many seconds."""
FEEDING_SPARE = 1.25
"""Workers that feed GPUs and take vectors from them could do so many times what the GPUs give, since a GPU that waits costs
more than a core that does."""

TOKENS_GUESSED = 64
"""A document counts as so many tokens, a short paragraph, when nothing is known of it."""
FLOPS_PER_CORE = 70e9
"""A core computes so many float32 operations a second inside a transformer. A Zen 4 core at 2.6 GHz has 60 to 100e9."""
INT8_TIMES = 2.5
"""In int8 a core computes so many times that. It was 2.5 to 3.3 times on an AMD EPYC and an Intel Xeon."""


PROCESS_BYTES = 512 * 2**20
"""A process that encodes holds about so many bytes beside its model: torch and a batch of 4096 tokens at work. It was 450
MB with MiniLM-L6."""


def encoder_bytes(model_bytes: int) -> int:
    """Return the bytes of memory of a process that encodes. While it loads, the weights are there twice."""
    return PROCESS_BYTES + 2 * model_bytes


def encoding_s(tokens: float, weights: int, *, int8: bool = False) -> float:
    """Return the seconds of a core for so many tokens. Each token takes two operations per weight."""
    return tokens * 2 * weights / (FLOPS_PER_CORE * (INT8_TIMES if int8 else 1))
