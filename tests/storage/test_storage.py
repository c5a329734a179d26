import concurrent.futures
import datetime
import errno
import os
import pickle
import socket
import threading
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest

from pipeline.errors import InputError, PipelineError, SourceChanged, StorageError
from pipeline.storage import (
    FileInfo,
    Folder,
    check_unchanged,
    contains,
    disk,
    list_pattern,
    pinned,
    s3,
    same_place,
)
from pipeline.storage.error import reported
from pipeline.storage.file import TEMPORARY
from tests.servers import (
    S3Server,
    moto_server,
    rclone_server,
)


@pytest.fixture(scope="module")
def moto() -> Iterator[S3Server]:
    with moto_server() as server:
        server.make_bucket("bucket")
        yield server


@pytest.fixture(scope="module")
def rclone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with rclone_server(tmp_path_factory.mktemp("rclone")) as server:
        server.make_bucket("bucket")
        yield server


KINDS = ["local", "memory", "moto", "rclone", "gs", "az"]
SCHEMES = {"moto": "s3", "rclone": "s3", "gs": "gs", "az": "az"}
EXCLUSIVE = ["local", "memory", "moto", "az"]


def folder_on(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    if kind == "local":
        return Folder(str(tmp_path / "table"))
    if kind == "memory":
        return Folder(f"memory://{tmp_path}/table")
    return Folder(f"{SCHEMES[kind]}://bucket/{tmp_path.name}", request.getfixturevalue(kind).storage_options)


@pytest.fixture(params=KINDS)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    """An empty folder on each kind of storage."""
    return folder_on(request.param, request, tmp_path)


def names(files: list[FileInfo]) -> list[str]:
    return [file.path for file in files]


def test_what_is_written_is_read_back(folder: Folder) -> None:
    assert folder.list() == []
    assert folder.read("a/b.json") is None
    assert folder.size("a/b.json") is None
    folder.write("a/b.json", b"one")
    folder.write("a/b.json", pa.py_buffer(b"three"))
    folder.write("a b/é [1].parquet", b"")
    assert folder.read("a/b.json") == b"three"
    assert folder.size("a/b.json") == 5
    assert folder.size("a") is None
    assert names(folder.list()) == ["a b/é [1].parquet", "a/b.json"]
    assert names(folder.list("a")) == names(folder.list("a/")) == ["a/b.json"]
    assert folder.list("none") == []


@pytest.mark.parametrize(
    "name",
    [
        "lang=a%2Fb/x",
        "100% #1+&=,'@:.x",
        "a?b=c",
        "~/x",
        "q?",
        "h#",
        "[x]*.y",
        "tab\t.x",
        "{0}",
        "a" * 200,
    ],
)
def test_any_name_is_a_name(folder: Folder, name: str) -> None:
    folder.write(name, name.encode())
    assert names(folder.list()) == [name]
    assert folder.read(name) == name.encode()
    assert folder.size(name) == len(name)
    folder.copy(name, f"copy/{name}")
    with folder.open(f"copy/{name}") as file:
        assert file.read() == name.encode()
    folder.delete([name])
    assert names(folder.list()) == [f"copy/{name}"]
    (found,) = list_pattern(f"{folder.url}/copy", folder.options)
    with pinned(found, folder.options) as file:
        assert file.read() == name.encode()


def test_any_bytes_are_kept(folder: Folder) -> None:
    for data in (b"", b"\n", b"\r\n", bytes(range(256)), b"a\n--==0==--\r\nb", "é".encode()):
        folder.write("x", data)
        assert folder.read("x") == data
        folder.delete(["x"])
        assert folder.create_once("x", data) is None
        assert folder.read("x") == data


def test_a_listing_says_size_version_and_time(folder: Folder) -> None:
    folder.write("x", b"12345")
    (before,) = folder.list()
    assert before.size == 5
    assert abs(before.modified - time.time()) < 60
    assert folder.list() == [before]
    folder.write("x", b"54321")
    assert folder.list()[0].version != before.version


def test_files_that_pass_by_are_those_of_a_listing(folder: Folder) -> None:
    for path in ("a/x", "a/b/y", "ab/z", f"a/{TEMPORARY}w"):
        folder.write(path, b"1")
    for prefix in ("", "a", "a/", "a/b", "none/"):
        assert sorted(folder.gather(prefix, list), key=lambda file: file.path) == folder.list(prefix)
    assert folder.gather("a", lambda files: sum(file.size for file in files)) == 2
    assert folder.gather("a", lambda files: sum(file.size for file in files), temporary=True) == 3


def test_files_of_a_disk_that_pass_by_take_half_the_memory_of_their_list(tmp_path: Path) -> None:
    """A commit goes through all that is staged for it, which may be millions of files in as many folders."""
    for number in range(1000):
        (tmp_path / f"{number:032}").mkdir()
        (tmp_path / f"{number:032}" / "part").touch()
    folder = Folder(str(tmp_path))
    taken = []
    for look in (folder.list, lambda: folder.gather("", lambda files: sum(1 for _ in files))):
        tracemalloc.start()
        look()
        taken.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert taken[1] < taken[0] / 2


def test_a_listing_is_never_stale(folder: Folder) -> None:
    other = Folder(folder.url, folder.options)
    for index in range(3):
        assert len(folder.list()) == index
        other.write(f"part-{index}", b"x")


def test_create_once_keeps_the_first(folder: Folder) -> None:
    assert folder.create_once("versions/1.json", b"mine") is None
    assert folder.create_once("versions/1.json", b"theirs") == b"mine"
    assert folder.create_once("versions/1.json", b"mine") is None
    assert names(folder.list(temporary=True)) == ["versions/1.json"]


@pytest.mark.parametrize("kind", EXCLUSIVE)
def test_of_eight_racers_one_creates(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    folder = folder_on(kind, request, tmp_path)
    start = threading.Barrier(8)

    def race(number: int) -> bytes | None:
        start.wait()
        return folder.create_once("versions/1.json", b"%d" % number)

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(race, range(8)))
    (winner,) = [number for number, answer in enumerate(answers) if answer is None]
    assert set(answers) == {None, b"%d" % winner}
    assert folder.read("versions/1.json") == b"%d" % winner


def test_the_store_is_tried_for_exclusive_creates(folder: Folder, request: pytest.FixtureRequest) -> None:
    assert folder.creates_exclusively() is (request.node.callspec.params["folder"] in EXCLUSIVE)
    assert folder.list() == []


def test_a_fault_during_the_trial_says_nothing_of_the_store(
    rclone: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Folder(f"s3://bucket/{tmp_path.name}", rclone.storage_options)
    create, faults = s3.S3.create, iter([TimeoutError])

    def fails_once(self: Any, path: str, data: bytes) -> None:
        if data == b"second":
            for fault in faults:
                raise fault
        create(self, path, data)

    monkeypatch.setattr(s3.S3, "create", fails_once)
    assert not folder.creates_exclusively()
    assert folder.list() == []


def test_an_unclear_answer_is_cleared_by_reading_back(
    moto: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Folder(f"s3://bucket/{tmp_path.name}", moto.storage_options)
    create = s3.S3.create

    def answer_gets_lost(self: Any, path: str, data: bytes) -> None:
        create(self, path, data)
        raise TimeoutError

    monkeypatch.setattr(s3.S3, "create", answer_gets_lost)
    assert folder.create_once("x", b"mine") is None
    assert folder.read("x") == b"mine"


def test_copy_replaces_and_delete_tolerates(folder: Folder) -> None:
    folder.write("staging/part", b"new")
    folder.write("data/part", b"old")
    folder.copy("staging/part", "data/part")
    folder.copy("staging/part", "data/part")
    folder.copy("staging/part", "data/lang=e n/part")
    assert folder.read("data/part") == folder.read("data/lang=e n/part") == b"new"
    folder.delete(["staging/part", "never/was", "data/lang=e n/part"])
    assert names(folder.list(temporary=True)) == ["data/part"]
    with pytest.raises(StorageError, match="staging/part"):
        folder.copy("staging/part", "data/part")
    folder.delete([])


def test_delete_takes_more_than_one_batch(moto: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3, "_DELETE_BATCH", 2)
    folder = Folder(f"s3://bucket/{tmp_path.name}", moto.storage_options)
    for index in range(5):
        folder.write(f"{index}", b"")
    folder.delete(str(index) for index in range(5))
    assert folder.list() == []


def test_a_large_file_travels_in_pieces_and_is_copied_in_pieces(
    moto: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3, "_MAX_PUT_COPY_BYTES", 2**20)
    monkeypatch.setattr("s3fs.core.MANAGED_COPY_THRESHOLD", 2**20)
    folder = Folder(f"s3://bucket/{tmp_path.name}", moto.storage_options)
    data = os.urandom(2**20) * 101
    folder.write("large", pa.py_buffer(data))
    assert "-" in folder.list()[0].version
    folder.copy("large", "copy")
    assert folder.size("copy") == len(data)
    assert folder.read("large") == data


def test_an_open_file_serves_parquet(folder: Folder) -> None:
    sink = pa.BufferOutputStream()
    table = pa.table({"x": range(1000)})
    pq.write_table(table, sink)
    folder.write("x.parquet", sink.getvalue())
    with folder.open("x.parquet") as file:
        assert pq.read_table(file) == table
    filesystem, root = folder.arrow_filesystem()
    assert pads.dataset(f"{root}/x.parquet", filesystem=filesystem).to_table() == table
    assert pads.dataset(root, filesystem=filesystem).count_rows() == 1000
    with pytest.raises(StorageError, match=r"none\.parquet"):
        folder.open("none.parquet")


def test_local_folders_that_get_empty_go(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path / "table"))
    folder.write("a/b/c/x", b"")
    folder.write("a/y", b"")
    folder.delete(["a/b/c/x"])
    assert sorted(os.listdir(tmp_path / "table" / "a")) == ["y"]
    folder.delete(["a/y"])
    assert os.listdir(tmp_path / "table") == []


def test_local_writers_survive_the_removal_of_empty_folders(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path / "table"))

    def come_and_go(number: int) -> None:
        for _ in range(40):
            folder.write(f"a/b/{number}", b"x")
            folder.delete([f"a/b/{number}"])

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        list(pool.map(come_and_go, range(4)))
    assert folder.list(temporary=True) == []


def test_a_failed_local_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Folder(str(tmp_path))
    folder.write("x", b"old")

    def disk_full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(disk, "_write_durably", disk_full)
    with pytest.raises(StorageError, match="No space left on device"):
        folder.write("x", b"new")
    assert folder.read("x") == b"old"
    assert os.listdir(tmp_path) == ["x"]


def test_local_copy_without_hard_links_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Folder(str(tmp_path))
    folder.write("x", b"data")

    def no_links(*_: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    folder.copy("x", "y")
    assert folder.read("y") == b"data"
    assert names(folder.list(temporary=True)) == ["x", "y"]


def test_left_over_temporary_files_are_listed_only_on_request(tmp_path: Path) -> None:
    (tmp_path / ".tmp-dead").write_bytes(b"torn")
    folder = Folder(str(tmp_path))
    assert folder.list() == []
    assert names(folder.list(temporary=True)) == [".tmp-dead"]
    folder.delete([".tmp-dead"])
    assert folder.list(temporary=True) == []


def test_a_folder_travels_without_its_connections_and_hides_its_options(moto: S3Server, tmp_path: Path) -> None:
    folder = Folder(f"s3://bucket/{tmp_path.name}/", moto.storage_options)
    folder.write("x", b"1")
    assert "secret" not in repr(folder)
    assert folder.url == f"s3://bucket/{tmp_path.name}"
    assert pickle.loads(pickle.dumps(folder)).read("x") == b"1"


# --- sources


@pytest.fixture(params=KINDS)
def corpus(request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    folder = folder_on(request.param, request, tmp_path)
    for name in [
        "a.jsonl",
        "b[1].jsonl",
        "d/c.jsonl",
        "d/e/c.jsonl",
        "_log.jsonl",
        ".x.jsonl",
        "_d/x.jsonl",
        "é ?.txt",
    ]:
        folder.write(name, name.encode())
    return folder


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("", ["a.jsonl", "b[1].jsonl", "d/c.jsonl", "d/e/c.jsonl", "é ?.txt"]),
        ("a.jsonl", ["a.jsonl"]),
        ("d", ["d/c.jsonl", "d/e/c.jsonl"]),
        ("*.jsonl", ["a.jsonl", "b[1].jsonl"]),
        ("**/*.jsonl", ["a.jsonl", "b[1].jsonl", "d/c.jsonl", "d/e/c.jsonl"]),
        ("d/**", ["d/c.jsonl", "d/e/c.jsonl"]),
        ("*/c.jsonl", ["d/c.jsonl"]),
        ("**/c.jsonl", ["d/c.jsonl", "d/e/c.jsonl"]),
        ("[ab]*.jsonl", ["a.jsonl", "b[1].jsonl"]),
        ("?.jsonl", ["a.jsonl"]),
        ("b[1].jsonl", ["b[1].jsonl"]),
        ("é ?.txt", ["é ?.txt"]),
        ("_*.jsonl", ["_log.jsonl"]),
        ("_d/*", ["_d/x.jsonl"]),
        (".x.jsonl", [".x.jsonl"]),
    ],
)
def test_a_pattern_lists(corpus: Folder, pattern: str, expected: list[str]) -> None:
    found = list_pattern(f"{corpus.url}/{pattern}", corpus.options)
    assert names(found) == [f"{corpus.url}/{name}" for name in expected]
    assert all(file.size == len(file.path.removeprefix(corpus.url + "/").encode()) for file in found)


@pytest.mark.parametrize("pattern", ["none", "*.parquet", "none/*.jsonl", "a.jsonl/*"])
def test_a_pattern_without_a_file_is_refused_by_name(corpus: Folder, pattern: str) -> None:
    with pytest.raises(InputError) as caught:
        list_pattern(f"{corpus.url}/{pattern}", corpus.options)
    assert pattern in str(caught.value)


def test_local_patterns_may_be_relative_urls_and_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "x").write_bytes(b"1")
    (tmp_path / "d" / "round").symlink_to(tmp_path)
    (tmp_path / "d" / "nowhere").symlink_to(tmp_path / "none")
    monkeypatch.chdir(tmp_path)
    for pattern in ["d", "./d/*", f"file://{tmp_path}/d", "d/round/d/x"]:
        assert list_pattern(pattern, {})[0].size == 1
    assert names(list_pattern("d", {})) == [f"{tmp_path}/d/x"]


