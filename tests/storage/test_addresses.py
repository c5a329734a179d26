"""Paths as people write them: file URLs, addresses that lost a slash, and URLs that hold what nobody may see."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import ModelSpec
from pipeline.errors import InputError
from pipeline.model.origin import locate
from pipeline.redaction import redacted_url
from pipeline.storage import Folder, contains, list_pattern, local_path, same_place
from pipeline.storage.address import store_of

STORES = ["s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "hf", "memory"]
NAMES = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=12)


def forms(path: Path) -> list[str]:
    """All the ways to write a path of this disk as a URL."""
    return [
        path.as_uri(),
        path.as_uri().replace("file://", "file:"),
        path.as_uri().replace("file://", "file://localhost"),
    ]


@given(names=st.lists(NAMES.filter(lambda name: name not in (".", "..")), min_size=1, max_size=3))
def test_a_file_url_is_its_path(names):
    path = Path("/", *names)
    for url in forms(path):
        assert store_of(url) == "file"
        assert local_path(url) == str(path)
        assert same_place(url, str(path))
        assert contains(str(path.parent), str(path)) == contains(path.parent.as_uri(), url)
        assert contains("/", url)


@pytest.mark.parametrize("name", ["my corpus", "100% sure", "a*b", "[x]", "q?", "é", "a+b", "~", "%41"])
def test_files_are_found_by_their_urls_whatever_they_are_called(tmp_path, name):
    folder = tmp_path / name
    folder.mkdir()
    (folder / "a.jsonl").write_bytes(b"1")
    (tmp_path / "other").mkdir()
    (tmp_path / "other/a.jsonl").write_bytes(b"2")
    for url in forms(folder):
        for pattern in (url, f"{url}/*.jsonl", f"{url}/a.jsonl"):
            assert [file.path for file in list_pattern(pattern, {})] == [str(folder / "a.jsonl")]
        assert Folder(f"{url}/table").url == str(folder / "table")


def test_a_plain_path_is_not_decoded(tmp_path):
    (tmp_path / "%41").mkdir()
    (tmp_path / "%41/x").write_bytes(b"1")
    assert list_pattern(str(tmp_path / "%41"), {})[0].path.endswith("%41/x")


def test_a_folder_of_another_host_is_refused():
    for call in (lambda url: list_pattern(url, {}), Folder):
        with pytest.raises(InputError, match="another host"):
            call("file://server/share")


@pytest.mark.parametrize("scheme", STORES)
def test_an_address_with_one_slash_is_refused(scheme):
    path = f"{scheme}:/bucket/emb"
    for call in (lambda: list_pattern(path, {}), lambda: Folder(path), lambda: locate(ModelSpec(path=path))):
        with pytest.raises(InputError, match=f"'{path}' has one slash.*'{scheme}://bucket/emb' was meant"):
            call()


SECRET = "wJalrHush"
SECRETS = [
    f"s3a://AKIA:{SECRET}@bucket/x",
    f"s3://AKIA:{SECRET}/with/slashes@bucket/x",
    f"s3:/AKIA:{SECRET}@bucket/x",
    f"gs://user:{SECRET}@bucket",
    f"https://user:{SECRET}@host/x",
    f"s3://bucket/m?X-Amz-Signature={SECRET}",
    f"s3://bucket/m?versionId=1&x-amz-security-token={SECRET}",
    f"s3://bucket/t?sig={SECRET}",
    f"gs://bucket/t?GoogleAccessId=me&Signature={SECRET}",
    f"az://container@account.dfs.core.windows.net/t?sv=2020&sig={SECRET}",
    f"https://bucket.s3.amazonaws.com/x.jsonl?X-Amz-Signature={SECRET}",
    f"https://bucket.s3.amazonaws.com/x.jsonl?a=1&X-Amz-Credential={SECRET}",
    f"ftp://h/x?token={SECRET}",
]


@pytest.mark.parametrize("path", SECRETS)
def test_what_a_url_holds_is_refused_and_never_shown(path):
    for call in (lambda: list_pattern(path, {}), lambda: Folder(path), lambda: locate(ModelSpec(path=path))):
        with pytest.raises(InputError) as caught:
            call()
        assert SECRET not in str(caught.value)
        assert "***" in str(caught.value)
    for outer, inner in ((path, "/data"), ("/data", path)):
        with pytest.raises(InputError) as caught:
            contains(outer, inner)
        assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    "path",
    [
        "s3://bucket/dt=2024-0?/part=*.parquet",
        "s3://bucket/a:b@c/x",
        "az://container@account.dfs.core.windows.net/x",
        "hf://datasets/owner/name@main/x",
        "gs://bucket/sig=1/x?y",
        "memory://a/b@c",
    ],
)
def test_addresses_without_a_secret_stay_as_they_are(path):
    assert redacted_url(path) == path
    store_of(path)
