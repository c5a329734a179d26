"""Documents that were embedded have a configuration beside them, and a command that is given them means it.

What a person gave a command comes in. The configuration that was written for it goes out, or a piece of a message that says
which one was looked for. What the configuration says of anything but its source does not matter here.
"""

import os
from collections.abc import Mapping

from pipeline.config import SourceSpec
from pipeline.errors import InputError, PipelineError
from pipeline.runs.first_spec import absolute, content_of, place_of


def configuration_of(given: str) -> str | None:
    """Return the configuration that was written for a source, or None where none stands beside it."""
    try:
        place, source = place_of(given), SourceSpec(path=absolute(given), text="text")
        said = content_of(place)
        read = said.get("source") if isinstance(said, Mapping) else None
        path = read.get("path") if isinstance(read, Mapping) else None
        found = SourceSpec(path=path if isinstance(path, str) else tuple(path or ()), text="text").patterns
    except (PipelineError, TypeError):  # The source has no name, or the file says nothing of a source.
        return None
    return place if found == source.patterns else None


def meant(given: str) -> str:
    """Ask for a message whether the configuration was meant that stands where that of such documents would; "" where there is
    none."""
    try:
        place = place_of(given)
    except InputError:  # The source has no name.
        return ""
    return f" (did you mean {place!r}?)" if os.path.isfile(place) else ""


def looked_for(given: str) -> str:
    """Say for a message which configuration of documents was looked for; "" where there can be none."""
    try:
        return meant(given) or f", and no configuration {place_of(given)!r} is there"
    except InputError:
        return ""
