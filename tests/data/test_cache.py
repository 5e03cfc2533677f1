"""What is computed once: by one process, whole or not at all, whoever is killed meanwhile."""

import json
import multiprocessing
import os
import time

import pytest

from data.support.cache import NoRoom, Shards, built_once, cache_key, computed_once, locked, written_once

FORK = multiprocessing.get_context("fork")


def child(run, *args):
    process = FORK.Process(target=run, args=args, daemon=True)
    process.start()
    return process


def until(reached, seconds=240):
    begun = time.monotonic()
    while not reached():
        assert time.monotonic() - begun < seconds
        time.sleep(0.01)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_key_follows_from_every_part_and_not_from_the_order_of_settings():
    keys = [cache_key(*parts) for parts in ([], [1], ["1"], [1, 2], [[1, 2]], [{"a": 1}], [{"a": 2}], [None])]
    assert len(set(keys)) == len(keys) and all(len(key) == 16 for key in keys)
    assert cache_key({"a": 1, "b": 2}) == cache_key({"b": 2, "a": 1})
    with pytest.raises(TypeError):
        cache_key(object())


def build(folder, log, seconds=0.2):
    (folder / "begun").write_text("")
    with open(log, "a") as file:
        file.write(f"{os.getpid()}\n")
    time.sleep(seconds)
    (folder / "done").write_text("")


@pytest.mark.parametrize("killed", [False, True])
def test_a_folder_is_built_by_one_process_and_by_the_next_if_that_one_is_killed(tmp_path, killed):
    folder, log = tmp_path / "cache" / "model", tmp_path / "log"
    first = child(lambda: built_once(folder, lambda partial: build(partial, log, 600 if killed else 1)))
    until(log.exists)
    others = [child(lambda: built_once(folder, lambda partial: build(partial, log))) for _ in range(3)]
    time.sleep(0.2)
    assert not folder.exists() and all(process.is_alive() for process in others), "they wait"
    if killed:
        first.kill()
    for process in (first, *others):
        process.join(240)
    assert [process.exitcode for process in others] == [0, 0, 0]
    assert len(log.read_text().splitlines()) == 1 + killed
    assert names(folder) == ["begun", "done"] and names(tmp_path / "cache") == ["model"]


def test_what_fails_leaves_nothing(tmp_path):
    def fail(*_):
        raise ValueError("no")

    for once in (built_once, written_once, computed_once):
        with pytest.raises(ValueError, match="no"):
            once(tmp_path / "x", fail)
        assert names(tmp_path) == []


def test_a_value_is_computed_once(tmp_path):
    path, calls = tmp_path / "deep" / "value.json", []

    def compute():
        calls.append(1)
        return {"µ": [1.5, None, "x"]}

    assert computed_once(path, compute) == computed_once(path, compute) == {"µ": [1.5, None, "x"]} and len(calls) == 1
    assert written_once(path, lambda file: file.write(b"other")) == path and json.loads(path.read_text())["µ"]
    assert names(path.parent) == ["value.json"]


def test_a_lock_ends_with_its_process(tmp_path):
    def hold():
        with locked(tmp_path / "x"):
            (tmp_path / "held").write_text("")
            time.sleep(600)

    holder = child(hold)
    until((tmp_path / "held").exists)
    waiting = child(lambda: locked(tmp_path / "x").__enter__())
    waiting.join(0.3)
    assert waiting.is_alive()
    holder.kill()
    waiting.join(240)
    assert waiting.exitcode == 0


# --- shards -----------------------------------------------------------------------------------------------------------


def open_shards(root, key="a", **settings):
    return Shards(root, "numbers", [key], ".txt", **settings)


def contents(shards):
    read = []
    gone = shards.refresh(lambda path: read.append(path.read_text()))
    return sorted(read), gone


def test_shards_that_come_and_go_are_noticed(tmp_path):
    one, other = open_shards(tmp_path), open_shards(tmp_path)
    assert contents(one) == ([], set()) and one.folder == other.folder != open_shards(tmp_path, "b").folder
    one.write(["r0", "r1"], b"first")
    other.write(["r2"], b"second")
    for shards in (one, other):
        assert contents(shards) == (["first", "second"], set()) and contents(shards) == ([], set())
    one.path_of(["r2"]).unlink()
    assert contents(other) == ([], {one.path_of(["r2"]).name})
    assert names(one.folder) == [one.path_of(["r0", "r1"]).name]


def test_a_damaged_shard_is_deleted(tmp_path, caplog):
    shards = open_shards(tmp_path)
    shards.write(["r0"], b"")

    def refuse(path):
        raise ValueError("it is empty")

    shards.refresh(refuse)
    assert "is damaged, it is empty: it is deleted and computed anew" in caplog.text and names(shards.folder) == []


def test_records_are_claimed_until_the_block_ends_or_the_process(tmp_path):
    shards, records = open_shards(tmp_path), [f"r{i}" for i in range(6)]

    def hold():
        with open_shards(tmp_path).claimed(records, 4) as claimed:
            (tmp_path / "held").write_text(" ".join(claimed))
            time.sleep(600)

    holder = child(hold)
    until(lambda: (tmp_path / "held").exists() and (tmp_path / "held").read_text())
    with shards.claimed(records, 4) as claimed:
        assert claimed == ["r4", "r5"]
    with shards.claimed(reversed(records), 1) as claimed:
        assert claimed == ["r5"]

    def wait():
        with open_shards(tmp_path).claimed(records[:2], 4) as claimed:
            assert claimed == []

    waiting = child(wait)
    waiting.join(0.3)
    assert waiting.is_alive()
    holder.kill()
    waiting.join(240)
    assert waiting.exitcode == 0
    with shards.claimed(records, 9) as claimed:
        assert claimed == records
    assert names(shards.folder) == [".claims"]


def test_the_longest_unused_shards_of_other_folders_make_room(tmp_path):
    old, new = open_shards(tmp_path, "old", limit_gb=1e-7), open_shards(tmp_path, "new", limit_gb=1e-7)  # 100 bytes
    for age, record in enumerate("abc"):
        old.write([record], bytes(30))
        os.utime(old.path_of([record]), (0, 1000 + age))
    old.touch(old.path_of(["a"]))  # used: no longer the oldest
    with pytest.raises(NoRoom, match="cache_gb is 1e-07"):
        new.write(["d"], bytes(30))
    assert new.room() == 10 and new.room(evict=True) == 100 and old.room(evict=True) == 10
    (old.folder / ".torn.txt.0123").write_bytes(bytes(30))  # of a process that was killed
    new.write(["d"], bytes(50), evict=True)
    assert names(old.folder) == [old.path_of(["a"]).name] and new.room() == 20
    with pytest.raises(NoRoom):
        old.write(["e"], bytes(101), evict=True)