def test_unknown_schemes_are_refused() -> None:
    with pytest.raises(InputError, match=r"ftp://bucket.*s3://.*gs://.*az://.*hf://.*memory://"):
        list_pattern("ftp://bucket/x", {})
    with pytest.raises(InputError, match="no bucket"):
        list_pattern("s3:///x", {})


def test_a_pinned_file_reads_and_seeks(corpus: Folder) -> None:
    (file,) = list_pattern(f"{corpus.url}/d/c.jsonl", corpus.options)
    for readahead_bytes in (0, 2**20):
        with pinned(file, corpus.options, readahead_bytes) as opened:
            assert opened.seek(2) == 2
            assert opened.read(3) == b"c.j"
            assert opened.tell() == 5
            opened.seek(0)
            assert opened.read() == b"d/c.jsonl"
            assert opened.read() == b""


def test_a_file_changed_since_the_plan_is_noticed_at_open(corpus: Folder) -> None:
    (file,) = list_pattern(f"{corpus.url}/a.jsonl", corpus.options)
    check_unchanged(file, corpus.options)
    corpus.write("a.jsonl", b"other!!")
    with pytest.raises(SourceChanged, match=r"a\.jsonl"), pinned(file, corpus.options):
        pytest.fail("opened")
    with pytest.raises(SourceChanged):
        check_unchanged(file, corpus.options)
    corpus.delete(["a.jsonl"])
    with pytest.raises(SourceChanged), pinned(file, corpus.options):
        pytest.fail("opened")
    with pytest.raises(SourceChanged):
        check_unchanged(file, corpus.options)


