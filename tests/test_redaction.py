"""Whatever stands around a URL, its credentials are not shown, and what is no credential is."""

import json
import logging
import pickle
import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.command import main_of
from pipeline import errors
from pipeline.redaction import redacted, redacted_url

SECRETS = st.text(string.ascii_letters + string.digits + "+/=%_-.~", min_size=9, max_size=40).map(
    lambda text: f"Hush{text}Hush"
)
PASSWORDS = st.text(string.ascii_letters + string.digits + "+/=%_-.~'\"!$@:", min_size=9, max_size=40).map(
    lambda text: f"Hush{text}Hush"
)
SCHEMES = st.sampled_from(
    ["s3", "s3a", "gs", "az", "abfss", "hf", "http", "https", "ftp", "redis", "postgresql", "ray"]
)
NAMES = st.sampled_from(
    [
        "X-Amz-Signature",
        "X-Amz-Security-Token",
        "X-Amz-Credential",
        "x-goog-signature",
        "AWSAccessKeyId",
        "sig",
        "Signature",
        "token",
        "access_token",
        "auth-token",
        "api_key",
        "apikey",
        "secret",
        "client_secret",
        "password",
        "sharedAccess-key",
    ]
)
AROUND = st.sampled_from(
    ["{}", "can't read '{}'", 'a "{}", b', "({})", "{}: refused", "at {}; tried 3 times", "<{}>", "{}\nnext line"]
)


def hidden(secret: str, text: str) -> bool:
    return secret not in text and secret[:8] not in text and secret[-8:] not in text


@settings(deadline=None)
@given(scheme=SCHEMES, user=st.sampled_from(["", "AKIA1", "user"]), password=PASSWORDS, around=AROUND)
def test_passwords_before_a_host_are_hidden(scheme, user, password, around):
    url = f"{scheme}://{user}:{password}@host/path/file.jsonl"
    assert hidden(password, redacted(around.format(url)))
    assert hidden(password, redacted_url(url))
    assert redacted_url(url).endswith("host/path/file.jsonl")


@settings(deadline=None)
@given(
    scheme=SCHEMES,
    name=NAMES,
    before=st.sampled_from(["", "versionId=1&", "sv=2020&sp=r&"]),
    secret=SECRETS,
    around=AROUND,
)
def test_signed_queries_are_hidden(scheme, name, before, secret, around):
    url = f"{scheme}://bucket/a/b.parquet?{before}{name}={secret}&expires=1"
    assert hidden(secret, redacted(around.format(url)))
    assert redacted_url(url).startswith(f"{scheme}://bucket/a/b.parquet?{before}")


@pytest.mark.parametrize(
    "text",
    [
        "http://Hush12345678@host/x",
        "DefaultEndpointsProtocol=https;AccountName=a;AccountKey=Hush12345678==;EndpointSuffix=core.windows.net",
        "Authorization: Bearer Hush12345678",
        "url=https%3A%2F%2Fb%2Fx%3Fsig%3DHush12345678",
        "s3://AKIA:Hush12345678/bucket/x",
        "redis://:Hush12345678@host:6379",
    ],
)
def test_other_forms_are_hidden(text):
    assert "Hush" not in redacted(text)


@pytest.mark.parametrize(
    "text",
    [
        "s3://bucket/dt=2024-0?/part=*.parquet",
        "s3://bucket/a:b@c/x",
        "az://container@account.dfs.core.windows.net/x",
        "hf://datasets/owner/name@main/x.parquet",
        "gs://bucket/sig=1/token=2/x?y",
        "http://127.0.0.1:9000/bucket/x?list-type=2&prefix=a: refused",
        "file:///data/a:b/c@d",
        "table.path is 's3://': give an s3:// address",
        "can't read s3://bucket: refused, and gs://bucket/x: gone",
        "who@example.com wrote 'key = 5' // and went",
        "source.where: token = 'a' and id > 5",
    ],
)
def test_what_is_no_credential_is_shown(text):
    assert redacted(text) == text


@settings(deadline=None)
@given(st.text())
def test_it_is_done_once(text):
    assert redacted(redacted(text)) == redacted(text)


def kinds(base: type) -> list[type]:
    return [base, *(kind for below in base.__subclasses__() for kind in kinds(below))]


@pytest.mark.parametrize("kind", kinds(errors.PipelineError))
def test_no_error_of_ours_shows_a_credential(kind):
    error = kind("can't read https://user:Hush1@host/x?sig=Hush2: refused")
    assert str(error) == "can't read https://***@host/x?***: refused"
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
    assert type(pickle.loads(pickle.dumps(error))) is kind


@pytest.mark.parametrize("kind", [ValueError, errors.RunError])
def test_no_command_shows_a_credential_whatever_ends_it(kind, capsys):
    def main() -> int:
        raise kind(json.dumps({"url": "https://user:Hush1@host/x?sig=Hush2"}))

    assert main_of(main) == 1
    said = capsys.readouterr().err
    assert "Hush" not in said
    assert "***@host" in said


def test_no_log_of_a_command_shows_a_credential(capsys):
    root = logging.getLogger()
    before, root.handlers = root.handlers, []
    try:

        def main() -> int:
            logging.getLogger("urllib3").warning("Retrying %s", "https://host/x?X-Amz-Signature=Hush")
            return 0

        assert main_of(main) == 0
    finally:
        root.handlers = before
    assert capsys.readouterr().err == "WARNING Retrying https://host/x?***\n"
