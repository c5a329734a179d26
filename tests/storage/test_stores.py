import base64
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import InputError, PipelineError, StorageError
from pipeline.storage import (
    Folder,
    checks_itself,
    contains,
    is_remote,
    is_shared,
    list_pattern,
    pinned,
    same_place,
    store_of,
)
from pipeline.storage.address import address_of
from pipeline.storage.error import said
from tests.servers import AzServer, GsServer

# The libraries of both stores hand aiohttp plain bytes, which it would rather not have where they are many.
large_bodies = pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")


# --- addresses

NAMES = st.text("abc-.1", min_size=1, max_size=5)
ROOTS = st.one_of(
    st.tuples(st.sampled_from(["s3", "gs", "az"]), NAMES),
    st.tuples(st.just("az"), NAMES.map(lambda name: f"{name}@account.dfs.core.windows.net")),
    st.tuples(
        st.just("hf"),
        st.builds(
            lambda kind, owner, name, revision: f"{kind}{owner}/{name}{revision}",
            st.sampled_from(["", "datasets/", "spaces/", "buckets/"]),
            NAMES,
            NAMES,
            st.sampled_from(["", "@main", "@refs/convert/parquet", "@refs/pr/1", "@v1.0", "@a%2Fb"]),
        ),
    ),
    st.just(("memory", "")),
)
KEYS = st.lists(st.text("ab1#% é=", min_size=1, max_size=4), max_size=3).map("/".join)


