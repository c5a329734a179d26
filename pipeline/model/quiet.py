"""Loading with transformers without a word on stderr: no progress bars, no advice."""

import contextlib
from collections.abc import Iterator


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Errors only while it lasts; the settings are put back at the end."""
    from transformers.utils import logging  # not before: it takes half a second, in processes that load nothing too

    verbosity = logging.get_verbosity()
    bars = logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
