"""Rows of text out of files, of JSON, CSV and parquet; what cannot be read says so in one sentence, with its place."""

import json

import pyarrow
import pyarrow.parquet
import pytest

from pipeline.run import Run, running
from tests.sources import read, texts, write_jsonl


def test_jsonl_and_parquet_give_the_same_documents(tmp_path):
    rows = [{"body": f"text {i}", "id": i} for i in range(13)]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
    lines, table = (read(tmp_path / name, text_field="body") for name in ("rows.jsonl", "rows.parquet"))
    assert texts(lines.train) == texts(table.train) == [f"text {i}" for i in range(10)]
    assert texts(lines.validation) == texts(table.validation) == ["text 10"]
    assert texts(lines.held_out) == texts(table.held_out)


@pytest.mark.parametrize(("suffix", "separator", "mark"), [("csv", ",", ""), ("csv", ";", "\ufeff"), ("tsv", "\t", "")])
def test_a_row_of_a_table_of_text_is_a_document_with_its_quotes_lines_and_domain(tmp_path, suffix, separator, mark):
    bodies = [f'text {i}, "quoted";\tä\n\nline' for i in range(20)]
    quoted = ['"' + body.replace('"', '""') + '"' for body in bodies]
    rows = [
        separator.join(("label", "id", "body")),
        *(separator.join((f"D{i % 2}", "x", q)) for i, q in enumerate(quoted)),
    ]
    (tmp_path / f"rows.{suffix}").write_text(mark + "\r\n".join(rows) + "\r\n", encoding="utf-8", newline="")
    splits = read(tmp_path / f"rows.{suffix}", text_field="body", domain_field="label")
    assert sorted(texts(splits.documents)) == sorted(bodies)
    assert splits.domains == ("d0", "d1")
    assert {document.domain for document in splits.documents if document.text in bodies[::2]} == {"d0"}


def test_a_long_row_of_a_table_of_text_is_one_document_and_an_unreadable_one_is_left_out(tmp_path):
    (tmp_path / "rows.csv").write_bytes(
        b"text,n\n" + b"x" * 300_000 + b",1\nb\xff,2\n" + b"".join(b"t%d,3\n" % i for i in range(9))
    )
    splits = read(tmp_path / "rows.csv", unreadable="skip")
    assert [len(text) for text in texts(splits.train)][:2] == [300_000, 2]
    assert splits.num_unreadable == 1
    with pytest.raises(ValueError, match="line 3 ends a row that is not UTF-8 text"):
        read(tmp_path / "rows.csv")


@pytest.mark.parametrize("domain_field", ["domain", ""])
def test_columns_without_a_name_are_no_domain(tmp_path, domain_field):
    rows = [f",text {i},,,".encode() for i in range(10)]
    (tmp_path / "a.csv").write_bytes(b"\n".join([b",text,,,", *rows]))
    splits = read(tmp_path / "a.csv", domain_field=domain_field)
    assert texts(splits.documents) == [f"text {i}" for i in range(10)]
    assert splits.domains == ("a",)


def test_a_table_without_a_column_of_text_is_plain_text_within_a_folder(tmp_path):
    (tmp_path / "a.csv").write_text("x,y\n1,2\n")
    write_jsonl(tmp_path / "b.jsonl", [{"text": f"text {i}"} for i in range(20)])
    assert "x,y\n1,2\n" in texts(read(tmp_path).train)


