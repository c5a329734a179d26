"""Where everything of a table stands below its root, as pure path arithmetic. Opens nothing."""

import datetime
import re
import urllib.parse

from pipeline.schema import NULL_PARTITION, UNESCAPED

FORMAT = 1
"""The format of parts, value ranges and int8 models. It is part of each unit's identity: raised, it makes every table new."""

META = "meta/"
VERSIONS = "meta/versions/"
STAGING = "staging/"
RECORDS = "staging/records/"
STAGED_PARTS = "staging/parts/"
PROBES = "staging/probes/"
PUBLICATIONS = "staging/publications/"
CHANGES = "meta/changes/"
DEAD_LETTERS = "meta/dead_letters/"
DATA = "data/"
TRASH = "meta/trash/"
LEASES = "meta/leases/"
PURGES = "meta/leases/purge/"
"""The lease of whoever writes lists anew without purged rows."""
CLEANINGS = "staging/cleanings/"
ROW_SOURCES = "meta/owners/"
REPORTS = "meta/reports/"
"""Reports show ids and texts: a purge deletes all of them."""

PartitionValue = str | int | bool | datetime.date | None
Partition = tuple[tuple[str, PartitionValue], ...]
"""Column name and value of each partition column, in the table's order."""


def snapshot(version: int) -> str:
    return f"{VERSIONS}{version:06d}.json"


def done(version: int) -> str:
    return f"{VERSIONS}{version:06d}.done"


def released(version: int) -> str:
    """Its presence ends the hold that a rolled back version puts on its table."""
    return f"{VERSIONS}{version:06d}.released"


def version_of(path: str) -> int | None:
    """The version whose snapshot `path` is, or None for any other file."""
    match = re.fullmatch(re.escape(VERSIONS) + r"(\d{6,})\.json", path)
    return int(match[1]) if match else None


def lease(number: int, folder: str = LEASES) -> str:
    return f"{folder}{number:06d}.json"


def lease_number(path: str, folder: str = LEASES) -> int | None:
    """None for any other file."""
    match = re.fullmatch(re.escape(folder) + r"(\d{6,})\.json", path)
    return int(match[1]) if match else None


def parts_list(version: int) -> str:
    return f"meta/parts/{version:06d}.parquet"


def sources_list(version: int) -> str:
    return f"meta/sources/{version:06d}.parquet"


def changes(version: int) -> str:
    return f"{CHANGES}{version:06d}/"


def dead_letters(version: int) -> str:
    return f"{DEAD_LETTERS}{version:06d}/"


def report(version: int) -> str:
    return f"{REPORTS}{version:06d}.html"


def version_of_list(path: str) -> int | None:
    """The version whose changes or dead letters a file has, or None for any other file."""
    match = re.match(r"meta/(?:changes|dead_letters)/(\d{6,})/", path)
    return int(match[1]) if match else None


def trash(version: int) -> str:
    return f"{TRASH}{version:06d}/"


def trashed(path: str) -> str:
    """The path in data/ that a file in the trash had."""
    return path.removeprefix(TRASH).partition("/")[2]


def publication(nonce: str) -> str:
    """The lists and merged parts of one attempt to commit, until they are materialised."""
    return f"{PUBLICATIONS}{nonce}/"


def consumed(publication: str) -> str:
    """The list of staged files that a publication's version was made of."""
    return f"{publication}consumed.parquet"


def cleaning(nonce: str) -> str:
    """The list of staged files that a cleaning is about to delete."""
    return f"{CLEANINGS}{nonce}.json"


def row_sources(version: int, index: int, nonce: str) -> str:
    """The list of the row sources of one part that `version` made."""
    return f"{ROW_SOURCES}{version:06d}-{index:05d}-{nonce}.parquet"


def row_sources_version(path: str) -> int | None:
    """The version that made a list of row sources, or None for any other file."""
    match = re.match(re.escape(ROW_SOURCES) + r"(\d{6,})-", path)
    return int(match[1]) if match else None


def publication_of(path: str) -> str | None:
    """The folder of the publication that a staged file belongs to, or None for any other file."""
    match = re.match(re.escape(PUBLICATIONS) + r"[^/]+/", path)
    return match[0] if match else None


def record(unit_id: str, first_row: int) -> str:
    return f"{RECORDS}{unit_id}/{first_row:012d}.json"


def staged_part(unit_id: str, first_row: int, attempt: str, index: int) -> str:
    return f"{STAGED_PARTS}{unit_id}/{first_row:012d}-{attempt}-{index}.parquet"


def staged_dead_letters(unit_id: str, first_row: int, attempt: str) -> str:
    return f"{STAGED_PARTS}{unit_id}/{first_row:012d}-{attempt}.dead"


def staged_unit(path: str) -> str | None:
    """The unit that a record or a staged file belongs to."""
    match = re.match(r"staging/(?:records|parts)/([0-9a-f]+)/", path)
    return match[1] if match else None


def calibration(key: str) -> str:
    """`key` says which configuration measured it before the table's first version, which names the file."""
    return f"meta/calibration/{key}/ranges.json"


def int8_model(key: str) -> str:
    """What is known of the model that is quantised for a table; `key` as in `calibration`."""
    return f"meta/calibration/{key}/int8.json"


def int8_graph(known: str, digest: str) -> str:
    """The quantised model itself, beside the file that names it."""
    return f"{known.removesuffix('.json')}-{digest}.zip"


def probe_vectors(fingerprint: str) -> str:
    return f"{PROBES}{fingerprint}.json"


def data_part(partition: Partition, version: int, index: int, nonce: str) -> str:
    return f"{DATA}{partition_folder(partition)}part-{version:06d}-{index:05d}-{nonce}.parquet"


def version_of_part(path: str) -> int | None:
    """The version that brought a part into data/, or None for a file that isn't named as one."""
    match = re.fullmatch(re.escape(DATA) + r"(?:.*/)?part-(\d{6,})-\d{5,}-[0-9a-f]+\.parquet", path)
    return int(match[1]) if match else None


def partition_folder(partition: Partition) -> str:
    """`key=value/` for each column, the value escaped as Hive does; "" without partition columns."""
    return "".join(f"{name}={partition_text(value)}/" for name, value in partition)


def partition_text(value: PartitionValue) -> str:
    if value is None:
        return NULL_PARTITION
    if isinstance(value, bool):
        return "true" if value else "false"
    return _escape(value.isoformat() if isinstance(value, datetime.date) else str(value))


def _escape(text: str) -> str:
    return urllib.parse.quote(text, safe=UNESCAPED)