@given(ROOTS, KEYS)
def test_an_address_is_its_root_and_its_key(root: tuple[str, str], key: str) -> None:
    url = f"{root[0]}://" + "/".join(filter(None, [root[1], key]))
    address = address_of(url)
    assert (address.store, address.root, address.key) == (*root, key)
    assert address.url(key) == url
    assert is_remote(url)
    assert store_of(url) == root[0]
    assert is_shared(url) is (root[0] != "memory")
    assert same_place(url, url + "/")
    assert contains(url, f"{url}/below")
    assert not contains(f"{url}/below", url)


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        ("s3://b/x", "s3a://b/x/", True),
        ("gs://b/x", "gcs://b/x", True),
        ("az://b/x", "abfss://b/x", True),
        ("abfs://b/x", "abfss://b@one.dfs.core.windows.net/x", True),
        ("abfss://b@one.dfs.core.windows.net/x", "az://b@one.blob.core.windows.net/x", True),
        ("abfss://b@one.dfs.core.windows.net/x", "abfss://b@two.dfs.core.windows.net/x", False),
        ("memory://b/x", "memory:///b/x", True),
        ("s3://b/x", "gs://b/x", False),
        ("gs://b/x", "az://b/x", False),
        ("memory://b/x", "/b/x", False),
        ("hf://datasets/o/n/x", "hf://o/n/x", False),
        ("hf://datasets/o/n@main/x", "hf://datasets/o/n/x", False),
    ],
)
def test_stores_are_told_apart(a: str, b: str, same: bool) -> None:
    assert same_place(a, b) is same_place(b, a) is same
    assert contains(a, f"{b}/below") is contains(b, f"{a}/below") is same


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("gs:///x", "names no bucket"),
        ("gs://b*/x", "names no bucket"),
        ("az://", "names no container"),
        ("hf://datasets/owner", "names no repository"),
        ("hf://owner", "names no repository"),
        ("hf://datasets/owner/*/x", "names no repository"),
        ("http://host/x", "s3://.*memory://"),
        ("abfs2://b/x", "only these are known"),
    ],
)
def test_a_path_that_leads_nowhere_is_an_input_error(path: str, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        list_pattern(path, {})
    assert path in str(caught.value)
    with pytest.raises(InputError):
        Folder(path)


def test_only_pinned_stores_check_their_reads_themselves() -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    assert [checks_itself(f"{scheme}://b/x") for scheme in ("s3", "s3a", "gs", "az", "memory")] == [True, True] + [
        False
    ] * 3
    assert checks_itself(f"hf://datasets/o/n@{commit}/x")
    assert not checks_itself("hf://datasets/o/n@main/x")
    assert not checks_itself(f"hf://datasets/o/n/x@{commit}")
    assert not checks_itself("/data/x")


def test_a_table_on_the_hub_is_refused() -> None:
    with pytest.raises(InputError, match="can only be read from"):
        Folder("hf://datasets/owner/name/table")


@pytest.mark.parametrize(("scheme", "package"), [("s3", "s3fs"), ("gs", "gcsfs"), ("az", "adlfs"), ("az", "azure")])
def test_a_missing_package_names_its_extra(scheme: str, package: str) -> None:
    code = f"""
import sys
sys.modules["{package}"] = None
from pipeline.storage import list_pattern
from pipeline.errors import InputError
try:
    list_pattern("{scheme}://bucket/x", {{}})
except InputError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert f"{scheme}:// needs the packages of the extra `{scheme}`" in done.stdout
    assert f"pip install 'embedding-pipeline[{scheme}]'" in done.stdout


# --- memory


def test_readers_in_memory_do_not_move_each_other(tmp_path: Path) -> None:
    folder = Folder(f"memory://{tmp_path}")
    folder.write("x", b"0123456789")
    (file,) = list_pattern(folder.url, {})
    with pinned(file, {}) as one, pinned(file, {}) as other:
        assert (one.read(4), other.read(2), one.read(2)) == (b"0123", b"01", b"45")


# --- names on the disk


def test_a_name_that_is_not_utf8_is_refused_readably(tmp_path: Path) -> None:
    (tmp_path / "good.jsonl").write_bytes(b"")
    bad = os.fsencode(tmp_path) + b"/caf\xe9.jsonl"
    with open(bad, "wb"):
        pass
    with pytest.raises(InputError, match=r"caf\\xe9\.jsonl' has a name that is not UTF-8") as caught:
        list_pattern(str(tmp_path), {})
    str(caught.value).encode()
    with pytest.raises(InputError, match="not UTF-8"):
        list_pattern(os.fsdecode(bad), {})
    assert len(list_pattern(f"{tmp_path}/g*.jsonl", {})) == 1


# --- Google


@large_bodies
def test_google_is_asked_to_create_only(gs: GsServer, tmp_path: Path) -> None:
    asked = []

    async def note(_session: Any, _context: Any, request: aiohttp.TraceRequestStartParams) -> None:
        asked.append((request.method, request.url.path, request.url.query.get("ifGenerationMatch")))

    trace = aiohttp.TraceConfig()
    trace.on_request_start.append(note)
    options = {**gs.storage_options, "session_kwargs": {"trace_configs": [trace]}}
    folder = Folder(f"gs://bucket/{tmp_path.name}", options)
    folder.create_once("small", b"1")
    folder.create_once("large", bytes(51 * 2**20))
    folder.write("small", b"2")
    posts = [condition for method, path, condition in asked if method == "POST" and path.endswith("/o")]
    assert [condition for condition in posts if condition] == ["0"] * (len(posts) - 1)
    assert len(posts) >= 3
    assert folder.size("large") == 51 * 2**20


@large_bodies
def test_parts_of_any_size_reach_the_store_whole(gs: GsServer, tmp_path: Path) -> None:
    folder = Folder(f"gs://bucket/{tmp_path.name}", gs.storage_options)
    data = os.urandom(2**20) * 101
    folder.write("large", data)
    folder.copy("large", "copy")
    assert folder.read("copy") == data


# --- Azure


@large_bodies
def test_large_parts_reach_azure_whole_and_create_only(az: AzServer, tmp_path: Path) -> None:
    folder = Folder(f"az://bucket/{tmp_path.name}", az.storage_options)
    data = os.urandom(2**20) * 101
    assert folder.create_once("large", data) is None
    assert folder.create_once("large", data[:-1]) == data
    folder.copy("large", "copy")
    assert folder.read("copy") == data


def test_folder_markers_are_no_files(az: AzServer, tmp_path: Path) -> None:
    folder = Folder(f"az://bucket/{tmp_path.name}", az.storage_options)
    folder.write("a/x", b"1")
    container = folder._place._store._container()  # type: ignore[union-attr]

    async def mark() -> None:
        await container.upload_blob(f"{tmp_path.name}/a", b"", metadata={"hdi_isfolder": "true"})

    folder._place._store._run(mark)  # type: ignore[union-attr]
    assert [file.path for file in folder.list()] == ["a/x"]
    assert folder.size("a") is None
    assert [file.size for file in list_pattern(f"{folder.url}/a", az.storage_options)] == [1]


# --- errors


def fails(call: Any, kind: type[PipelineError], *words: str) -> None:
    started = time.monotonic()
    with pytest.raises(PipelineError) as caught:
        call()
    assert time.monotonic() - started < 25
    assert isinstance(caught.value, kind)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message
    for secret in ("hush", base64.b64encode(b"hush").decode()):
        assert secret not in message


@given(st.text("aZ9/+=& ?%'@", min_size=4, max_size=20).filter(lambda secret: secret.strip() == secret))
def test_no_form_of_a_secret_is_said(secret: str) -> None:
    text = f"url: /tokeninfo?access_token={quote(secret)} and https://h/x?sig={quote(secret, safe='')} with {secret}"
    message = said(OSError(text), {"client": {"token": secret}})
    assert "url: /tokeninfo" in message
    for form in (secret, quote(secret), quote(secret, safe="")):
        assert form not in message.replace("url: /tokeninfo and https://h/x with", "")


def test_a_wrong_azure_key_is_an_input_error(az: AzServer) -> None:
    connection = az.storage_options["connection_string"]
    key = connection.split("AccountKey=")[1].split(";")[0]
    options = {"connection_string": connection.replace(key, base64.b64encode(b"hush").decode())}
    fails(lambda: list_pattern("az://bucket/x", options), InputError, "az://bucket/x", "authenticate")
    folder = Folder("az://bucket/t", options)
    for call in (folder.list, lambda: folder.read("x"), lambda: folder.write("x", b""), lambda: folder.size("x")):
        fails(call, InputError, "az://bucket/t")


@pytest.mark.parametrize(
    ("url", "options"),
    [
        ("az://bucket/x", {}),
        ("az://bucket/x", {"connection_string": "hush"}),
        ("abfss://bucket@one.dfs.core.windows.net/x", {"account_name": "two", "account_key": "hush"}),
        ("gs://bucket/x", {"access": "hush", "token": "anon"}),
        ("gs://bucket/x", {"token": "/no/such/hush.json"}),
        ("hf://datasets/o/n", {"endpoint": 1}),
    ],
)
def test_options_of_no_use_are_an_input_error(
    url: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in list(os.environ):
        if name.startswith("AZURE_"):
            monkeypatch.delenv(name)
    fails(lambda: list_pattern(url, options), InputError)


def unhappy_stores(address: str) -> list[tuple[str, dict[str, Any]]]:
    key = base64.b64encode(b"hush").decode()
    return [
        ("gs", {"endpoint_url": f"http://{address}", "token": "anon"}),
        ("az", {"connection_string": f"AccountName=a;AccountKey={key};BlobEndpoint=http://{address}/a;"}),
    ]


def test_an_endpoint_that_refuses_is_told_soon() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, but not listening: refuses
        for scheme, options in unhappy_stores(f"127.0.0.1:{taken.getsockname()[1]}"):
            fails(lambda s=scheme, o=options: list_pattern(f"{s}://bucket/x", o), InputError, "onnect", "127.0.0.1")


@pytest.mark.slow
def test_a_table_waits_longer_for_its_store() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        for scheme, options in unhappy_stores(f"127.0.0.1:{taken.getsockname()[1]}"):
            fails(Folder(f"{scheme}://bucket/t", options).list, StorageError, f"{scheme}://bucket/t")


@pytest.mark.slow
def test_a_mute_endpoint_is_given_up_soon() -> None:
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        for scheme, options in unhappy_stores(f"127.0.0.1:{mute.getsockname()[1]}"):
            fails(lambda s=scheme, o=options: list_pattern(f"{s}://bucket/x", o), InputError, "imeout")
