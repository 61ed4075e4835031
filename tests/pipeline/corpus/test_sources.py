"""One's own files and folders become documents of domains, in splits that share none, under a digest of their bytes."""

import errno
import hashlib
import json
import os
from pathlib import Path

import pytest

from pipeline.corpus.documents import Document, held_out_first, sample_of, text_sha256, without_repeats
from pipeline.corpus.sources import Source, read_sources, require_sources, sources_sha256
from pipeline.corpus.text_files import files_under, others_under
from pipeline.run import Run, running
from tests.sources import READING, read, texts, write_jsonl


def digest(*sources):
    return sources_sha256([str(source) for source in sources], hf_split="train")


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


def test_a_folder_without_text_files_says_what_is_wanted(tmp_path):
    (tmp_path / "a.png").touch()
    with pytest.raises(ValueError, match=r"the folder '.*' holds no text files; wanted .txt, .jsonl, .parquet or"):
        read(tmp_path)


def test_a_file_that_may_not_be_read_is_told(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("one two")
    monkeypatch.setattr(Path, "open", lambda *_: (_ for _ in ()).throw(PermissionError(13, "Permission denied")))
    with pytest.raises(ValueError, match=r"'.*a.txt' cannot be read \(Permission denied\); make it readable"):
        digest(tmp_path / "a.txt")


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


def test_more_sources_than_bytes_are_refused(tmp_path):
    (tmp_path / "a.txt").write_text("text\n" * 99)
    with pytest.raises(ValueError, match="max_bytes: got 2 for 3 sources, less than a byte each; take more bytes"):
        read(*[tmp_path / "a.txt"] * 3, max_bytes=2)


def test_a_name_that_the_hub_cannot_have_is_told_without_asking_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # so that the name is none of a folder of this machine either
    with pytest.raises(ValueError, match=r"'hf:../../etc' is no name of a data set; wanted hf:NAME or hf:OWNER/NAME"):
        digest("hf:../../etc")
