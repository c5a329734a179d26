"""The errors of the stores' libraries become ours: one line says what was tried, where and why, and shows no secret.

What is wrong from the start (no such bucket, bad credentials) is an InputError, what passes by itself but didn't in time is
StorageUnavailable, the rest a StorageError. The libraries are known by name only, so that none of them is loaded before it is
used.
"""

import contextlib
import errno
import re
import sys
import urllib.parse
from collections.abc import Iterator, Mapping
from typing import Any

from pipeline.errors import (
    InputError,
    PipelineError,
    SourceChanged,
    StorageError,
    StorageUnavailable,
    StorageUnreachable,
)
from pipeline.redaction import redacted
from pipeline.storage.file import Options

_FOREIGN = [
    ("botocore.exceptions", "BotoCoreError"),
    ("botocore.exceptions", "ClientError"),
    ("aiohttp", "ClientError"),
    ("gcsfs.retry", "ChecksumError"),
    ("gcsfs.retry", "HttpError"),
    ("google.auth.exceptions", "GoogleAuthError"),
    ("azure.core.exceptions", "AzureError"),
    ("httpx2", "HTTPError"),
    ("httpx", "HTTPError"),
    ("huggingface_hub.errors", "EntryNotFoundError"),
    ("huggingface_hub.errors", "HfUriError"),
]
_WRONG_CODES = {
    # S3
    "NoSuchBucket",
    "InvalidBucketName",
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
    # Google
    "401",
    # Azure
    "ContainerNotFound",
    "InvalidResourceName",
    "AuthenticationFailed",
    "AuthorizationFailure",
    "InvalidAuthenticationInfo",
    "NoAuthenticationInformation",
}
_WRONG_TYPES = {
    "NoCredentialsError",
    "PartialCredentialsError",
    "ParamValidationError",
    "ProfileNotFound",
    # Google
    "DefaultCredentialsError",
    "RefreshError",
    # Azure
    "ClientAuthenticationError",
    # the Hub
    "BucketNotFoundError",
    "DisabledRepoError",
    "GatedRepoError",
    "HfUriError",
    "OfflineModeIsEnabled",
    "RepositoryNotFoundError",
    "RevisionNotFoundError",
}
_NO_CREDENTIALS = {
    "NoCredentialsError",
    "PartialCredentialsError",
    # Google
    "DefaultCredentialsError",
    "401",
    # Azure
    "ClientAuthenticationError",
    "NoAuthenticationInformation",
}
"""Who shows a store no credentials, or only some of them, hears one of these types or codes."""
CREDENTIALS = {
    "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the environment, or AWS_PROFILE to a profile in ~/.aws, or give "
    "key and secret in storage_options",
    "gs": "log in with `gcloud auth application-default login`, set GOOGLE_APPLICATION_CREDENTIALS in the environment to a "
    "file of keys, or give such a file as token in storage_options",
    "az": "set AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY in the environment, or "
    "AZURE_STORAGE_CONNECTION_STRING, or give account_name and account_key in storage_options",
}
"""It says for each store where it takes credentials from."""
_LIBRARIES = {"botocore": "s3", "gcsfs": "gs", "google": "gs", "azure": "az"}
_EXPIRED_CODES = {"ExpiredToken", "ExpiredTokenException", "RequestExpired"}
"""S3 says so of keys that were lent for some hours."""
_GONE_CODES = {"PreconditionFailed", "412", "InvalidRange", "416", "BlobNotFound", "ConditionNotMet"}
_GONE_TYPES = {"FileExpired", "EntryNotFoundError", "RemoteEntryNotFoundError"}
_PASSING_CODES = {
    "408",
    "429",
    "500",
    "502",
    "503",
    "504",
    # S3
    "BadDigest",
    "BandwidthLimitExceeded",
    "ConditionalRequestConflict",
    "IncompleteBody",
    "InternalError",
    "OperationAborted",
    "RequestLimitExceeded",
    "RequestThrottled",
    "RequestTimeout",
    "ServiceUnavailable",
    "SlowDown",
    "Throttling",
    "ThrottlingException",
    "TooManyRequests",
    # Azure
    "OperationTimedOut",
    "ServerBusy",
}
_PASSING_TYPES = {
    "ConnectionError",
    "TimeoutError",
    # botocore
    "ConnectionClosedError",
    "HTTPClientError",
    "IncompleteReadError",
    "ResponseParserError",
    "ResponseStreamingError",
    # aiohttp
    "ClientConnectionError",
    "ClientPayloadError",
    "ServerDisconnectedError",
    # Google
    "ChecksumError",
    "TransportError",
    # Azure
    "ServiceRequestError",
    "ServiceResponseError",
}
"""An error of one of these types, or of a type derived from one, passes by itself."""
_UNREACHABLE_TYPES = {
    "ConnectionRefusedError",
    "TimeoutError",
    "gaierror",
    # botocore
    "ConnectTimeoutError",
    "ReadTimeoutError",
    # aiohttp
    "ClientConnectorError",
    # Azure
    "ServiceRequestError",
    "ServiceResponseTimeoutError",
}
"""These mean that nobody answered: the host refused, is unknown, or stayed mute."""
_NOT_SECRET = {
    "account_host",
    "account_name",
    "addressing_style",
    "endpoint",
    "endpoint_url",
    "mode",
    "profile",
    "project",
    "region_name",
    "signature_version",
}
_NO_TOKENS = {"anon", "browser", "cache", "cloud", "google_default"}
"""gcsfs takes these as `token` to say where to find one."""


class NoRoot(FileNotFoundError):
    """The bucket, container or repository does not exist, or hides from these credentials."""