@pytest.mark.parametrize("change", ["replaced", "deleted"])
def test_a_file_changed_while_it_is_read_is_noticed(corpus: Folder, change: str) -> None:
    (file,) = list_pattern(f"{corpus.url}/a.jsonl", corpus.options)

    def read_twice() -> None:
        with pinned(file, corpus.options, 0) as opened:
            assert opened.read(2) == b"a."
            if change == "replaced":
                corpus.write("a.jsonl", b"A.JSONL")
            else:
                corpus.delete(["a.jsonl"])
            opened.read(2)

    with pytest.raises(SourceChanged):
        read_twice()


def test_what_goes_wrong_below_a_parser_comes_through_as_ours(corpus: Folder) -> None:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"x": range(100_000)}), sink)
    corpus.write("x.parquet", sink.getvalue())
    (file,) = list_pattern(f"{corpus.url}/x.parquet", corpus.options)

    def read_after_deletion() -> None:
        with pinned(file, corpus.options, 0) as opened:
            parquet = pq.ParquetFile(opened, buffer_size=4096, pre_buffer=False)
            corpus.delete(["x.parquet"])
            next(parquet.iter_batches())

    with pytest.raises(SourceChanged):
        read_after_deletion()


# --- errors


def fails_clearly(call: Any, *words: str) -> PipelineError:
    started = time.monotonic()
    with pytest.raises(PipelineError) as caught:
        call()
    assert time.monotonic() - started < 25
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message
    assert "hush-hush" not in message
    pickle.loads(pickle.dumps(caught.value))
    return caught.value


