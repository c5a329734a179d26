"""Columns of a source that nobody described get their roles, or one clear sentence that asks."""

import json
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import config
from pipeline.config import SourceSpec
from pipeline.errors import InputError
from pipeline.schema import is_reserved
from pipeline.sources.listing import find_sources
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
    said = r"1, such as d.txt.* rows are documents \(3, such as b.parquet\): .* --set source.format=documents; .* a pattern"
    with pytest.raises(InputError, match=said) as caught:
        look_at(SourceSpec(path=str(tmp_path), text="text"))
    pattern = str(caught.value).rpartition("such as '")[2].rstrip("'")
    assert dict(look_at(SourceSpec(path=pattern, text="text")).formats) == {"parquet": 1}
    assert dict(look_at(SourceSpec(path=str(tmp_path), text="text", format="documents")).formats) == {"text": 1}


@pytest.mark.parametrize("rows", [0, 1, 2, 3, 5])
def test_the_documents_of_a_mixed_folder_are_taken_where_they_are_more(tmp_path, rows):
    for number in range(3):
        (tmp_path / f"{number}.md").write_text(PROSE.format(number))
    for number in range(rows):
        (tmp_path / f"{number}.csv").write_text("what\nbread\n")
    spec = SourceSpec(path=str(tmp_path), text="text")
    if rows >= 3:
        with pytest.raises(InputError, match=r"--set source\.format=documents"):
            look_at(spec)
        return
    seen = look_at(spec)
    assert (dict(seen.formats), seen.are_documents) == ({"text": 3}, True)
    same = find_sources(replace(spec, format="documents"))
    assert (seen.files, seen.left_out) == (same.files, same.left_out)
    assert seen.left_out == (
        ()
        if not rows
        else (
            f"{'1 file' if rows == 1 else '2 files'} left out, whose rows are no documents: "
            f"{', '.join(repr(f'{number}.csv') for number in range(rows))}; give a pattern to embed these",
        )
    )


@pytest.mark.parametrize("sign", [";", "\t", "|"])
@pytest.mark.parametrize("text", [(), ("what",)])
def test_a_header_in_one_piece_asks_for_the_delimiter_that_parts_it(tmp_path, sign, text):
    lines = [f"who{sign}what", *(f"me{sign}{PROSE.format(number)}" for number in range(9))]
    (tmp_path / "a.csv").write_text("\n".join(lines))
    spec = SourceSpec(path=str(tmp_path), text="text")
    with pytest.raises(InputError, match=r"add --set 'source.csv.delimiter=\"") as caught:
        roles_of(look_at(spec), text)
    override = str(caught.value).partition("--set '")[2].partition("'")[0]
    raw = {"source": {"path": str(tmp_path), "text": "text"}, "model": {"path": "m"}, "table": {"path": "t"}}
    mended = config.from_mapping(raw, [override]).source
    assert mended.csv.delimiter == sign
    assert roles_of(look_at(mended), text).text == ("what",)
    assert roles_of(look_at(spec), (f"who{sign}what",)).text == (f"who{sign}what",)
    (tmp_path / "a.csv").write_text(f"who{sign}what\nsome words that somebody wrote\n")
    assert roles_of(look_at(spec)).text == (f"who{sign}what",)


@pytest.mark.parametrize(
    ("name", "says"), [("a.txt", "file"), ("a.jsonl", "line"), ("a.csv", "record"), ("a.html", "page")]
)
def test_text_of_another_encoding_names_the_key_that_reads_it(tmp_path, name, says):
    content = '{"text": "größer als zuvor"}\n' if name == "a.jsonl" else "text\ngrößer als zuvor\n"
    (tmp_path / name).write_bytes(content.encode("cp1252"))
    spec = SourceSpec(path=str(tmp_path), text="text")
    with pytest.raises(InputError, match=f"the {says} is not valid (UTF|utf)-8.*--set source.encoding=cp1252"):
        look_at(spec)
    assert "größer" in str(look_at(replace(spec, encoding="cp1252")).column("text").values)
    (tmp_path / name).write_bytes(b"\0" * 99)
    with pytest.raises(InputError) as caught:
        look_at(spec)
    assert "--set" not in str(caught.value)


def test_a_title_that_is_rare_is_said_to_stand_nowhere(tmp_path):
    (tmp_path / "a.md").write_text(f"---\ntitle: About\n---\n{PROSE}")
    spec = SourceSpec(path=str(tmp_path), text="text", front_matter="columns")
    assert roles_of(look_at(spec)).text == ("title", "text")
    for number in range(3):
        (tmp_path / f"{number}.txt").write_text(PROSE)
    roles = roles_of(look_at(spec))
    assert roles.text == ("text",)
    assert "; no title goes before it, since only 25% of the sample have one" in roles.text_reason


def test_the_id_of_a_single_file_is_its_name(tmp_path):
    (tmp_path / "a.md").write_text(PROSE)
    for path in (tmp_path, tmp_path / "a.md"):
        assert "the name of the file" in roles_of(look_at(SourceSpec(path=str(path), text="text"))).id_reason
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.md").rename(tmp_path / "sub/a.md")
    assert "the path of each file" in roles_of(look_at(SourceSpec(path=str(tmp_path), text="text"))).id_reason
