"""Files of every format give the same records, and no message quotes what stands in one."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from confide.common.errors import ConfideError
from confide.common.text.readers import (
    Record,
    numbered_records,
    read_records,
    records_that_fit,
)

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


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_a_target_may_be_a_list_of_words(tmp_path: Path, suffix: str) -> None:
    rows: list[dict[str, object]] = [
        {"text": "one", "label": [" b", "a,c"]},
        {"text": "two", "label": []},
    ]
    path = tmp_path / f"a.{suffix}"
    path = parquet(path, rows) if suffix == "parquet" else jsonl(path, *rows)
    found = read_records(path, lists=True)
    assert [r.cell for r in found] == [["b", "a,c"], []]
    assert [r.target for r in found] == ['["b", "a,c"]', "[]"]
    assert all(record.listed for record in found)
    mixed = jsonl(tmp_path / "b.jsonl", {"text": "a", "label": [1, True, "1"]}, ROWS[0])
    assert [r.cell for r in read_records(mixed, lists=True)] == [
        ["1", "true", "1"],
        ROWS[0]["label"],
    ]


@pytest.mark.parametrize("value", [["a", ""], ["a", None], [["a"]], [{"a": "b"}]])
def test_a_list_of_something_else_is_no_target(tmp_path: Path, value: object) -> None:
    with pytest.raises(ConfideError) as caught:
        read_records(jsonl(tmp_path / "a.jsonl", {"text": "one", "label": value}), lists=True)
    error = caught.value
    assert "nor a list" in error.message
    assert error.code == "data.bad-value"


def test_a_csv_file_is_read_in_order_with_quotes_and_line_breaks_inside(tmp_path: Path) -> None:
    content = 'who,text,label\r\na,"one ""two"",\r\nthree",x\r\n\r\nb,four,y\r\n'
    records = read_records(write(tmp_path / "a.csv", content), person="who")
    assert records == [Record('one "two",\r\nthree', "x", "a"), Record("four", "y", "b")]


def test_a_txt_file_is_one_record_a_line_without_target(tmp_path: Path) -> None:
    path = write(tmp_path / "a.TXT", "one\u2028still one\r\n\n  \ntwo")
    assert read_records(path) == [Record("one\u2028still one"), Record("two")]


ENDS = {"LF": "\n", "CRLF": "\r\n", "CR": "\r"}
THREE = {
    "txt": ["one", "two \u2028 and \x0c more", "three"],
    "jsonl": [f'{{"text": "{word}", "label": "x"}}' for word in ("one", "two \u2028\x85", "three")],
    "csv": ["text,label", "one,x", '"two \x0b \u2029",x', "three,x"],
}


@pytest.mark.parametrize("suffix", THREE)
@pytest.mark.parametrize("ends", [*ENDS, "mixed"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_a_line_ends_with_lf_crlf_or_cr_and_with_nothing_else(
    tmp_path: Path, suffix: str, ends: str, mark: bytes
) -> None:
    """datasets#3910: a text of bare CR was one record, and others were cut at U+2028."""
    used = [*ENDS.values(), "\n"] if ends == "mixed" else [ENDS[ends]] * 4
    lines = [line + end for line, end in zip(THREE[suffix], used, strict=False)]
    content = mark + "".join(lines).encode()
    path = write(tmp_path / f"a.{suffix}", content)
    strict = read_records(path)
    assert [record.text.split()[0] for record in strict] == ["one", "two", "three"]
    fitting = records_that_fit(path, content, text="text", target="label", person=None)
    assert fitting == strict, "both readers agree on what a line is"


