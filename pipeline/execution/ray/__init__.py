"""All of Ray stands in this package, and nothing outside it imports Ray.

Importing this package alone does not import Ray either. Ray reads its environment when it is imported, and its
workers inherit it, so these lines run before any file of the package.
"""

import os

# Ray does not phone home, shows no progress bars of its own, and starts no metrics agent.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("RAY_enable_metrics_collection", "0")
# Workers are as important as whatever else runs here. Ray would let them wait for everything (nice 15).
os.environ.setdefault("RAY_worker_niceness", "0")
# Ray Data makes actors in a way that Ray reports as an error on stderr (ray-project/ray#53727).
os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
# A driver started by `uv run` would make every worker start through uv.
os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