class NoMatch(InputError):
    """No file has the name that was given, or matches the pattern, where storage let us look."""


@contextlib.contextmanager
def reported(what: str, options: Options) -> Iterator[None]:
    """Foreign errors become InputError or StorageError."""
    try:
        yield
    except foreign() as error:
        raise _translated(what, error, options) from None


@contextlib.contextmanager
def source_reported(path: str, options: Options) -> Iterator[None]:
    """Foreign errors while a source is read become ours; a file that is gone or replaced becomes SourceChanged."""
    try:
        yield
    except foreign() as error:
        if isinstance(error, FileNotFoundError) or type(error).__name__ in _GONE_TYPES or code(error) in _GONE_CODES:
            raise changed(path) from None
        raise _translated(f"can't read {path}", error, options) from None


@contextlib.contextmanager
def before_work() -> Iterator[None]:
    """A refusal of storage becomes InputError: the configuration is wrong. A store that answers, but is busy, is no
    such case."""
    try:
        yield
    except StorageError as error:
        if isinstance(error, StorageUnavailable) and not isinstance(error, StorageUnreachable):
            raise
        raise InputError(str(error)) from None


def changed(path: str) -> SourceChanged:
    return SourceChanged(f"source file {path!r} changed since it was planned: start again to plan it anew")


def foreign() -> tuple[type[BaseException], ...]:
    """The types of errors that fsspec lets through; those of a store's library only where it is loaded already."""
    loaded = [(sys.modules[module], name) for module, name in _FOREIGN if module in sys.modules]
    return (OSError, *(getattr(module, name) for module, name in loaded))


def code(error: BaseException) -> str:
    """The store's own word, or HTTP status, for what went wrong; "" if there is none."""
    for source in (error, error.__cause__):
        response = getattr(source, "response", None)
        if isinstance(response, dict):
            return str(response.get("Error", {}).get("Code", ""))
        for found in (
            getattr(source, "error_code", None),
            getattr(source, "code", None),
            getattr(response, "status_code", None),
        ):
            if isinstance(found, int | str) and found:
                return str(getattr(found, "value", found))
    return ""


def passes(error: BaseException) -> bool:
    """Whether the same call may well work a little later: the store is busy, or the way to it is broken."""
    if not isinstance(error, foreign()) or _is_wrong(error):
        return False
    # A body that was cut off has a code of aiohttp's, 400, which is no word of the store's.
    return bool(_PASSING_TYPES & _kinds(error)) or code(error) in _PASSING_CODES


def is_unreachable(error: BaseException) -> bool:
    """Whether an error that passes means that no answer came at all."""
    return bool(_UNREACHABLE_TYPES & _kinds(error)) and not code(error)


def _kinds(error: BaseException) -> set[str]:
    return {kind.__name__ for source in _sources(error) for kind in type(source).__mro__}


def _is_wrong(error: BaseException) -> bool:
    """Whether the error says that the configuration is wrong, so that no later attempt can work."""
    names = {type(source).__name__ for source in _sources(error)}
    return isinstance(error, NoRoot) or code(error) in _WRONG_CODES or bool(names & _WRONG_TYPES)


def _sources(error: BaseException) -> tuple[BaseException, ...]:
    # botocore keeps the cause in `kwargs`: its EndpointConnectionError stands for a refusal and for a reset.
    causes = (error.__cause__, getattr(error, "kwargs", {}).get("error"))
    return (error, *(cause for cause in causes if isinstance(cause, BaseException)))


def _translated(what: str, error: BaseException, options: Options) -> PipelineError:
    if _is_wrong(error):
        remedy = _where_credentials_go(error)
        return InputError(f"{what}: {said(error, options)}{f'; {remedy}' if remedy else ''}")
    if not passes(error):
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        remedy = "; make room there and start the same command again: finished work is kept" if full else ""
        if code(error) in _EXPIRED_CODES:
            remedy = "; the keys expired: start the same command again with new ones, finished work is kept"
        return StorageError(f"{what}: {said(error, options)}{remedy}")
    kind = StorageUnreachable if is_unreachable(error) else StorageUnavailable
    return kind(
        f"{what}: {said(error, options)}; this didn't pass while we tried again. Finished work is kept: check the address if "
        "it never answered, and start the same command again when storage does"
    )


def _where_credentials_go(error: BaseException) -> str:
    """Say it for an error that means that there are none, else return "". The store is known by its library."""
    if not ({*_kinds(error), code(error)} & _NO_CREDENTIALS):
        return ""
    modules = (type(source).__module__.partition(".")[0] for source in _sources(error))
    return next((CREDENTIALS[_LIBRARIES[name]] for name in modules if name in _LIBRARIES), "")


def said(error: BaseException, options: Options) -> str:
    """One line of at most 300 characters, without the values of the options and without passwords in URLs."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    text = " ".join(text.split()) or type(error).__name__
    for secret in _leaves(options):
        for form in (secret, urllib.parse.quote(secret), urllib.parse.quote(secret, safe="")):
            text = text.replace(form, "***")
    # Tokens and signatures travel in queries, with and without the host before them.
    return re.sub(r"(/[^\s?\"']*)\?[^\s\"']*", r"\1", redacted(text))[:300]


def _leaves(options: Any) -> Iterator[str]:
    for name, value in options.items() if isinstance(options, Mapping) else ():
        if isinstance(value, Mapping):
            yield from _leaves(value)
        elif name not in _NOT_SECRET and isinstance(value, str) and len(value) >= 4 and value not in _NO_TOKENS:
            yield value
            # Azure's connection string holds several values; its library may say one of them alone.
            yield from re.findall(r"(?:AccountKey|SharedAccessSignature)=([^;]{4,})", value)