@pytest.mark.parametrize("suffix", ["txt", "csv", "jsonl"])
@pytest.mark.parametrize("end", ["\x85", "\u2028", "\u2029", "\x0b", "\x0c", "\x1e"])
def test_a_file_of_other_line_ends_is_refused_with_the_reason(
    tmp_path: Path, suffix: str, end: str
) -> None:
    """datasets#3910: three records must not become one without a word."""
    lines = ["text,label", SECRET, "Zebra"] if suffix != "jsonl" else [json.dumps(ROWS[1])] * 2
    error = refusal(write(tmp_path / f"a.{suffix}", end.join(lines) + "\n"))
    assert error.code == "data.format"
    assert f"U+{ord(end):04X}" in error.message
    assert "line ends" in error.hint


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "txt"])
@pytest.mark.parametrize("coding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_a_file_in_wide_characters_is_refused_and_says_so_where_it_has_a_mark(
    tmp_path: Path, suffix: str, coding: str
) -> None:
    error = refusal(write(tmp_path / f"a.{suffix}", f"{SECRET}\nZebra\n".encode(coding)))
    assert error.code == "data.binary"
    assert ("UTF-16" in error.message) == (coding in ("utf-16", "utf-32"))


NFC, NFD = "Jos\u00e9", "Jose\u0301"


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_a_person_has_one_form_however_unicode_or_numbers_are_written(
    tmp_path: Path, suffix: str
) -> None:
    """khmer-ocr#9: NFC and NFD of a name were two persons, and each half as well protected."""
    values: list[object] = [NFC, NFD, f" {NFD} "]
    numbers: list[object] = ["1", "1.0", "1.00"] if suffix != "jsonl" else [1, 1.0, "1"]
    path = tmp_path / f"a.{suffix}"
    rows = [{"text": "a", "label": "x", "who": who} for who in (*values, *numbers)]
    if suffix == "csv":
        write(path, "text,label,who\n" + "".join(f"a,x,{row['who']}\n" for row in rows))
    else:
        (parquet if suffix == "parquet" else lambda p, r: jsonl(p, *r))(path, rows)
    found = [record.person for record in read_records(path, person="who")]
    assert found == [NFC] * 3 + ["1"] * 3


def test_numbers_of_a_table_are_the_persons_of_a_csv(tmp_path: Path) -> None:
    wide: list[dict[str, object]] = [{"text": "a", "label": 1.0, "who": 7.0}]
    (record,) = read_records(parquet(tmp_path / "a.parquet", wide), person="who")
    (other,) = read_records(write(tmp_path / "a.csv", "text,label,who\na,1,7\n"), person="who")
    assert record == other


@pytest.mark.parametrize(
    ("one", "other"), [("007", "7"), ("ana", "Ana"), ("a b", "a  b"), ("1e3", "1000"), ("٣", "3")]
)
def test_what_may_be_meant_stays_apart(one: str, other: str) -> None:
    assert Record("a", person=one).person != Record("a", person=other).person


@pytest.mark.parametrize(
    "number", ["1e400", "-1e400", "1e99999999999999999999", "NaN", "-Infinity"]
)
def test_a_number_that_is_none_is_refused_and_takes_nothing_with_it(
    tmp_path: Path, number: str
) -> None:
    content = f'{{"text": "a", "label": {number}}}\n{{"text": "b", "label": 1e-99999999999}}\n'
    path = write(tmp_path / "a.jsonl", content)
    assert refusal(path).code == "data.bad-value"
    found = records_that_fit(path, content.encode(), text="text", target="label", person=None)
    assert found == [None, Record("b", "0")]


@pytest.mark.parametrize("header", ["text ", " text", f"te{NFD}xt"])
def test_names_of_columns_are_compared_without_blanks_and_in_one_form(
    tmp_path: Path, header: str
) -> None:
    wanted = header.strip().replace(NFD, NFC)
    path = write(tmp_path / "a.csv", f"{header},label\none,x\n")
    assert read_records(path, text=wanted) == [Record("one", "x")]
    assert read_records(path, text=header) == [Record("one", "x")]
    assert read_records(jsonl(tmp_path / "a.jsonl", {header: "one", "label": "x"}), text=wanted)
    rows: list[dict[str, object]] = [{header: "one", "label": "x"}]
    assert read_records(parquet(tmp_path / "a.parquet", rows), text=wanted)


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", {NFC: "one", NFD: "two", "label": "x"})
    assert refusal(path, text=NFC).code == "data.format"


