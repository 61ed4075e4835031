"""The auth string is made once, for its owner alone, and told apart from damage."""

import hashlib
import os
import stat
from concurrent.futures import ThreadPoolExecutor

import pytest

from pipeline.running.auth_string import auth_string, proof


def test_it_is_made_once_also_by_many_at_once(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        found = set(pool.map(auth_string, [tmp_path] * 32))
    assert found == {auth_string(tmp_path)}
    assert sorted(file.name for file in tmp_path.iterdir()) == ["auth-string", "auth-string.lock"]


def test_no_two_homes_have_the_same(tmp_path):
    homes = [tmp_path / name for name in "abc"]
    for home in homes:
        home.mkdir()
    assert len({auth_string(home) for home in homes}) == 3
    assert all(len(auth_string(home)) == 43 for home in homes)  # 32 bytes in base64


def test_its_file_is_never_open_to_others_whatever_the_umask(tmp_path, monkeypatch):
    modes = []

    def replace(old: str, new: str, real=os.replace) -> None:
        modes.append(stat.S_IMODE(os.stat(old).st_mode))
        real(old, new)

    monkeypatch.setattr(os, "replace", replace)
    before = os.umask(0)
    try:
        auth_string(tmp_path)
    finally:
        os.umask(before)
    assert modes == [0o600]
    assert stat.S_IMODE((tmp_path / "auth-string").stat().st_mode) == 0o600


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o666])
def test_one_that_others_may_read_or_write_is_refused(tmp_path, mode):
    auth_string(tmp_path)
    (tmp_path / "auth-string").chmod(mode)
    with pytest.raises(
        ValueError, match=rf"open to other users \(mode {mode:04o}, wanted 0600\); delete .*auth-string"
    ):
        auth_string(tmp_path)


@pytest.mark.parametrize("damage", [b"", b"short", b"A" * 42, b"A" * 44, b"A" * 42 + b"\xff", b"\0" * 43, b" " * 99])
def test_a_damaged_one_is_told_and_not_shown(tmp_path, damage):
    path = tmp_path / "auth-string"
    path.write_bytes(damage)
    path.chmod(0o600)
    with pytest.raises(ValueError, match=r"is damaged: wanted 43 letters, digits, - or _; delete .*auth-string"):
        auth_string(tmp_path)


def test_what_is_no_file_is_neither_followed_nor_waited_for(tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    auth_string(elsewhere)
    for make in (
        lambda path: os.symlink(elsewhere / "auth-string", path),
        lambda path: os.symlink(tmp_path / "nowhere", path),
        os.mkfifo,
        os.mkdir,
    ):
        home = tmp_path / f"home-{len(list(tmp_path.iterdir()))}"
        home.mkdir()
        make(home / "auth-string")
        with pytest.raises(ValueError, match=r"cannot be read|is damaged"):
            auth_string(home)


def test_a_proof_is_the_hmac_of_port_and_nonce():
    key = b"k" * 43 + bytes(64 - 43)
    inner = hashlib.sha256(bytes(byte ^ 0x36 for byte in key) + b"4200 ab12").digest()
    outer = hashlib.sha256(bytes(byte ^ 0x5C for byte in key) + inner).hexdigest()
    assert proof("k" * 43, 4200, "ab12") == outer
    assert outer not in (proof("k" * 43, 4201, "ab12"), proof("k" * 43, 4200, "ab13"), proof("j" * 43, 4200, "ab12"))
