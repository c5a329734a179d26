"""Columns of a source that nobody described get their roles, or one clear sentence that asks."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config import SourceSpec
from pipeline.errors import InputError
from pipeline.schema import is_reserved
from pipeline.sources.roles import roles_of
from pipeline.sources.seen import Column, Seen, look_at
from pipeline.work import SourceFile

PROSE = "The committee met on a Tuesday and decided that nothing would be decided before the spring {}."
TITLE = "Minutes of meeting {}"
ROWS = 30


def seen_of(**columns):
    """What is seen of a Parquet file with these columns: a pattern for each row's number, or values."""
    file = SourceFile(path="/a/b.parquet", size=1, version="1", format="parquet", compression="", partition=())
    made = []
    for name, values in columns.items():
        values = [values.replace("{}", str(row)) for row in range(ROWS)] if isinstance(values, str) else list(values)
        made.append(Column(name=name, type=pa.array(values).type, values=tuple(values)))
    return Seen(files=(file,), looked_into=1, rows=ROWS, columns=tuple(made))


def test_text_id_and_what_is_kept_are_found():
    roles = roles_of(
        seen_of(
            doc_key=range(ROWS),
            url="https://example.org/a/very/long/path/of/pages/{}/that/is/longer/than/the/text/itself?and=more&more=and",
            title=TITLE,
            body=PROSE,
            lang=["en", "ko"] * (ROWS // 2),
            vector=[[0.5, 1.0]] * ROWS,
            source="web",
            price=[1.5] * ROWS,
        )
    )
    assert roles.text == ("title", "body")
    assert roles.id == ("url",)
    assert roles.keep == ("doc_key", "title", "lang", "price")
    assert [name.split()[0] for name in roles.left_out] == ["vector", "source"]


@pytest.mark.parametrize(
    ("columns", "text"),
    [
        ({"id": range(ROWS), "title": TITLE}, ("title",)),
        ({"id": range(ROWS), "문서": "긴 글이 여기에 있습니다 그리고 더 있습니다 {}"}, ("문서",)),
        ({"id": range(ROWS), "诗": "床前明月光疑是地上霜举头望明月低头思故乡{}"}, ("诗",)),
        ({"text": PROSE, "raw": PROSE + " And so on."}, ("text",)),
        ({"question": TITLE, "answer": PROSE * 3}, ("answer",)),
        ({"Headline": TITLE, "Body": PROSE * 3, "code": "x{}"}, ("Headline", "Body")),
    ],
)
def test_the_text_is_the_longest_that_somebody_wrote_or_the_one_that_is_named_so(columns, text):
    assert roles_of(seen_of(**columns)).text == text


@pytest.mark.parametrize(
    ("columns", "ids"),
    [
        ({"text": PROSE, "id": "a{}", "url": "u{}"}, ("id",)),
        ({"text": PROSE, "id": ["a"] * ROWS, "url": "u{}"}, ("url",)),
        ({"text": PROSE, "id": [*range(ROWS - 1), None]}, ()),
        ({"text": PROSE, "pageId": range(ROWS)}, ("pageId",)),
        ({"text": PROSE, "price": range(ROWS), "day": "2020-01-{}"}, ()),
        ({"text": PROSE, "id": [row / 2 for row in range(ROWS)]}, ()),
    ],
)
def test_the_id_has_the_name_of_one_and_is_another_in_every_row(columns, ids):
    roles = roles_of(seen_of(**columns))
    assert roles.id == ids
    assert bool(roles.id) or "numbered by file and position" in roles.id_reason


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"left": PROSE, "right": PROSE}, "left .string, 9. characters on average., right .* --text COLUMN"),
        ({"a": range(ROWS), "b": "x{}"}, "looks like text .* a .int64., b .string, 3 .* --text COLUMN"),
        ({"text": PROSE, "user_id": range(ROWS), "page_id": range(ROWS)}, "user_id .int64., page_id .* --id COLUMN"),
    ],
)
def test_what_is_open_is_asked_in_one_sentence(columns, said):
    with pytest.raises(InputError, match=said) as error:
        roles_of(seen_of(**columns))
    assert "\n" not in str(error.value)


def test_what_a_person_chose_counts_and_must_be_there():
    seen = seen_of(left=PROSE, right=PROSE, user_id=range(ROWS), page_id=range(ROWS))
    roles = roles_of(seen, ("right", "left"), ("page_id", "user_id"))
    assert (roles.text, roles.id) == (("right", "left"), ("page_id", "user_id"))
    assert roles_of(seen, ("left",), ()).id == ()
    with pytest.raises(InputError, match=r"--id 'nobody' is no column of the source: left \(string"):
        roles_of(seen, ("left",), ("nobody",))


NAMES = st.sampled_from(["id", "ID", "text", "title", "body", "url", "a_id", "bId", "source", "embedding", "x", "path"])
VALUES = st.sampled_from([PROSE, TITLE, "u{}", range(ROWS), [None] * ROWS, [0.5] * ROWS, ["same"] * ROWS, [[1]] * ROWS])


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(NAMES, VALUES, min_size=1))
def test_roles_can_always_be_run(columns):
    seen = seen_of(**columns)
    try:
        roles = roles_of(seen)
    except InputError:
        return
    assert all(seen.column(name).is_text and seen.column(name).filled for name in roles.text)
    assert all(seen.column(name).is_unique for name in roles.id)
    assert not any(map(is_reserved, roles.keep))
    named = [name.lower() for name in (*roles.keep, "embedding")]
    assert len(set(named)) == len(named)
    left = {name.split(" (")[0] for name in roles.left_out}
    assert {*roles.text, *roles.id, *roles.keep} | left == set(columns)
    SourceSpec(path="x", text=roles.text, id=roles.id or None, keep=roles.keep)


def test_files_of_several_formats_and_folders_are_looked_at_together(tmp_path):
    rows = [{"id": number, "text": PROSE.format(number), "n": number} for number in range(20)]
    (tmp_path / "lang=en").mkdir()
    (tmp_path / "lang=en/a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:10]) + "no object\n")
    pq.write_table(pa.Table.from_pylist(rows[10:]), tmp_path / "b.parquet")
    (tmp_path / "c.jsonl").write_text(
        '{"id": 99, "text": "and two kinds", "n": 1}\n{"id": 98, "text": "of n", "n": "x"}\n'
    )
    seen = look_at(SourceSpec(path=str(tmp_path), text="text"))
    assert dict(seen.formats) == {"jsonl": 2, "parquet": 1}
    assert seen.rows == 22
    assert seen.column("lang").share == pytest.approx(10 / 22)
    assert roles_of(seen).id == ("id",)
    (tmp_path / "d.txt").write_text("a document")
    said = r"1, such as d.txt.* rows are documents \(3, such as b.parquet\): give a pattern"
    with pytest.raises(InputError, match=said):
        look_at(SourceSpec(path=str(tmp_path), text="text"))
