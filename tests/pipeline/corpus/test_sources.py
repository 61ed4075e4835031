"""One's own files, folders and tables become documents; what cannot be read says so in one sentence."""

import errno
import hashlib
import json
import os
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from pipeline.corpus.documents import Document, held_out_first, sample_of, text_sha256, without_repeats
from pipeline.corpus.readers import Reading
from pipeline.corpus.sources import Source, read_sources, require_sources, sources_sha256
from pipeline.corpus.text_files import files_under, others_under
from pipeline.run import Run, running

READING = Reading(
    validation_share=0.05,
    held_out_share=0.1,
    max_bytes=10**9,
    text_field="text",
    domain_field="domain",
    unreadable="refuse",
    hf_split="train",
)


def read(*sources, **changes):
    settings = {name: getattr(READING, name) for name in READING.__slots__}
    return read_sources([str(source) for source in sources], Reading(**{**settings, **changes}))


def digest(*sources):
    return sources_sha256([str(source) for source in sources], hf_split="train")


def texts(documents):
    return [document.text for document in documents]


def write_jsonl(path, rows):
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize("size", [10, 37, 1009])
def test_the_last_tenth_of_the_bytes_of_a_single_text_is_held_out_and_validation_is_before_it(tmp_path, size):
    text = "".join(chr(97 + i % 23) for i in range(size))
    (tmp_path / "play.txt").write_text(text)
    splits = read(tmp_path / "play.txt")
    (train,), (validation,) = texts(splits.train), texts(splits.validation)
    assert train + validation == text[: int(size * 0.9)]
    assert len(validation) == pytest.approx(0.05 * size, abs=1)
    assert validation
    assert texts(splits.held_out) == [text[int(size * 0.9) :]]
    assert splits.domains == ("play",)


def test_a_text_is_not_cut_inside_a_character(tmp_path):
    letters = "àáâãäåæçèéêëìíî"
    (tmp_path / "a.txt").write_text(letters, encoding="utf-8")
    splits = read(tmp_path / "a.txt")
    assert "".join(texts(splits.documents)) == letters


def test_a_folder_gives_its_text_files_by_name_and_holds_out_the_last(tmp_path):
    for i in range(20):
        (tmp_path / f"{i:02}.md").write_text(f"text {i}")
    (tmp_path / "image.png").write_bytes(b"\0")
    (tmp_path / "empty.txt").touch()
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "hidden.txt").write_text("hidden")
    splits = read(f"notes={tmp_path}")
    assert texts(splits.train) == [f"text {i}" for i in range(17)]
    assert texts(splits.validation) == ["text 17"]
    assert texts(splits.held_out) == ["text 18", "text 19"]
    assert splits.domains == ("notes",)


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


def test_a_table_of_text_has_another_digest_than_the_plain_text_that_it_was_read_as(tmp_path):
    (tmp_path / "a.csv").write_text("text\na\n")
    files = [(".csv", hashlib.sha256(b"text\na\n").hexdigest())]
    before = json.dumps([{"domain": "a", "files": files, "hf_split": None}], sort_keys=True)
    assert digest(tmp_path / "a.csv") != hashlib.sha256(before.encode()).hexdigest()
    (tmp_path / "a.csv").rename(tmp_path / "a.txt")
    plain = before.replace(".csv", ".txt")
    assert digest(tmp_path / "a.txt") == hashlib.sha256(plain.encode()).hexdigest()


def test_a_hugging_face_data_set_is_streamed(tmp_path):
    pytest.importorskip("datasets")
    write_jsonl(tmp_path / "rows.jsonl", [{"text": f"text {i}"} for i in range(10)])
    splits = read(f"stories=hf:{tmp_path}")
    assert texts(splits.held_out) == ["text 9"]
    assert splits.domains == ("stories",)


