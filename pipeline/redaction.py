"""Text comes in, and the same text goes out with `***` for passwords, signatures and tokens.

Every message of an error, and every line that a command logs, goes through here. This file knows how URLs, connection
strings and headers carry credentials, and nothing of stores and options. Where it is unclear how far a secret reaches, more
is hidden rather than less.
"""

import re

_STORES = r"(?:s3a?|gs|gcs|az|abfss?|hf|memory|file)"
"""A root of these may hold an @ that is no secret (`abfs://container@account`, `hf://owner/name@revision`), and never a
colon. In any other URL a name or a key stands before an @, and a port behind a colon."""
_IN_STORE = re.compile(rf"(\b{_STORES}://)(?:[^\s/@]*:\S*@|[^\s/@'\"]*:[^\s/'\"]+)", re.IGNORECASE)
"""A password may hold a slash, a quote and another @."""
_BEFORE_HOST = re.compile(
    rf"(\b(?!{_STORES}://)[a-z][a-z0-9+.-]*://|(?<![\w:/])//)(?:[^\s/@'\"]*:\S*@|[^\s/@'\"]+@)", re.IGNORECASE
)
_SECRET_NAMES = (
    r"AWSAccessKeyId|GoogleAccessId|Signature|sig|[\w-]*token|[\w-]*secret|credentials?|authorization|passw(?:or)?d|pwd|"
    r"[\w-]*(?:api|access|account|private|shared|subscription)[_-]?key"
)
_SIGNED = re.compile(
    rf"([?&]|%3F|%26)(?:(?:X-Amz-|X-Goog-)|(?:{_SECRET_NAMES})(?:=|%3D))\S*?(?=['\")\]}}>,;:.]*(?:\s|$))", re.IGNORECASE
)
"""All that follows in the query goes, too. A "?" alone is a wildcard, and a "=" stands in the names of partitions."""
_CONNECTION = re.compile(r"\b(AccountKey|SharedAccess(?:Key|Signature))=[^;\s]+", re.IGNORECASE)
_HEADER = re.compile(r"\b(Bearer|Basic)\s+[\w.~+/=-]{8,}")
_NO_SPACE = "\ue000"

_SUBSTITUTES = (
    (_SIGNED, r"\1***"),
    (_IN_STORE, r"\1***@"),
    (_BEFORE_HOST, r"\1***@"),
    (_CONNECTION, r"\1=***"),
    (_HEADER, r"\1 ***"),
)


def redacted(text: str) -> str:
    """Return the text without passwords before hosts, signed queries, keys of connection strings, and keys of headers."""
    if "//" in text or "=" in text or "%3D" in text or "Bearer" in text or "Basic" in text:
        for pattern, substitute in _SUBSTITUTES:
            text = pattern.sub(substitute, text)
    return text


def redacted_url(url: str) -> str:
    """Return one URL without its secrets. It may hold spaces, where the URLs of a text end."""
    joined = re.sub(r"\s", _NO_SPACE, url)
    shown = redacted(joined)
    return url if shown == joined else shown.replace(_NO_SPACE, " ")