def bad(name, content, message):
    return pytest.param(name, content, message, id=name)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        bad(
            "missing.txt",
            None,
            r"there is no file or folder '.*missing.txt' to read text from; check the path",
        ),
        bad("empty.txt", b"", r"'.*empty.txt' is empty; name a file that holds text"),
        bad("nul.txt", b"a\0b", r"'.*nul.txt' is not text: it holds NUL bytes; convert it"),
        bad(
            "nul.jsonl",
            b'{"text": "a"}\n{"text": "a\\u0000b"}',
            r"nul.jsonl line 2: field 'text' is not text: it holds NUL",
        ),
        bad("latin.txt", b"ok\n\ncaf\xe9 " * 30, r"'.*latin.txt' line 3 is not UTF-8 text: .* byte 0xe9 .* convert"),
        bad("one.txt", b"a" * 500 + b"\xff" + b"b" * 500, r"'.*one.txt' line 1 is not UTF-8 text: .* byte 0xff"),
        bad("latin.jsonl", b'{"text": "a"}\n{"text": "caf\xe9"}', r"'.*latin.jsonl' line 2 is not UTF-8 text: .* 0xe9"),
        bad("deep.jsonl", b'{"text": "a"}\n' + b"[" * 200_000, r"deep.jsonl line 2 is nested too deeply to be read"),
        bad("digits.jsonl", b'{"text": "a", "n": ' + b"1" * 5000 + b"}", r"line 1 has a number of too many digits"),
        bad("long.jsonl", b'{"' + b"x" * 100_000 + b'": 1}', r"^.{,400}has no field 'text' \(it has: x{117}...\); set"),
        bad("null.jsonl", b'{"text": null}', r"null.jsonl line 1: field 'text' is null; .* by unreadable=skip"),
        bad("domain.jsonl", b'{"text": "a", "domain": 3}', r"field 'domain' is int, not a string; set domain_field"),
        bad("photo.png", b"text", r"'.*photo.png' has the unknown suffix '.png'; wanted .txt, .jsonl"),
        bad("short.txt", b"a", r"'.*short.txt' has 1 bytes of text, too few to hold some out; give more text"),
        bad("other.jsonl", b'{"id": 1, "body": ""}', r"no field 'text' \(it has: id, body\); set text_field"),
        bad("number.jsonl", b'{"text": 1}', r"number.jsonl line 1: field 'text' is int, not a string"),
        bad("list.jsonl", b"[1]", r"list.jsonl line 1 is a JSON list, not an object"),
        bad("broken.jsonl", b'\n{"text', r"broken.jsonl line 2 is not JSON .* one object a line"),
        bad("blank.jsonl", b'{"text": ""}', r"'.*blank.jsonl' holds no text; name a source that does"),
        bad("other.csv", b"id,body\n1,a\n", r"other.csv has no field 'text' \(it has: id, body\); set text_field"),
        bad("ragged.csv", b"text,id\na,1\nb,c,2\n", r"ragged.csv line 3 ends a row of 3 fields, and the header has 2"),
        bad("open.csv", b'text,id\na,1\n"b,2\n', r"open.csv line 3 is not CSV \(unexpected end of data\); check"),
        bad("latin.csv", b"text,id\na,1\ncaf\xe9,2\n", r"latin.csv line 3 .* not UTF-8 .*'text' has the byte 0xe9"),
        bad("twice.csv", b"text,text\na,b\n", r"'.*twice.csv' has 2 columns 'text'; leave one of them in it"),
        bad("nul.csv", b'text\n"a\0b"\n', r"nul.csv line 2: field 'text' is not text: it holds NUL"),
        bad("no.parquet", b"not parquet", r"'.*no.parquet' is no parquet file; check it or leave it out"),
    ],
)
def test_what_cannot_be_read_says_so_in_one_sentence(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read(tmp_path / name)


def test_parquet_without_the_field_names_the_fields_that_it_has(tmp_path):
    pyarrow.parquet.write_table(pyarrow.table({"body": ["a"]}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"a.parquet has no field 'text' \(it has: body\); set text_field"):
        read(tmp_path / "a.parquet")


def test_a_null_in_parquet_is_told_with_its_row_or_left_out_and_counted(tmp_path):
    column = [f"text {i}" for i in range(13)]
    pyarrow.parquet.write_table(pyarrow.table({"text": [*column[:7], None, *column[7:]]}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"a.parquet row 7, counted from 0: field 'text' is null; fill it, or leave"):
        read(tmp_path / "a.parquet")
    splits = read(tmp_path / "a.parquet", unreadable="skip")
    assert texts(splits.documents) == column
    assert splits.num_unreadable == 1


def test_parquet_that_is_not_utf8_is_told_with_its_row(tmp_path):
    latin = pyarrow.array([b"cafe", b"caf\xe9"], pyarrow.binary()).view(pyarrow.string())
    pyarrow.parquet.write_table(pyarrow.table({"text": latin}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"a.parquet row 1, counted from 0 is not UTF-8 text"):
        read(tmp_path / "a.parquet")


def test_a_damaged_parquet_file_is_told(tmp_path):
    rows = pyarrow.table({"text": [f"text {i * i} of many" for i in range(5000)]})
    pyarrow.parquet.write_table(rows, tmp_path / "a.parquet")
    data = bytearray((tmp_path / "a.parquet").read_bytes())
    data[4:60] = b"\xff" * 56
    (tmp_path / "a.parquet").write_bytes(data)
    with pytest.raises(ValueError, match=r"'.*a.parquet' is a damaged parquet file; check it or leave it out"):
        read(tmp_path / "a.parquet")


def test_what_is_unreadable_is_left_out_and_counted_where_that_is_asked_for(tmp_path):
    lines = [b'{"text": "text %d"}' % i for i in range(10)]
    lines[3:3] = [b"[" * 200_000, b'{"text": "caf\xe9"}', b'{"text": 4}', b'{"body": ""}', b"no JSON"]
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines))
    (tmp_path / "b.txt").write_bytes(b"caf\xe9")
    said: list[str] = []
    with running(Run(report=lambda progress: said.append(progress.what))):
        splits = read(tmp_path, unreadable="skip")
    assert sorted(texts(splits.documents)) == [f"text {i}" for i in range(10)]
    assert splits.num_unreadable == 6
    assert any("6 rows or files were left out as unreadable" in one and "line 4 is nested too" in one for one in said)
    (tmp_path / "a.jsonl").unlink()
    with pytest.raises(ValueError, match=r"holds no text that can be read \('.*b.txt' line 1 is not UTF-8 text"):
        read(tmp_path, unreadable="skip")


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.json"])
def test_a_byte_order_mark_is_no_text(tmp_path, name):
    content = "one two three four" if name == "a.txt" else '{"text": "one two three four"}'
    (tmp_path / name).write_text(content, encoding="utf-8-sig")
    assert "".join(texts(read(tmp_path / name).documents)) == "one two three four"


def test_json_lines_are_read_as_such_under_the_name_json_and_other_json_is_text(tmp_path):
    rows = [{"text": f"text {i}"} for i in range(10)]
    write_jsonl(tmp_path / "lines.json", rows)
    assert texts(read(tmp_path / "lines.json").documents) == [f"text {i}" for i in range(10)]
    for name, content in {
        "one": '{"a":\n {"text": "b c d e f"}}',
        "list": json.dumps(rows),
        "open": "{no JSON" * 9,
    }.items():
        (tmp_path / f"{name}.json").write_text(content)
        assert "".join(texts(read(tmp_path / f"{name}.json").documents)) == content


def test_half_a_surrogate_pair_in_json_is_replaced(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a \\ud800 b"}\n{"text": "c"}')
    splits = read(tmp_path / "a.jsonl")
    assert "".join(texts((*splits.train, *splits.validation))) == "a \N{REPLACEMENT CHARACTER} b"


def test_a_field_or_column_that_stands_twice_is_refused_with_its_place(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n{"text": "two", "text": "three"}\n')
    with pytest.raises(ValueError, match=r"a.jsonl line 2 has the field 'text' twice; leave one of them out"):
        read(tmp_path / "a.jsonl")
    column = pyarrow.array(["one", "two"])
    twice = pyarrow.Table.from_arrays([column, column], names=["text", "text"])
    pyarrow.parquet.write_table(twice, tmp_path / "b.parquet")
    with pytest.raises(ValueError, match=r"b.parquet' has 2 columns 'text'; leave one of them in it"):
        read(tmp_path / "b.parquet")


def test_nul_in_a_row_of_a_table_is_refused_or_the_row_left_out(tmp_path):
    rows = ["one\n" * 9, "two\0", "three\n" * 9, "four\n" * 9]
    pyarrow.parquet.write_table(pyarrow.table({"text": rows}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"a.parquet row 1, counted from 0: field 'text' is not text: it holds NUL"):
        read(tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet", unreadable="skip").num_unreadable == 1


def test_a_domain_longer_than_a_name_is_refused_with_its_row(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "one", "domain": "d" * 100_000}))
    with pytest.raises(ValueError, match="line 1: its domain has 100,000 characters, and 255 is the most; shorten it"):
        read(tmp_path / "a.jsonl")