@pytest.mark.parametrize("header", ["What did you think?,Stars (1-5)", "r\u00e9view,note"])
def test_the_owner_of_a_file_sees_the_names_that_are_there(tmp_path: Path, header: str) -> None:
    path = write(tmp_path / "a.csv", f"{header}\nfine,5\n")
    with pytest.raises(ConfideError) as caught:
        read_records(path, own_screen=True)
    for name in header.split(","):
        assert name in caught.value.message


@pytest.mark.parametrize("rest", ["input", "context"])
@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_half_of_an_instruction_is_refused_and_both_columns_are_read(
    tmp_path: Path, suffix: str, rest: str
) -> None:
    """The rows of Alpaca and Dolly: what is to be translated stood in a column that was dropped."""
    rows = [{"instruction": "Translate.", rest: "Guten Tag", "output": "Good day"}]
    rows += [{"instruction": "Greet.", rest: "", "output": "Hello"}]
    path = tmp_path / f"a.{suffix}"
    if suffix == "csv":
        lines = [",".join(rows[0]), *(",".join(row.values()) for row in rows)]
        write(path, "\n".join(lines))
    else:
        (parquet if suffix == "parquet" else lambda p, r: jsonl(p, *r))(path, [*rows])
    error = refusal(path, text="instruction", target="output")
    assert error.code == "data.half"
    assert f"instruction,{rest}" in error.hint
    found = read_records(path, text=f"instruction, {rest}", target="output")
    assert found == [Record("Translate.\n\nGuten Tag", "Good day"), Record("Greet.", "Hello")]
    assert (
        records_that_fit(
            path, path.read_bytes(), text=f"instruction,{rest}", target="output", person=None
        )
        == found
    )


@pytest.mark.parametrize(
    ("half", "rest"),
    [("question", "context"), ("premise", "hypothesis"), ("sentence2", "sentence1")],
)
def test_half_of_a_pair_is_refused_unless_the_rest_is_read_otherwise(
    tmp_path: Path, half: str, rest: str
) -> None:
    path = jsonl(tmp_path / "a.jsonl", {half: "one", rest: "two", "label": "x"})
    assert refusal(path, text=half).code == "data.half"
    assert read_records(path, text=half, target=rest) == [Record("one", "two")]
    assert read_records(path, text=f"{rest},{half}") == [Record("two\n\none", "x")]


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
    ("value", "target"),
    [
        *((1, "1"), (1.0, "1"), (0, "0"), (-0.0, "0"), (2.5, "2.5"), (1e22, "1" + "0" * 22)),
        *((True, "true"), (" x ", "x")),
    ],
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


_PIECES = st.sampled_from(
    [
        *(
            b"\n",
            b"\r",
            b"\r\n",
            b"\xc2\x85",
            b"\xe2\x80\xa8",
            b"\x0b",
            b"\x0c",
            b"\xef\xbb\xbf",
            b"\x00",
        ),
        *(
            b"text,label",
            b'{"text": "a", "label": 1.0}',
            b'{"text": "a", "label": 1e9999999999999}',
        ),
        *(
            b"a,x",
            b'"a,\n',
            b'"',
            b",",
            b"one",
            b" ",
            b"\xff",
            "\u00e9e\u0301".encode(),
            b"[",
            b"PAR1",
        ),
    ]
)


@settings(max_examples=300, deadline=None)
@given(
    content=st.lists(_PIECES, max_size=12).map(b"".join),
    suffix=st.sampled_from(["jsonl", "csv", "txt"]),
)
def test_both_readers_agree_and_the_holders_never_refuses(content: bytes, suffix: str) -> None:
    """Whatever the bytes: one gives a record where the other does, and none where it does not."""
    with tempfile.TemporaryDirectory() as scratch:
        path = write(Path(scratch, f"a.{suffix}"), content)
        fitting = records_that_fit(path, content, text="text", target="label", person=None)
        try:
            rows = numbered_records(path, text="text", target="label", person=None)
        except ConfideError:
            return
    assert [None if isinstance(row, ConfideError) else row for _, row in rows] == fitting
    assert all(number >= 0 for number, _ in rows)


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
