"""Lakehouse tables are never read as plain files, and say what they need."""

import subprocess
import sys
from pathlib import Path

import fsspec
import pyarrow.parquet as pq
import pytest
from deltalake import write_deltalake
from pyiceberg.catalog.sql import SqlCatalog

from pipeline.errors import ConfigError, InputError
from pipeline.sources.listing import find_sources
from tests.lakes import catalog_at, documents, rows_of, spec_of, texts_of
from tests.servers import S3Server


@pytest.fixture
def lake(tmp_path: Path) -> Path:
    """A folder with a table of each kind, and a plain file."""
    write_deltalake(tmp_path / "delta", documents(1, 2, lang=["a", "b"]), partition_by=["lang"])
    table = catalog_at(tmp_path / "warehouse").create_table("lake.ice", schema=documents(1).schema)
    table.append(documents(1))
    (tmp_path / "hudi" / ".hoodie").mkdir(parents=True)
    (tmp_path / "hudi" / "day=1").mkdir()
    pq.write_table(documents(1), tmp_path / "hudi" / "day=1" / "a.parquet")
    (tmp_path / "plain" / "metadata").mkdir(parents=True)
    (tmp_path / "plain" / "metadata" / "notes.jsonl").write_text('{"id": "x", "text": "a note"}\n')
    pq.write_table(documents(7), tmp_path / "plain" / "a.parquet")
    return tmp_path


def refused(path: Path | str, *words: str, **options: object) -> None:
    with pytest.raises(InputError) as error:
        find_sources(spec_of(path, **options))
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(
    "below", ["", "/", "/lang=a", "/lang=*/*", "/*/*.parquet", "/**", "/**/*.parquet", "/lang=[ab]/*"]
)
def test_files_of_a_delta_table_are_refused_however_they_are_named(lake: Path, below: str) -> None:
    refused(f"{lake}/delta{below}", f"'{lake}/delta' is a Delta table", f"source.path: 'delta:{lake}/delta'")


@pytest.mark.parametrize("below", ["", "/data", "/data/*.parquet", "/*/*.parquet", "/**/*.parquet"])
def test_files_of_an_iceberg_table_are_refused_however_they_are_named(lake: Path, below: str) -> None:
    (root,) = (path.parent for path in (lake / "warehouse").glob("**/metadata"))
    refused(f"{root}{below}", f"'{root}' is an Iceberg table", f"source.path: 'iceberg:{root}'")


@pytest.mark.parametrize("below", ["", "/day=1", "/day=1/a.parquet", "/day=*/*.parquet", "/**"])
def test_files_of_a_hudi_table_are_refused(lake: Path, below: str) -> None:
    refused(f"{lake}/hudi{below}", f"'{lake}/hudi' is a Hudi table", "delta:<folder> or iceberg:<folder>")
    refused(f"hudi:{lake}/hudi", "Hudi tables can't be read", "export")


def test_a_table_somewhere_below_is_refused_unless_it_is_left_out(lake: Path) -> None:
    for path in (lake, f"{lake}/**/*.parquet"):
        refused(path, "leave the folder out by source.exclude")
    kept = find_sources(spec_of(lake, exclude=("delta", "warehouse", "hudi"))).files
    assert [Path(file.path).name for file in kept] == ["a.parquet", "notes.jsonl"]


def test_a_folder_that_is_called_metadata_makes_no_table(lake: Path) -> None:
    assert len(find_sources(spec_of(lake / "plain")).files) == 2
    assert len(find_sources(spec_of(lake / "plain" / "*.parquet")).files) == 1


def test_a_snapshot_of_plain_files_is_refused() -> None:
    with pytest.raises(ConfigError, match="names no lakehouse table"):
        spec_of("corpus/*.parquet", snapshot=3)


def test_tables_in_a_store_are_read_and_refused_as_those_on_a_disk(lake: Path, moto: S3Server) -> None:
    bucket = "lakes"
    moto.make_bucket(bucket)
    options = dict(moto.storage_options)
    fsspec.filesystem("s3", **options).put(f"{lake}/delta", f"{bucket}/some/delta", recursive=True)
    url = f"s3://{bucket}/some/delta"
    spec = spec_of(f"delta:{url}/", keep=("lang",), storage_options=options)
    assert rows_of(spec) == [
        {"id": "1", "text": "text of 1", "lang": "a"},
        {"id": "2", "text": "text of 2", "lang": "b"},
    ]
    for below in ("", "/lang=a/", "/lang=*/*.parquet", "/**"):
        refused(f"{url}{below}", f"source.path: 'delta:{url}'", storage_options=options)
    refused(f"s3://{bucket}", "leave the folder out", storage_options=options)
    refused("delta:s3://no-such-bucket/t", "does not exist", storage_options=options)
    secret = str(options["secret"])
    with pytest.raises(InputError) as error:
        find_sources(spec_of(f"delta:{url}", snapshot=9, storage_options=options))
    assert secret not in str(error.value)


def test_an_iceberg_table_in_a_store_is_read_by_way_of_our_own_storage(tmp_path: Path, moto: S3Server) -> None:
    moto.make_bucket("ice")
    options = dict(moto.storage_options)
    properties = {
        "uri": f"sqlite:///{tmp_path}/c.db",
        "warehouse": "s3://ice/w",
        "s3.endpoint": options["endpoint_url"],
        "s3.access-key-id": options["key"],
        "s3.secret-access-key": options["secret"],
    }
    catalog = SqlCatalog("s3", **properties)
    catalog.create_namespace("n")
    table = catalog.create_table("n.t", schema=documents(1).schema)
    table.append(documents(1, 2))
    table.delete("id = 1")
    assert texts_of(spec_of(f"iceberg:{table.location()}", storage_options=options)) == {"2": "text of 2"}
    assert texts_of(spec_of(f"iceberg:{table.metadata_location}", storage_options=options)) == {"2": "text of 2"}
    refused(f"{table.location()}/data/", "is an Iceberg table", storage_options=options)


@pytest.mark.parametrize(("kind", "package"), [("delta", "deltalake"), ("iceberg", "pyiceberg")])
def test_a_missing_package_is_named_with_the_command_that_installs_it(lake: Path, kind: str, package: str) -> None:
    code = f"""
import sys
sys.modules[{package!r}] = None
from pipeline.config import SourceSpec
from pipeline.sources.listing import find_sources
try:
    find_sources(SourceSpec(path="{kind}:{lake}/{kind}", text="text"))
except Exception as error:
    print(type(error).__name__, error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.startswith("InputError")
    assert f"pip install 'embedding-pipeline[{kind}]'" in done.stdout


def test_a_plain_source_loads_neither_library(lake: Path) -> None:
    code = f"""
import sys
from pipeline.config import SourceSpec
from pipeline.sources.listing import find_sources
find_sources(SourceSpec(path="{lake}/plain", text="text"))
print(*sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert not {"deltalake", "pyiceberg"} & set(done.stdout.split())
