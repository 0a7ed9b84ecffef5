"""Files of every format give the same records, and no message quotes what stands in one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from confide.common.errors import ConfideError
from confide.common.text.readers import Record, read_records

SECRET = "the secret of patient Zebra"
ROWS = [
    {"text": "Très bien, \u201cquoted\u201d,\u2028two lines", "label": "positive", "who": "a"},
    {"text": "bad, really bad", "label": "negative", "who": "b"},
]
RECORDS = [Record(row["text"], row["label"], row["who"]) for row in ROWS]
MORE_THAN_CSV_TAKES_BY_DEFAULT = 200_000


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def parquet(path: Path, rows: list[dict[str, object]]) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def jsonl(path: Path, *rows: object) -> Path:
    return write(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def refusal(path: Path, **columns: str | None) -> ConfideError:
    """The error of reading a file whose every value contains or is SECRET."""
    with pytest.raises(ConfideError) as caught:
        read_records(path, **columns)  # type: ignore[arg-type]
    shown = f"{caught.value} {caught.value.__cause__!r} {caught.value.__context__!r}"
    assert "Zebra" not in shown
    assert caught.value.hint
    return caught.value


def test_a_jsonl_file_is_read_in_order(tmp_path: Path) -> None:
    assert read_records(jsonl(tmp_path / "a.jsonl", *ROWS), person="who") == RECORDS


def test_a_parquet_file_is_read_in_order(tmp_path: Path) -> None:
    assert read_records(parquet(tmp_path / "a.parquet", [*ROWS]), person="who") == RECORDS


def test_a_csv_file_is_read_in_order_with_quotes_and_line_breaks_inside(tmp_path: Path) -> None:
    content = 'who,text,label\r\na,"one ""two"",\r\nthree",x\r\n\r\nb,four,y\r\n'
    records = read_records(write(tmp_path / "a.csv", content), person="who")
    assert records == [Record('one "two",\r\nthree', "x", "a"), Record("four", "y", "b")]


def test_a_txt_file_is_one_record_a_line_without_target(tmp_path: Path) -> None:
    path = write(tmp_path / "a.TXT", "one\u2028still one\r\n\n  \ntwo")
    assert read_records(path) == [Record("one\u2028still one"), Record("two")]


def test_a_byte_order_mark_is_no_part_of_the_first_column(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", b"\xef\xbb\xbftext,label\none,x\n")
    assert read_records(path) == [Record("one", "x")]


def test_a_very_long_csv_field_is_read(tmp_path: Path) -> None:
    text = "a" * MORE_THAN_CSV_TAKES_BY_DEFAULT
    path = write(tmp_path / "a.csv", f"text,label\n{text},x\n")
    assert read_records(path)[0].text == text


def test_a_column_that_is_not_asked_for_is_not_read(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", {"text": "one", "label": None})
    assert read_records(path, target=None) == [Record("one")]


@pytest.mark.parametrize(
    ("value", "target"), [(1, "1"), (0, "0"), (2.5, "2.5"), (True, "true"), (" x ", "x")]
)
def test_short_values_become_text(tmp_path: Path, value: object, target: str) -> None:
    path = jsonl(tmp_path / "a.jsonl", {"text": "one", "label": value})
    assert read_records(path)[0].target == target


@pytest.mark.parametrize("empty", [None, "", " "])
def test_an_empty_person_is_none(tmp_path: Path, empty: str | None) -> None:
    path = jsonl(tmp_path / "a.jsonl", {"text": "one", "label": "x", "who": empty})
    assert read_records(path, person="who")[0].person is None


def test_the_printed_form_of_a_record_shows_nothing() -> None:
    assert repr(Record("Zebra", "Zebra", "Zebra")) == "Record()"


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    error = refusal(tmp_path / "gone.jsonl")
    assert error.code == "data.missing-file"
    assert "gone.jsonl" in error.message


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "folder.csv").mkdir()
    assert refusal(tmp_path / "folder.csv").code == "data.missing-file"


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "txt", "parquet"])
def test_a_file_without_bytes_is_empty(tmp_path: Path, suffix: str) -> None:
    assert refusal(write(tmp_path / f"a.{suffix}", "")).code == "data.empty"


@pytest.mark.parametrize(
    ("name", "content"), [("a.jsonl", "\n \n"), ("a.txt", " \n"), ("a.csv", "text,label\n\n")]
)
def test_a_file_without_a_record_is_empty(tmp_path: Path, name: str, content: str) -> None:
    assert refusal(write(tmp_path / name, content)).code == "data.empty"


def test_a_table_without_a_row_is_empty(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"text": [], "label": []}), tmp_path / "a.parquet")
    assert refusal(tmp_path / "a.parquet").code == "data.empty"


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "txt"])
@pytest.mark.parametrize(
    "content", [f"{SECRET}\0".encode(), SECRET.encode("utf-16"), f"{SECRET} é".encode("latin-1")]
)
def test_bytes_that_are_not_utf8_are_binary(tmp_path: Path, suffix: str, content: bytes) -> None:
    assert refusal(write(tmp_path / f"a.{suffix}", content)).code == "data.binary"


@pytest.mark.parametrize(
    "line", [f'{{"text": "{SECRET}"', f'["{SECRET}"]', f'"{SECRET}"', "[" * 100_000 + SECRET]
)
def test_a_bad_json_line_is_named_by_its_number(tmp_path: Path, line: str) -> None:
    error = refusal(write(tmp_path / "a.jsonl", f"{json.dumps(ROWS[0])}\n\n{line}\n"))
    assert error.code == "data.format"
    assert "line 3" in error.message
    assert "a.jsonl" in error.message


@pytest.mark.parametrize(
    "row", [f"{SECRET},x,y", SECRET, f'"{SECRET}', f'"{SECRET}" {SECRET},x'], ids=repr
)
def test_a_bad_csv_line_is_named_by_its_number(tmp_path: Path, row: str) -> None:
    error = refusal(write(tmp_path / "a.csv", f"text,label\none,x\n{row}\n"))
    assert error.code == "data.format"
    assert "line 3" in error.message


def test_a_file_that_only_claims_to_be_parquet_is_refused(tmp_path: Path) -> None:
    assert refusal(write(tmp_path / "a.parquet", SECRET * 9)).code == "data.format"


def test_a_parquet_file_cut_short_is_refused(tmp_path: Path) -> None:
    whole = parquet(tmp_path / "a.parquet", [{"text": SECRET, "label": "x"}] * 99).read_bytes()
    error = refusal(write(tmp_path / "a.parquet", b"PAR1" + whole[len(whole) // 2 :]))
    assert error.code == "data.format"


def test_a_column_named_twice_is_refused(tmp_path: Path) -> None:
    assert refusal(write(tmp_path / "a.csv", "text,text,label\n1,2,3\n")).code == "data.format"


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_a_missing_column_is_named_and_the_others_listed(tmp_path: Path, suffix: str) -> None:
    path, row = tmp_path / f"a.{suffix}", {"review": SECRET, "label": SECRET}
    if suffix == "parquet":
        parquet(path, [{**row}])
    elif suffix == "jsonl":
        jsonl(path, row)
    else:
        write(path, f"review,label\n{SECRET},{SECRET}\n")
    error = refusal(path)
    assert error.code == "data.missing-column"
    assert "'text'" in error.message
    assert "review, label" in error.message


def test_a_column_missing_in_one_line_is_refused(tmp_path: Path) -> None:
    error = refusal(jsonl(tmp_path / "a.jsonl", ROWS[0], {"text": SECRET}))
    assert error.code == "data.missing-column"
    assert "line 2" in error.message


def test_a_csv_file_without_header_does_not_have_its_first_record_listed(tmp_path: Path) -> None:
    assert refusal(write(tmp_path / "a.csv", f"{SECRET},Zebra\n")).code == "data.missing-column"


def test_a_txt_file_has_no_person(tmp_path: Path) -> None:
    assert refusal(write(tmp_path / "a.txt", SECRET), person="who").code == "data.missing-column"


@pytest.mark.parametrize("name", ["a.json", "a", "a.jsonl.gz"])
def test_an_unknown_suffix_is_refused_with_the_known_ones(tmp_path: Path, name: str) -> None:
    error = refusal(write(tmp_path / name, SECRET))
    assert error.code == "data.unknown-suffix"
    assert ".csv, .jsonl, .parquet, .txt" in error.hint


@pytest.mark.parametrize(
    ("column", "value"),
    [
        *(("text", value) for value in (None, 7, [SECRET], {"x": SECRET}, "", " \n", "\ud800")),
        *(("label", value) for value in (None, "", " ", [SECRET], float("nan"), "\ud800")),
        *(("who", value) for value in ([SECRET], float("inf"))),
    ],
)
def test_a_bad_value_is_named_by_column_and_line(
    tmp_path: Path, column: str, value: object
) -> None:
    rows = [ROWS[0], {"text": SECRET, "label": "x", "who": SECRET, column: value}]
    path = write(tmp_path / "a.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    error = refusal(path, person="who")
    assert error.code == "data.bad-value"
    assert "line 2" in error.message
    assert repr(column) in error.message


def test_a_bad_value_of_a_table_is_named_by_its_row(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [{"text": SECRET, "label": "x"}, {"text": None, "label": "x"}]
    error = refusal(parquet(tmp_path / "a.parquet", rows))
    assert error.code == "data.bad-value"
    assert "row 2" in error.message


def test_a_bad_value_of_a_csv_file_is_named_by_its_line_after_blank_lines(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", f'text,label\n\n\n"one\ntwo",x\n\n{SECRET},\n')
    error = refusal(path)
    assert error.code == "data.bad-value"
    assert "line 7" in error.message


@pytest.mark.parametrize("key", ["name", "weight", "tool_calls"])
def test_a_message_with_a_third_key_is_told_what_is_read(tmp_path: Path, key: str) -> None:
    """Left out it would be another conversation; the message blamed the text."""
    turns = [{"role": "user", "content": "secret"}, {"role": "assistant", "content": "x"}]
    turns[1][key] = "1"
    path = tmp_path / "chat.jsonl"
    path.write_text(json.dumps({"messages": turns}))
    with pytest.raises(ConfideError, match=r"data\.bad-value") as caught:
        read_records(path, text="messages", target=None)
    assert "a role and a content" in caught.value.message
    assert "take them out" in caught.value.message
    assert "secret" not in str(caught.value)