def test_max_bytes_is_shared_by_the_sources(tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text(name * 700)
    splits = read(tmp_path / "a.txt", tmp_path / "b.txt", max_bytes=100)
    assert [len(text) for text in texts((*splits.train, *splits.validation))] == [42, 42, 3, 3]
    assert splits.domains == ("a", "b")


@pytest.mark.parametrize(
    ("text", "domain", "location"),
    [
        ("play=a/b.txt", "play", "a/b.txt"),
        ("a/Some-Book.v2.txt", "some_book", "a/Some-Book.v2.txt"),
        ("hf:roneneldan/TinyStories", "tinystories", "hf:roneneldan/TinyStories"),
        ("wiki=hf:wikitext:raw@v1", "wiki", "hf:wikitext:raw@v1"),
        ("hf:wikitext:raw@v1", "wikitext", "hf:wikitext:raw@v1"),
        ("folder/", "folder", "folder/"),
    ],
)
def test_a_source_names_its_domain_or_takes_the_name_of_what_is_read(text, domain, location):
    assert Source.parse(text) == Source(domain=domain, location=location)


def test_a_moved_file_keeps_its_digest_and_an_edited_one_does_not(tmp_path):
    (tmp_path / "there").mkdir()
    here, there = tmp_path / "a.txt", tmp_path / "there" / "a.txt"
    here.write_text("one")
    before = digest(here)
    assert digest(f"other={here}") != before
    here.rename(there)
    assert digest(there) == before
    there.write_text("two")
    assert digest(there) != before


def test_a_moved_folder_keeps_its_digest_and_a_renamed_file_in_it_changes_it(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.txt").write_text("one")
    before, text = digest(f"d={tmp_path / 'a'}"), text_sha256_of(f"d={tmp_path / 'a'}")
    (tmp_path / "a").rename(tmp_path / "b")
    assert digest(f"d={tmp_path / 'b'}") == before
    assert text_sha256_of(f"d={tmp_path / 'b'}") == text
    (tmp_path / "b" / "x.txt").rename(tmp_path / "b" / "y.txt")
    assert digest(f"d={tmp_path / 'b'}") != before


def text_sha256_of(source):
    return text_sha256(read(source))


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


def test_a_folder_without_text_files_says_what_is_wanted(tmp_path):
    (tmp_path / "a.png").touch()
    with pytest.raises(ValueError, match=r"the folder '.*' holds no text files; wanted .txt, .jsonl, .parquet or"):
        read(tmp_path)


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


def test_a_file_that_may_not_be_read_is_told(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("one two")
    monkeypatch.setattr(Path, "open", lambda *_: (_ for _ in ()).throw(PermissionError(13, "Permission denied")))
    with pytest.raises(ValueError, match=r"'.*a.txt' cannot be read \(Permission denied\); make it readable"):
        digest(tmp_path / "a.txt")


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


def test_rows_name_their_domains_and_each_is_split_by_itself(tmp_path):
    rows = [{"text": f"{kind} {i}", "domain": kind} for kind in ("Law", "code") for i in range(10)]
    write_jsonl(tmp_path / "a.jsonl", [*rows, *({"text": f"none {i}", "domain": None} for i in range(10))])
    splits = read(tmp_path / "a.jsonl")
    assert splits.domains == ("law", "code", "a")
    assert texts(splits.held_out) == ["Law 9", "code 9", "none 9"]
    assert read(tmp_path / "a.jsonl", domain_field="").domains == ("a",)
    write_jsonl(tmp_path / "b.jsonl", [{"text": f"{i}", "kind": "x"} for i in range(10)])
    assert read(tmp_path / "b.jsonl", domain_field="kind").domains == ("x",)


@pytest.mark.parametrize(
    ("written", "domain"),
    [
        ("C++ code", "c_code"), ("Über", "über"), ("U\u0308ber", "über"), ("проза", "проза"), ("проза 2", "проза_2"),
        ("日本", "日本"), ("中国", "中国"), ("हिन्दी", "हिन्दी"), ("हिन्दू", "हिन्दू"), ("ＡＢ", "ab"), ("🎉", "u1f389"),
        ("🚀", "u1f680"), ("---", "text"), ("a_b-c", "a_b_c"), ("İ", "i̇"),
    ],
)  # fmt: skip
def test_a_domain_is_called_as_it_was_written_in_whatever_script(tmp_path, written, domain):
    write_jsonl(tmp_path / "a.jsonl", [{"text": f"text {i}", "domain": written} for i in range(10)])
    assert read(tmp_path / "a.jsonl").domains == (domain,)


def test_folders_whose_names_are_not_latin_are_domains_of_their_own(tmp_path):
    for name in ("проза", "стихи"):
        (tmp_path / name).mkdir()
        for i in range(9):
            (tmp_path / name / f"{i}.txt").write_text(f"{name} number {i} of its own kind")
    splits = read_sources([str(tmp_path / "проза"), str(tmp_path / "стихи"), f"книги={tmp_path / 'стихи'}"], READING)
    assert splits.domains == ("проза", "стихи")  # what the third would give stands in the second already
    assert Source.parse(f"книги={tmp_path / 'стихи'}").domain == "книги"


def test_too_many_domains_are_refused_at_once_and_a_domain_too_small_by_name(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", [{"text": f"text {i}", "domain": f"host{i}"} for i in range(2000)])
    with pytest.raises(ValueError, match=r"2,000 domains were named and 256 is the most; .* an empty domain_field"):
        read(tmp_path / "a.jsonl")
    write_jsonl(tmp_path / "b.jsonl", [{"text": f"text {i}"} for i in range(9)] + [{"text": "x", "domain": "law"}])
    with pytest.raises(ValueError, match=r"'.*b.jsonl, domain law' has 1 bytes of text, too few to hold some out"):
        read(tmp_path / "b.jsonl")


def told(*sources, **changes):
    said: list[str] = []
    with running(Run(report=lambda progress: said.append(progress.what))):
        read(*sources, **changes)
    return said


def test_what_is_not_read_is_told_by_name_with_its_size(tmp_path):
    (tmp_path / "README.md").write_text("one two three four five")
    (tmp_path / "data.jsonl.gz").write_bytes(b"x" * 4321)
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "a.txt").write_text("12345")
    (said,) = told(tmp_path)
    assert "4,326 bytes are left out" in said
    assert "'data.jsonl.gz' (4,321 bytes), '.git' (5 bytes)" in said
    (tmp_path / "README.md").unlink()
    with pytest.raises(ValueError, match=r"holds no text files; wanted .*'data.jsonl.gz' \(4,321 bytes\)"):
        read(tmp_path)


def test_fields_without_use_merged_domains_and_cut_text_are_told(tmp_path):
    rows = [{"text": f"text {i}", "id": i, "domain": "C++" if i % 2 else "C#"} for i in range(12)]
    write_jsonl(tmp_path / "a.jsonl", rows)
    unused, merged = told(tmp_path / "a.jsonl")
    assert "no use is made of the fields 'id'" in unused
    assert "the domains 'C#', 'C++' are one here, 'c'" in merged
    cut, *_ = told(tmp_path / "a.jsonl", max_bytes=60)
    assert "only the first 60 bytes are taken" in cut


def test_artifacts_in_a_source_folder_are_no_text(tmp_path):
    (tmp_path / "a.txt").write_text("one two three four five")
    before, text = digest(f"d={tmp_path}"), text_sha256_of(f"d={tmp_path}")
    artifact = tmp_path / "store" / "prepare-corpus-0123456789ab"
    artifact.mkdir(parents=True)
    for name in ("manifest.json", "contents.json", "notes.md"):
        (artifact / name).write_text('{"text": 1}')
    assert digest(f"d={tmp_path}") == before
    assert text_sha256_of(f"d={tmp_path}") == text
    (said,) = told(tmp_path)
    assert "'store/prepare-corpus-0123456789ab' (33 bytes)" in said


@pytest.mark.parametrize("source", ["", " ", "hf:", "a=hf:"])
def test_a_source_that_names_nothing_is_refused(source):
    with pytest.raises(ValueError, match="names nothing to read; name a file, a folder or hf:NAME"):
        Source.parse(source)


def test_no_held_out_text_of_one_source_is_in_train_of_another(tmp_path):
    rows = [{"text": f"row {i} of sixty"} for i in range(60)]
    write_jsonl(tmp_path / "a.jsonl", rows)
    write_jsonl(tmp_path / "b.jsonl", rows[::-1])
    splits = read(tmp_path / "a.jsonl", tmp_path / "b.jsonl")
    train, validation, held_out = map(texts, (splits.train, splits.validation, splits.held_out))
    assert held_out == [f"row {i} of sixty" for i in (54, 55, 56, 57, 58, 59, 5, 4, 3, 2, 1, 0)]
    assert not set(held_out) & {*train, *validation}
    assert not set(validation) & set(train)
    assert sorted([*train, *validation, *held_out]) == sorted(row["text"] for row in rows)
    assert splits.num_dropped == 60


def test_the_end_of_a_text_that_only_repeats_its_beginning_is_refused(tmp_path):
    (tmp_path / "a.txt").write_text("to be or not to be, that is the question\n" * 300)
    with pytest.raises(
        ValueError, match=r"nothing of '.*a.txt' is left for the split 'validation': 2 documents repeat"
    ):
        read(tmp_path / "a.txt")


def test_a_domain_that_repeats_has_no_held_out_text_left_and_that_is_told(tmp_path):
    (tmp_path / "play.txt").write_text("to be or not to be, that is the question\n" * 300)
    write_jsonl(tmp_path / "other.jsonl", [{"text": f"row {i}"} for i in range(20)])
    said = told(tmp_path / "play.txt", tmp_path / "other.jsonl")
    assert said == [
        f"the split {split!r} has no text of the domain 'play': all of it repeats other text"
        for split in ("validation", "held_out")
    ]


def test_repeats_of_documents_below_five_lines_are_found():
    long = " ".join(f"word{i}" for i in range(100))
    train = [document(long), document("a\nb\nc")]
    held_out = [
        document("a \n\n b\nc\n"),  # the same words
        document(long.replace("word50", "other")),  # one word is another
        document(long[: len(long) // 3]),  # a part
        document("a\nb\nd"),
        document(" ".join(f"new{i}" if i > 40 else f"word{i}" for i in range(100))),  # mostly new
    ]
    splits = held_out_first(train, [document("v")], held_out)
    assert splits.held_out == (held_out[0], *held_out[3:])
    assert splits.train == (train[0],)
    assert splits.num_dropped == 3
    assert without_repeats(train, [document("v")], held_out).held_out == tuple(held_out[3:])


def test_half_a_surrogate_pair_in_json_is_replaced(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a \\ud800 b"}\n{"text": "c"}')
    splits = read(tmp_path / "a.jsonl")
    assert "".join(texts((*splits.train, *splits.validation))) == "a \N{REPLACEMENT CHARACTER} b"


def test_all_held_out_documents_repeating_the_others_is_an_error(tmp_path):
    write_jsonl(tmp_path / "same.jsonl", [{"text": "same"}] * 10)
    with pytest.raises(ValueError, match=r"is left for the split 'train': 9 documents repeat .* give more varied"):
        read(tmp_path / "same.jsonl")


def document(text, name="n"):
    return Document(domain="d", origin="o", name=name, text=text)


def test_repeats_are_dropped_from_train_and_near_repeats_from_the_other_splits():
    lines = [f"line {i}" for i in range(40)]
    train = [document("\n".join(lines)), document("other"), document("other")]
    mostly_same = document("\n".join([*lines[:30], *(f"new {i}" for i in range(10))]))
    mostly_new = document("\n".join([*lines[:10], *(f"new {i}" for i in range(30))]))
    again, other = document("\n".join(["before", *mostly_new.text.split("\n")])), document("of its own")
    splits = without_repeats(train, [again, other], [mostly_same, mostly_new, document("other")])
    assert splits.train == (train[0], train[1])
    assert splits.validation == (other,)
    assert splits.held_out == (mostly_new,)
    assert splits.num_dropped == 4


def test_a_sample_is_spread_over_the_text_and_near_the_size_asked_for():
    documents = [document(chr(97 + i) * 100_000) for i in range(10)]
    sample = "".join(sample_of(documents, 300_000))
    assert 250_000 < len(sample) < 350_000
    assert set(sample) == set("abcdefghij")
    assert "".join(sample_of(documents, 10**9)) == "".join(texts(documents))


def test_the_digest_of_the_text_sees_every_part():
    one = text_sha256(without_repeats([document("a")], [], [document("b")]))
    assert one != text_sha256(without_repeats([document("b")], [], [document("a")]))
    assert one != text_sha256(without_repeats([document("a"), document("b")], [], []))
    assert one != text_sha256(without_repeats([document("a")], [document("b")], []))
    assert one == text_sha256(without_repeats([document("a")], [], [document("b")]))


@pytest.mark.parametrize(
    ("location", "said"),
    [
        ("~no-such-user-here/x.txt", "there is no user whose folder '~no-such-user-here/x.txt' lies in"),
        ("x=/tmp/" + "a" * 300 + ".txt", r"'/tmp/a+\.\.\.' cannot be read \(File name too long\); check the path"),
        ("/tmp/" + "a/" * 5000, r"'/tmp/[a/]+\.\.\.' cannot be read \(File name too long\); check the path"),
        ("no\0name.txt", r"'no\\x00name.txt' cannot be read \(.*null .*\); check the path"),
        ("/dev/zero", "'/dev/zero' is a device, a pipe or a socket; wanted a file or a folder"),
        (f"{'d' * 256}=x.txt", "its domain has 256 characters, and 255 is the most; write a shorter one"),
    ],
)
def test_a_place_that_text_cannot_lie_in_is_told_in_a_short_sentence(location, said):
    with pytest.raises(ValueError, match=said) as told:
        require_sources((location,))
    assert len(str(told.value)) < 300


def test_a_link_to_nothing_is_no_text(tmp_path):
    (tmp_path / "a.txt").symlink_to(tmp_path / "gone.txt")
    with pytest.raises(ValueError, match="is a link to nothing that can be read; check where it leads"):
        require_sources((str(tmp_path / "a.txt"),))


def test_links_pipes_and_linked_folders_that_are_not_read_are_named(tmp_path):
    folder, elsewhere = tmp_path / "in", tmp_path / "elsewhere"
    folder.mkdir()
    elsewhere.mkdir()
    (folder / "a.txt").write_text("text")
    (folder / "annexed.txt").symlink_to(tmp_path / "gone.txt")
    (folder / "linked").symlink_to(elsewhere)
    os.mkfifo(folder / "pipe.txt")
    assert [name for name, _ in files_under(folder)] == ["a.txt"]
    assert sorted(others_under(folder)) == [("annexed.txt", 0), ("linked", 0), ("pipe.txt", 0)]


def test_a_folder_within_that_cannot_be_looked_into_is_refused_unless_it_is_hidden(tmp_path, monkeypatch):
    for name in ("closed", ".hidden", "open"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.txt").write_text("text")
    real = os.scandir

    def scandir(path):  # whoever runs as root may look into all folders
        if os.path.basename(path) in closed:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    closed = {".hidden"}
    assert [name for name, _ in files_under(tmp_path)] == ["closed/a.txt", "open/a.txt"]
    closed = {".hidden", "closed"}
    with pytest.raises(ValueError, match=r"the folder '.*/closed' cannot be read \(Permission denied\); make it"):
        require_sources((str(tmp_path),))


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


def test_more_sources_than_bytes_are_refused(tmp_path):
    (tmp_path / "a.txt").write_text("text\n" * 99)
    with pytest.raises(ValueError, match="max_bytes: got 2 for 3 sources, less than a byte each; take more bytes"):
        read(*[tmp_path / "a.txt"] * 3, max_bytes=2)


def test_a_name_that_the_hub_cannot_have_is_told_without_asking_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # so that the name is none of a folder of this machine either
    with pytest.raises(ValueError, match=r"'hf:../../etc' is no name of a data set; wanted hf:NAME or hf:OWNER/NAME"):
        digest("hf:../../etc")
