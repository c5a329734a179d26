"""Names of types in a configuration: what Arrow writes is what it means."""

import contextlib

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import ConfigError
from pipeline.sources.type_names import parse
from tests.arrows import ALL, LEAVES

NAMES = st.text(st.characters(exclude_characters=",:<>()[]", exclude_categories=["C", "Z"]), max_size=5)


def nested(kinds: st.SearchStrategy[pa.DataType]) -> st.SearchStrategy[pa.DataType]:
    def field(name: str, kind: pa.DataType, nullable: bool) -> pa.Field:
        return pa.field(name, kind, nullable or pa.types.is_null(kind))

    fields = st.builds(field, NAMES, kinds, st.booleans())
    items = st.builds(field, st.just("item"), kinds, st.booleans())
    return st.one_of(
        st.builds(pa.list_, items, st.integers(-1, 9)),
        *(items.map(make) for make in (pa.large_list, pa.list_view, pa.large_list_view)),
        st.lists(fields, max_size=3).map(pa.struct),
        # Arrow refuses a map whose keys are all null.
        st.builds(pa.map_, kinds.filter(lambda kind: not pa.types.is_null(kind)), kinds, st.booleans()),
        st.builds(pa.dictionary, st.sampled_from([pa.int8(), pa.uint32()]), kinds, st.booleans()),
        st.builds(pa.run_end_encoded, st.sampled_from([pa.int16(), pa.int64()]), kinds),
    )


DECIMALS = st.builds(pa.decimal128, st.integers(1, 38), st.integers(-5, 38))
TYPES = st.recursive(st.sampled_from(LEAVES) | DECIMALS, nested, max_leaves=5)


@given(TYPES)
def test_every_name_that_arrow_writes_is_understood(kind: pa.DataType) -> None:
    assert parse(str(kind)) == kind
    assert parse(f"  {kind} ".replace(", ", " ,  ").replace(": ", ":")) == kind


@pytest.mark.parametrize("kind", [kind for kind in ALL if not isinstance(kind, pa.BaseExtensionType)], ids=str)
def test_every_type_that_is_carried_can_be_named(kind: pa.DataType) -> None:
    assert parse(str(kind)) == kind


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("str", pa.string()),
        ("utf8", pa.string()),
        ("boolean", pa.bool_()),
        ("date", pa.date32()),
        ("date32", pa.date32()),
        ("date64", pa.date64()),
        ("float32", pa.float32()),
        ("double", pa.float64()),
        ("float16", pa.float16()),
        ("decimal(10, 2)", pa.decimal128(10, 2)),
        ("decimal(10)", pa.decimal128(10, 0)),
        ("decimal64(10,2)", pa.decimal64(10, 2)),
        ("list<string>", pa.list_(pa.string())),
        ("list<element: int8 not null>", pa.list_(pa.field("item", pa.int8(), nullable=False))),
        ("fixed_size_list<float>[3]", pa.list_(pa.float32(), 3)),
        ("binary[16]", pa.binary(16)),
        ("dictionary<values=string>", pa.dictionary(pa.int32(), pa.string())),
        ("timestamp[us,tz=Europe/Berlin]", pa.timestamp("us", "Europe/Berlin")),
        (
            "struct<a:int64,b:struct<c:list<str>>>",
            pa.struct({"a": "int64", "b": pa.struct({"c": pa.list_(pa.string())})}),
        ),
        ("map<string, int64>", pa.map_(pa.string(), pa.int64())),
    ],
)
def test_the_usual_shorthands(name: str, kind: pa.DataType) -> None:
    assert parse(name) == kind


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("", "at its end"),
        ("int65", "did you mean int6"),
        ("list<string", "expected '>' at its end"),
        ("struct<a>", "expected `name: type` at 'a>' (character 7)"),
        ("timestamp[minutes]", "expected the unit s or ms or us or ns"),
        ("timestamp[us, tz=]", "expected a time zone"),
        ("time32[us]", "expected the unit s or ms"),
        ("decimal(99, 2)", "precision"),
        ("int64 x", "expected the end at 'x'"),
        ("fixed_size_list<int8>[-2]", "a size of 0 or more"),
        ("dictionary<values=string, indices=string>", "index type"),
        ("list<" * 5000, "more than 100 levels"),
    ],
)
def test_a_bad_name_is_refused_with_its_place_and_an_example(name: str, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse(name)
    assert said in str(error.value)
    assert "names are such as int64" in str(error.value)


@given(st.text(max_size=20) | st.text("<>[](),: =tuilnsd0123", max_size=30))
def test_no_text_does_worse_than_be_refused(name: str) -> None:
    with contextlib.suppress(ConfigError):
        assert isinstance(parse(name), pa.DataType)
