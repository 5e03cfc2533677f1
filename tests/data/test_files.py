"""Files are there whole, or as they were before."""

import os
import threading

import pytest

from data.support.files import written_whole


@pytest.fixture
def there(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("before")
    return path


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_error_leaves_the_old_file_and_no_litter(there, error):
    with pytest.raises(error), written_whole(there, "w") as file:
        file.write("half of what")
        file.flush()
        raise error
    assert there.read_text() == "before"
    assert names(there.parent) == ["a.txt"]


def test_an_error_leaves_no_file_where_there_was_none(tmp_path):
    with pytest.raises(OSError, match="disk full"), written_whole(tmp_path / "new.bin") as file:
        file.write(b"half")
        raise OSError("disk full")
    assert names(tmp_path) == []


def test_the_old_file_stands_until_the_new_one_is_complete(there):
    with written_whole(there, "w") as file:
        file.write("after")
        file.flush()
        assert there.read_text() == "before"
    assert there.read_text() == "after"
    assert names(there.parent) == ["a.txt"]


def test_text_is_utf8_and_bytes_are_bytes(tmp_path):
    with written_whole(tmp_path / "deep" / "er" / "t.txt", "w") as file:
        file.write("µV – Ä")
    assert (tmp_path / "deep" / "er" / "t.txt").read_bytes() == "µV – Ä".encode()
    with written_whole(str(tmp_path / "b")) as file:
        file.write(b"\r\n\x00\xff")
    assert (tmp_path / "b").read_bytes() == b"\r\n\x00\xff"


@pytest.mark.parametrize("mode", ["r", "a", "r+b", "x", "w+"])
def test_other_modes_are_refused(there, mode):
    with pytest.raises(ValueError, match="mode must be 'w' or 'wb'"), written_whole(there, mode):
        pass
    assert there.read_text() == "before" and names(there.parent) == ["a.txt"]


@pytest.mark.skipif(os.name != "posix", reason="permissions are those of POSIX")
@pytest.mark.parametrize(("umask", "permissions"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_permissions_follow_the_umask(tmp_path, umask, permissions):
    before = os.umask(umask)
    try:
        with written_whole(tmp_path / "f") as file:
            file.write(b"x")
    finally:
        os.umask(before)
    assert (tmp_path / "f").stat().st_mode & 0o777 == permissions


def test_two_writers_do_not_mix(tmp_path):
    both = threading.Barrier(2)

    def write(letter):
        with written_whole(tmp_path / "f", "w") as file:
            for _ in range(100):
                file.write(letter * 1000)
            both.wait(timeout=10)

    writers = [threading.Thread(target=write, args=(letter,)) for letter in "ab"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    text = (tmp_path / "f").read_text()
    assert len(text) == 100_000 and len(set(text)) == 1
    assert names(tmp_path) == ["f"]