@pytest.mark.parametrize("kind", ["moto", "rclone", "gs", "az"])
def test_a_missing_bucket_is_an_input_error(kind: str, request: pytest.FixtureRequest) -> None:
    options = request.getfixturevalue(kind).storage_options
    root = f"{SCHEMES[kind]}://no-bucket"
    for pattern in (f"{root}/x", f"{root}/*.parquet", root):
        error = fails_clearly(lambda pattern=pattern: list_pattern(pattern, options), "no-bucket", "does not exist")
        assert isinstance(error, InputError)
    folder = Folder(f"{root}/table", options)
    calls = [folder.list, folder.creates_exclusively, lambda: folder.read("x"), lambda: folder.write("x", b"")]
    for call in [*calls, lambda: folder.create_once("x", b"")]:
        assert isinstance(fails_clearly(call, "no-bucket"), InputError)


def test_refused_credentials_are_an_input_error(rclone: S3Server) -> None:
    options = {**rclone.storage_options, "secret": "hush-hush"}
    error = fails_clearly(lambda: list_pattern("s3://bucket/x", options), "s3://bucket/x", "signature")
    assert isinstance(error, InputError)
    assert isinstance(fails_clearly(Folder("s3://bucket/t", options).list), InputError)


def credentials_errors() -> list[tuple[Exception, str]]:
    """What the stores' libraries raise where no credentials are found, and what each store takes."""
    import azure.core.exceptions
    import botocore.exceptions
    import gcsfs.retry
    import google.auth.exceptions

    return [
        (botocore.exceptions.NoCredentialsError(), "AWS_ACCESS_KEY_ID"),
        (botocore.exceptions.PartialCredentialsError(provider="env", cred_var="secret"), "AWS_SECRET_ACCESS_KEY"),
        (google.auth.exceptions.DefaultCredentialsError("none found"), "GOOGLE_APPLICATION_CREDENTIALS"),
        (gcsfs.retry.HttpError({"code": 401, "message": "Anonymous caller"}), "GOOGLE_APPLICATION_CREDENTIALS"),
        (azure.core.exceptions.ClientAuthenticationError("none found"), "AZURE_STORAGE_ACCOUNT_KEY"),
    ]


