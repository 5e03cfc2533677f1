"""Files are there whole, or as they were before."""

import errno
import os
import threading

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from data.support.cache import written_once
from data.support.files import disk_errors_of, is_writable, read_json, require_writable, written_whole
from helpers.read_only import little_room, read_only


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


@pytest.mark.parametrize(
    "write",
    [
        lambda file: file.write(bytes(100_000)),
        lambda file: [file.write(b"a line of a table\n") for _ in range(10_000)],
        lambda file: np.save(file, np.zeros(100_000)),
        lambda file: torch.save(torch.zeros(100_000), file),
    ],
    ids=["bytes", "lines", "numpy", "torch"],
)
def test_a_full_disk_is_said_with_the_file_and_leaves_nothing(there, write):
    for path in (there, there.with_name("new")):
        with little_room(), pytest.raises(OSError) as info, written_whole(path) as file:
            write(file)
        assert info.value.filename == str(path) and info.value.errno in (errno.EFBIG, errno.ENOSPC)
    with little_room(), pytest.raises(OSError) as info:
        written_once(there.with_name("cached"), write)
    assert info.value.filename == str(there.with_name("cached"))
    assert there.read_text() == "before" and names(there.parent) == ["a.txt"]


def test_libraries_that_do_not_name_the_file(tmp_path):
    for write in (
        lambda: save_file({"w": torch.zeros(100_000)}, tmp_path / "model.safetensors"),
        lambda: torch.save(torch.zeros(100_000), tmp_path / "optimizer.pt"),
    ):
        with little_room(), pytest.raises(OSError) as info, disk_errors_of(tmp_path):
            write()
        assert info.value.filename == str(tmp_path) and info.value.errno in (errno.EFBIG, errno.ENOSPC)
    with pytest.raises(ValueError, match="^other$"), disk_errors_of(tmp_path):
        raise ValueError("other")


def test_errors_about_other_files_stay_theirs(tmp_path):
    with pytest.raises(FileNotFoundError) as info, written_whole(tmp_path / "a") as file:
        file.write((tmp_path / "source").read_bytes())
    assert info.value.filename == str(tmp_path / "source")
    with pytest.raises(ConnectionRefusedError), written_whole(tmp_path / "a"):
        raise ConnectionRefusedError(errno.ECONNREFUSED, "refused")


def test_a_folder_that_cannot_be_written_is_named_with_the_flag(there, tmp_path):
    for folder, number in ((there, errno.EEXIST), (there / "below", errno.ENOTDIR), (tmp_path / "ro", errno.EROFS)):
        with read_only(tmp_path / "ro"), pytest.raises(OSError) as info:
            require_writable(folder, "--out")
        assert (info.value.errno, info.value.filename) == (number, str(folder))
        assert info.value.__notes__ == ["give --out a folder that can be written"]
        assert not is_writable(folder)
    require_writable(tmp_path / "new" / "er", "--out")
    assert is_writable(tmp_path / "new" / "er") and names(tmp_path / "new" / "er") == []


@pytest.mark.parametrize("content", [b"{", b"", b"\xff\xfe", b"[1,]"])
def test_json_that_is_damaged_is_named(there, content):
    there.write_bytes(content)
    with pytest.raises(ValueError, match="a.txt is damaged, it is not JSON"):
        read_json(there)
