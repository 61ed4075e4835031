"""The default corpus is the text that its list says, with package families held out whole."""

from importlib import metadata

import pytest

from pipeline.corpus import default as corpus_default
from pipeline.corpus.default import DOMAINS, AllowList, Pinned, allow_list, default_sha256, read_default


@pytest.fixture(scope="module")
def splits():
    """Reading it checks every file's sha256 and the digest of the whole text."""
    return read_default(max_bytes=10**9)


def allowing(monkeypatch, **changes):
    allowed = allow_list().model_copy(update=changes)
    monkeypatch.setattr(corpus_default, "allow_list", lambda: allowed)
    return allowed


def one_distribution(monkeypatch, **pinned) -> AllowList:
    original = allow_list().distributions["jsonpatch"]
    return allowing(monkeypatch, distributions={"jsonpatch": original.model_copy(update=pinned)})


def test_the_installed_packages_are_those_of_the_list():
    assert default_sha256() == default_sha256()


def test_only_pure_python_wheels_are_listed():
    for name in allow_list().distributions:
        wheel = metadata.distribution(name).read_text("WHEEL")
        tags = [line.removeprefix("Tag: ") for line in wheel.splitlines() if line.startswith("Tag: ")]
        assert tags, name
        assert all(tag.endswith("-none-any") for tag in tags), name


def test_every_package_out_of_train_exists_and_belongs_to_one_family():
    allowed = allow_list()
    families = (*allowed.held_out_families.values(), *allowed.validation_families.values())
    packages = [package for family in families for package in family]
    assert len(packages) == len(set(packages))
    known = {
        file.package for name, pinned in allowed.distributions.items()
        for file in corpus_default._recorded_files(name, pinned)
    }  # fmt: skip
    assert set(packages) <= known


def test_a_missing_package_is_named(monkeypatch):
    allowing(monkeypatch, distributions={"no-such-package": Pinned(version="1.0", files_sha256="")})
    with pytest.raises(ValueError, match=r"needs no-such-package 1.0, which is missing; run `make setup`"):
        default_sha256()


def test_another_version_is_named(monkeypatch):
    one_distribution(monkeypatch, version="0.1")
    with pytest.raises(ValueError, match=r"needs jsonpatch 0.1, not .*; run `make setup`"):
        default_sha256()


def test_another_wheel_of_the_same_version_is_named(monkeypatch):
    one_distribution(monkeypatch, files_sha256="0")
    with pytest.raises(ValueError, match=r"jsonpatch .* is not the wheel that .*; run `make setup`"):
        default_sha256()


def test_an_altered_file_is_named(monkeypatch, tmp_path):
    allowed = one_distribution(monkeypatch)
    (file, *_) = corpus_default._recorded_files("jsonpatch", allowed.distributions["jsonpatch"])
    altered = corpus_default._File(
        package=file.package, name=file.name, sha256=file.sha256, path=tmp_path / "altered.py"
    )
    with pytest.raises(ValueError, match=r"altered.py; run `make setup`"):
        corpus_default._verified_text(altered)
    altered.path.write_text("changed")
    with pytest.raises(ValueError, match=r"altered.py is not as its wheel recorded it .*; run `make setup`"):
        corpus_default._verified_text(altered)


def test_a_change_in_the_cleaning_is_noticed(monkeypatch):
    one_distribution(monkeypatch)
    with pytest.raises(ValueError, match=r"the default corpus has the digest .*: its cleaning changed; undo that"):
        read_default(max_bytes=10**9)


def test_over_long_lines_base64_and_tables_of_numbers_are_dropped():
    assert corpus_default._clean("a\n" + "b " * 3000 + "\n" + "QUJD" * 200 + "\nc\n") == "a\nc\n"
    assert corpus_default._clean("x = [1234, 5678, 9012]") == ""


def test_the_default_corpus_has_the_expected_text_in_four_domains(splits):
    assert splits.domains == DOMAINS
    assert sum(document.num_bytes for document in splits.documents) > 20_000_000


def test_no_package_family_is_in_two_splits(splits):
    allowed = allow_list()
    families = {**allowed.held_out_families, **allowed.validation_families}
    family_of = {p: family for family, packages in families.items() for p in packages}
    train, validation, held_out = (
        {family_of.get(document.origin, document.origin) for document in documents}
        for documents in (splits.train, splits.validation, splits.held_out)
    )
    assert held_out == set(allowed.held_out_families)
    assert validation == set(allowed.validation_families)
    assert not train & (held_out | validation)
    assert not validation & held_out


@pytest.mark.parametrize("domain", DOMAINS)
def test_every_domain_is_held_out_in_part_and_ruled_by_no_package(splits, domain):
    sizes: dict[str, int] = {}
    for document in splits.documents:
        if document.domain == domain:
            sizes[document.origin] = sizes.get(document.origin, 0) + document.num_bytes
    held_out = sum(document.num_bytes for document in splits.held_out if document.domain == domain)
    assert max(sizes.values()) < 0.15 * sum(sizes.values())
    assert 0.05 < held_out / sum(sizes.values()) < 0.11
    validation = sum(document.num_bytes for document in splits.validation if document.domain == domain)
    assert 0.04 < validation / sum(sizes.values()) < 0.15


def test_a_smaller_corpus_keeps_the_shares_of_domains_and_splits(splits):
    small = corpus_default._thinned(splits, 2_000_000)
    sizes = [
        {domain: sum(d.num_bytes for d in documents if d.domain == domain) for domain in DOMAINS}
        for each in (splits, small)
        for documents in each.by_name.values()
    ]
    total = sum(sum(part.values()) for part in sizes[:3])
    for whole, part in zip(sizes[:3], sizes[3:], strict=True):
        for domain in DOMAINS:
            assert part[domain] == pytest.approx(whole[domain] * 2_000_000 / total, rel=0.2, abs=20_000)
    assert sum(sum(part.values()) for part in sizes[3:]) <= 2_000_000
