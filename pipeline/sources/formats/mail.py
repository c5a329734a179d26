"""A document per e-mail: column `text` is what its writer wrote, without headers and signature. Files hold one, or many.

A mail with a plain and an HTML form is read in the plain one. Attachments are counted, not read.
"""

import datetime
import email.policy
import io
from collections.abc import Iterator, Mapping
from email.message import EmailMessage
from email.parser import BytesParser
from typing import Any, BinaryIO, cast

import pyarrow as pa

from pipeline.config import SourceSpec
from pipeline.sources.columns import Block, failed_block, skipped_block
from pipeline.sources.formats import html
from pipeline.sources.formats.document import check_size, extracted, look_of, needs, row
from pipeline.sources.formats.form import Form, Misfit, Needed
from pipeline.work import Span

_COLUMNS = ("text", "title", "author", "date", "subject", "from", "to", "attachments")
_MOST_BYTES = 128 * 2**20
"""A mail of a box may have so many bytes, attachments included."""
_LINE_BYTES = 2**20
_HEADERS = ("from", "to", "date", "subject", "message-id", "received")
"""A file without any of these headers is no mail."""
_SIGNATURE = "\n-- \n"


def _mail(raw: bytes) -> Mapping[str, str | None]:
    message: EmailMessage = BytesParser(policy=email.policy.default).parsebytes(raw)
    if not any(_has(message, name) for name in _HEADERS):
        raise Misfit("the file is no e-mail: it begins with none of its headers")
    subject, sender = _header(message, "subject"), _header(message, "from")
    return {
        "text": _body(message),
        "title": subject,
        "author": sender,
        "date": _date(message),
        "subject": subject,
        "from": sender,
        "to": _header(message, "to"),
        "attachments": str(sum(1 for _ in _attachments(message))),
    }


def _has(message: EmailMessage, name: str) -> bool:
    return any(key.lower() == name for key, _ in message.raw_items())


def _header(message: EmailMessage, name: str) -> str | None:
    try:
        value = message[name]
    except Exception:  # the library raises anything for a header that breaks its grammar
        value = next((raw for key, raw in message.raw_items() if key.lower() == name), None)
    return None if value is None else " ".join(str(value).split()) or None


def _date(message: EmailMessage) -> str | None:
    try:
        sent = cast(Any, message["date"]).datetime
        zoned = sent if sent.tzinfo is not None else sent.replace(tzinfo=datetime.UTC)
        return f"{zoned.astimezone(datetime.UTC).replace(tzinfo=None).isoformat(timespec='seconds')}Z"
    except Exception:  # no date, or one that is none
        return None


def _attachments(message: EmailMessage) -> Iterator[Any]:
    if message.is_multipart():
        try:
            yield from message.iter_attachments()
        except (AttributeError, KeyError):  # a multipart whose parts are none
            return


def _body(message: EmailMessage) -> str:
    """The plain form, or the HTML one where that is missing or empty."""
    for kind in ("plain", "html"):
        part = message.get_body((kind,))
        if part is None:
            continue
        text = _content(cast(EmailMessage, part)).replace("\r\n", "\n")
        if kind == "html":
            text = html.page(text.encode("utf-8", "replace"), "utf-8")["text"]
        else:
            head, mark, _ = f"\n{text}".rpartition(_SIGNATURE)
            text = head if mark else text
        if text.strip():
            return text.strip()
    return ""


def _content(part: EmailMessage) -> str:
    try:
        return str(part.get_content())
    except (LookupError, ValueError, AttributeError):  # a charset or an encoding that nobody knows
        raw = part.get_payload(decode=True)
        return raw.decode("latin-1") if isinstance(raw, bytes) else ""


def _extract(opened: BinaryIO) -> Mapping[str, str | None]:
    return _mail(opened.read())


# --- boxes


def _box(
    opened: BinaryIO, span: Span, schema: pa.Schema, spec: SourceSpec, max_row_bytes: int, needed: Needed
) -> Iterator[Block]:
    for number, (position, raw) in enumerate(_mails(opened)):
        if not needed(number, 1):
            yield skipped_block(1)
            continue
        try:
            if raw is None:
                raise Misfit(f"the mail is longer than {_MOST_BYTES // 2**20} MiB")
            if number == 0 and not raw.startswith(b"From "):
                raise Misfit("the file is no mbox: it does not begin with a line `From ..`")
            found = _mail(raw.partition(b"\n")[2].replace(b"\n>From ", b"\nFrom "))
            check_size(found, max_row_bytes)
        except Misfit as error:
            yield failed_block(schema, pa.array([position], pa.int64()), str(error))
            continue
        yield row(found, position, schema, span.file, f":{position}")


def _mails(opened: BinaryIO) -> Iterator[tuple[int, bytes | None]]:
    """(byte offset, the mail with its line `From ..`) of each; None in place of one that is too long."""
    opened.seek(0)
    stream = io.BufferedReader(cast(Any, opened), _LINE_BYTES)
    start = position = size = 0
    lines: list[bytes] = []
    before, begins = b"\n", True
    try:
        while line := stream.readline(_LINE_BYTES):
            if begins and line.startswith(b"From ") and before in (b"\n", b"\r\n") and position > start:
                yield start, b"".join(lines) if size <= _MOST_BYTES else None
                start, size, lines = position, 0, []
            size += len(line)
            if size <= _MOST_BYTES:
                lines.append(line)
            else:
                lines = []
            position += len(line)
            before, begins = line, line.endswith(b"\n")
    finally:
        stream.detach()
    if position > start:
        yield start, b"".join(lines) if size <= _MOST_BYTES else None


_CHECK = needs("selectolax.lexbor", "e-mail", "documents")
MAIL = Form(
    blocks=extracted(_extract),
    look=look_of(_COLUMNS, _CHECK),
    suffixes=(".eml",),
    packable=False,
    isolated=True,
    strings_only=True,
    rows_per_file=1,
    is_document=True,
)
BOX = Form(
    blocks=_box,
    look=look_of(_COLUMNS, _CHECK),
    suffixes=(".mbox",),
    packable=False,
    isolated=True,
    strings_only=True,
    is_document=True,
)