def test_a_store_without_credentials_says_where_it_takes_them_from(monkeypatch: pytest.MonkeyPatch) -> None:
    for error, name in credentials_errors():
        with pytest.raises(InputError) as refused, reported("can't list x", {}):
            raise error
        assert name in str(refused.value)
        assert "storage_options" in str(refused.value)
        assert sum(word in str(refused.value) for word in ("AWS_", "GOOGLE_", "AZURE_")) == 1
    import botocore.exceptions

    with pytest.raises(InputError) as refused, reported("can't list x", {}):
        raise botocore.exceptions.ClientError({"Error": {"Code": "NoSuchBucket", "Message": "none"}}, "List")
    assert "AWS_" not in str(refused.value)
    for name in ("AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_CONNECTION_STRING"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(InputError, match="AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY"):
        list_pattern("az://container/x", {})


def test_missing_credentials_are_an_input_error(moto: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    options = {"endpoint_url": moto.storage_options["endpoint_url"]}
    assert isinstance(
        fails_clearly(lambda: list_pattern("s3://bucket/x", options), "credentials", "AWS_ACCESS_KEY_ID"), InputError
    )


@pytest.mark.slow
def test_an_unreachable_endpoint_is_an_input_error() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, but not listening: refuses
        options = {"key": "k", "secret": "hush-hush", "endpoint_url": f"http://127.0.0.1:{taken.getsockname()[1]}"}
        error = fails_clearly(lambda: list_pattern("s3://bucket/x", options), "Could not connect", "127.0.0.1")
        assert isinstance(error, InputError)
        assert isinstance(fails_clearly(Folder("s3://bucket/t", options).list), StorageError)


@pytest.mark.slow
def test_a_mute_endpoint_is_given_up_soon() -> None:
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        options = {"key": "k", "secret": "hush-hush", "endpoint_url": f"http://127.0.0.1:{mute.getsockname()[1]}"}
        assert isinstance(fails_clearly(lambda: list_pattern("s3://bucket/x", options), "imeout"), InputError)


@pytest.mark.parametrize("options", [{"endpoint_url": "hush-hush"}, {"no_such_option": 1}, {"config_kwargs": {"x": 1}}])
def test_options_that_cannot_work_are_an_input_error(options: dict[str, Any]) -> None:
    options = {"key": "k", "secret": "hush-hush", **options}
    with pytest.raises(InputError, match="storage_options"):
        list_pattern("s3://bucket/x", options)


def test_local_refusals_name_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Folder(str(tmp_path / "file" / "table"))
    (tmp_path / "file").write_bytes(b"")
    assert folder.list() == []
    assert folder.read("x") is None
    with pytest.raises(StorageError, match="file/table/x"):
        folder.write("x", b"")

    def refused(*_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "scandir", refused)
    with pytest.raises(InputError, match="Permission denied"):
        list_pattern(str(tmp_path), {})


# --- places


def test_same_place_and_contains(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "a")
    assert same_place(str(tmp_path / "link"), f"file://{tmp_path}/a/")
    assert same_place("s3://b/x/", "s3a://b/x")
    assert not same_place("s3://b/x", "s3://b/x2")
    assert contains(str(tmp_path), str(tmp_path / "link" / "table"))
    assert contains("s3://b", "s3://b/table")
    assert not contains("s3://b/x", "s3://b/xy")
    assert not contains("s3://b/x/y", "s3://b/x")
    assert not contains("/b", "s3://b")


@pytest.mark.parametrize(
    ("pattern", "table", "expected"),
    [
        ("/c/*.jsonl", "/c/out", False),
        ("/c/*", "/c/out", False),
        ("/c/**", "/c/out", True),
        ("/c/**/*.parquet", "/c/out", True),
        ("/c/out/data/*.parquet", "/c/out", True),
        ("/c/lang=*/x.parquet", "/c/out", False),
        ("/c/*/data/*.parquet", "/c/out", True),
        ("/other/**", "/c/out", False),
    ],
)
def test_a_pattern_contains_what_it_can_match(pattern: str, table: str, expected: bool) -> None:
    assert contains(pattern, table) is expected


def test_times_are_on_the_stores_clock(moto: S3Server, tmp_path: Path) -> None:
    folder = Folder(f"s3://bucket/{tmp_path.name}", moto.storage_options)
    folder.write("x", b"1")
    moment = datetime.datetime.fromtimestamp(folder.list()[0].modified, datetime.UTC)
    assert abs(moment - datetime.datetime.now(datetime.UTC)) < datetime.timedelta(minutes=1)


# --- disks without links


@pytest.fixture(params=["EPERM", "ENOTSUP", "EOPNOTSUPP", "ENOSYS"])
def without_links(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(source: str, target: str) -> None:
        raise OSError(getattr(errno, request.param), "Operation not permitted", source)

    monkeypatch.setattr(disk.os, "link", refused)


def test_a_disk_without_links_keeps_the_first(without_links: None, tmp_path: Path) -> None:
    test_create_once_keeps_the_first(Folder(str(tmp_path / "table")))
    assert [path.name for path in (tmp_path / "table").rglob("*")] == ["versions", "1.json"]


@pytest.mark.usefixtures("without_links")
def test_of_eight_racers_one_creates_without_links(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    for number in range(20):
        test_of_eight_racers_one_creates("local", request, tmp_path / str(number))


@pytest.mark.usefixtures("without_links")
@pytest.mark.parametrize("step", range(1, 12))
def test_a_writer_that_dies_without_links_holds_nobody_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """It dies before the `step`-th call that changes the disk."""
    folder, calls = Folder(str(tmp_path / "table")), iter(range(1, 1000))
    folder.write("versions/0.json", b"")

    class Died(BaseException):
        pass

    with monkeypatch.context() as dying:
        for name in ("mkdir", "rename", "replace", "unlink", "rmdir", "fsync"):
            real = getattr(disk.os, name)

            def call(*arguments: Any, real: Any = real) -> Any:
                if next(calls) >= step:  # all later ones fail, too: a dead process cleans nothing up
                    raise Died
                return real(*arguments)

            dying.setattr(disk.os, name, call)
        try:
            answer = folder.create_once("versions/1.json", b"dead")
        except Died:
            answer = b"unknown"
    assert folder.create_once("versions/1.json", b"next") in ((b"dead",) if answer is None else (None, b"dead"))
    standing = folder.read("versions/1.json")
    assert standing in (b"dead", b"next")
    assert folder.create_once("versions/1.json", b"third") == standing
    assert [file.path for file in folder.list()] == ["versions/0.json", "versions/1.json"]
