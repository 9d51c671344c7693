"""test_dirq_table - tables and schemas are written and read as the original does, byte for byte"""

from __future__ import annotations

import importlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.dirq_twins import needs_original
from workers.dirq import QueueError
from workers.dirq.schema import Part, body_key, check_schema, decoded, encoded, parse_schema
from workers.dirq.table import decode_table, encode_table

# What the escapes are made of, often; and any text.
TRICKY = st.text(st.sampled_from("\\\t\ntnr\r\0é x"), max_size=12)
TEXT = TRICKY | st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
TABLES = st.dictionaries(TEXT, TEXT, max_size=6)


def original() -> Any:
    return importlib.import_module("dirq.queue")


@given(TABLES)
def test_a_table_comes_back_as_it_was(table: dict[str, str]) -> None:
    assert decode_table(encode_table(table)) == table or table == {"": ""} or not any(map(str.strip, table))


@needs_original
@given(TABLES)
def test_a_table_is_the_bytes_of_the_original(table: dict[str, str]) -> None:
    assert encode_table(table) == original()._hash2string(table).encode("utf-8")


@needs_original
@given(TRICKY | st.text(st.sampled_from("ab\t\n\\"), max_size=30))
def test_any_text_is_the_table_of_the_original(text: str) -> None:
    """And what that one refuses is refused."""
    try:
        expected = original()._string2hash(text)
    except original().QueueError:
        with pytest.raises(QueueError):
            decode_table(text.encode())
    else:
        assert decode_table(text.encode()) == expected


def test_a_table_has_these_bytes() -> None:
    """Written out, for where the original is not installed."""
    table = {"b": "2", "a": "1", "k\\\t\n": "v\t", "": "\r\0é"}
    raw = "\t\r\0é\na\t1\nb\t2\nk\\\\\\t\\n\tv\\t\n".encode()
    assert encode_table(table) == raw
    assert decode_table(raw) == table
    assert encode_table({}) == b""
    assert decode_table(b"") == {}


@pytest.mark.parametrize(
    ("raw", "table"),
    [
        (b"a\tx\\qy\n", {"a": "x\\qy"}),
        (b"a\t1\na\t2\n", {"a": "2"}),
        (b"\n\na\t1\n\n", {"a": "1"}),
        (b"a\t\\\\t", {"a": "\\t"}),
    ],
)
def test_reading_is_lenient_where_the_original_is(raw: bytes, table: dict[str, str]) -> None:
    assert decode_table(raw) == table


@pytest.mark.parametrize("raw", [b"\n", b"a\n", b"a\tb\tc\n", b"a\tb\n\nc\td\n"])
def test_a_line_that_is_no_pair_is_refused(raw: bytes) -> None:
    with pytest.raises(QueueError):
        decode_table(raw)


@pytest.mark.parametrize("table", [{"a": b"1"}, {1: "a"}, {"a": None}, {"a": "\ud800"}, {"\ud800": "a"}])
def test_what_is_no_text_cannot_be_in_a_table(table: Any) -> None:
    with pytest.raises(QueueError):
        encode_table(table)


# ---- schemas


GOOD = [
    {"body": "string"},
    {"a": "binary", "b": "string?", "c": "table*", "d": "table?*", "e": "string*?", "Z9": "string**"},
]
BAD: list[Any] = [
    {"a": "string?"},
    {"a": "text"},
    {"a": "string???"},
    {"a": ""},
    {"a": None},
    {"a-b": "string"},
    {"": "string"},
    {"ä": "string"},
    ["body"],
    "body:string",
]
BAD_AND_ACCEPTED_BY_THE_ORIGINAL: list[Any] = [{"a": "string\n"}, {"a\n": "string"}, {"locked": "string"}]


@pytest.mark.parametrize("schema", GOOD)
def test_a_schema_is_accepted(schema: dict[str, str]) -> None:
    parts = check_schema(schema)
    assert list(parts) == list(schema)
    assert all(part.is_mandatory == ("?" not in schema[key]) for key, part in parts.items())


@pytest.mark.parametrize("schema", BAD + BAD_AND_ACCEPTED_BY_THE_ORIGINAL, ids=repr)
def test_a_schema_is_refused(schema: Any) -> None:
    with pytest.raises(QueueError):
        check_schema(schema)


@needs_original
@pytest.mark.parametrize("schema", GOOD + BAD, ids=repr)
def test_the_original_thinks_the_same_of_a_schema(schema: Any, tmp_path: Any) -> None:
    refuses = schema in BAD
    try:
        original().Queue(str(tmp_path), schema=schema)
    except original().QueueError:
        assert refuses
    else:
        assert not refuses


def test_the_text_of_a_schema_is_read() -> None:
    assert parse_schema("body:string,header:table?") == {"body": "string", "header": "table?"}
    assert parse_schema("body:binary") == {"body": "binary"}


@pytest.mark.parametrize("text", ["", "body", "body:", "body:text", "body:string?", "a:string,a:string", ",a:string"])
def test_a_text_that_is_no_schema_is_refused(text: str) -> None:
    with pytest.raises(QueueError):
        parse_schema(text)


@pytest.mark.parametrize(
    ("schema", "key"),
    [
        ("body:string,header:table?", "body"),
        ("header:table?,text:string,other:binary", "text"),
        ("head:string,body:string?", "body"),
    ],
)
def test_the_body_is_the_part_of_that_name_or_the_first_mandatory_one(schema: str, key: str) -> None:
    assert body_key(parse_schema(schema)) == key


def test_data_becomes_files_and_files_data() -> None:
    parts = check_schema({"raw": "binary", "text": "string", "pairs": "table", "more": "string?"})
    data = {"raw": b"\0\xff", "text": "é\r\n", "pairs": {"a": "b"}}
    files = encoded(parts, data)
    assert files == {"raw": b"\0\xff", "text": "é\r\n".encode(), "pairs": b"a\tb\n"}
    assert {key: decoded(parts[key].kind, raw) for key, raw in files.items()} == data
    assert parts["more"] == Part("string", is_mandatory=False)
