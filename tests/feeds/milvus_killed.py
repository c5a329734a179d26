"""A feeder that is killed the moment the server has taken a call: `python -m tests.feeds.milvus_killed URL FOLDER METHOD`.

It loads or changes the generation docs__g1_a as test_milvus.py expects it, and ends itself by SIGKILL after the call.
"""

import os
import signal
import sys
from typing import Any

from pipeline.feed_spec import FeedSpec
from pipeline.feeds.milvus import MilvusStore
from tests.feeds.rows import marker_of, rows_of, shape_of


def main(url: str, folder: str, method: str) -> None:
    options = {"import_folder": folder} if folder else {}
    store = MilvusStore(FeedSpec(store="milvus", url=url, name="docs", options=options))
    call = store._server.called

    def called(name: str, request: Any) -> Any:
        found = call(name, request)
        if name == method:
            os.kill(os.getpid(), signal.SIGKILL)
        return found

    store._server.called = called  # type: ignore[method-assign]
    shape = shape_of()
    begun, done = marker_of(shape, "docs__g1_a", target=1), marker_of(shape, "docs__g1_a", applied=1)
    if folder:
        store.create(shape, begun)
        loader = store.loader("docs__g1_a", shape)
        receipts = [
            loader.load(f"u{number}", [rows_of(shape, range(9 * number, 9 * number + 9))]).receipt for number in (0, 1)
        ]
        store.finish_load(shape, begun, done, [str(receipt) for receipt in receipts])
    else:
        changing = marker_of(shape, "docs__g1_a", 1, 2)
        store.mark(changing, done)
        with store.delta(shape, changing, marker_of(shape, "docs__g1_a", 2)) as delta:
            delta.upsert(rows_of(shape, range(5, 25), seed=1))


if __name__ == "__main__":
    main(*sys.argv[1:])
