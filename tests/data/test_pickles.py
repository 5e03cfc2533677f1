"""Plain values come back as they were pickled; whatever could do something is refused, and never done."""

from __future__ import annotations

import datetime
import pickle
import struct
from collections import OrderedDict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.support.pickles import load_builtins, load_npy

KEYS = st.one_of(st.integers(), st.text(max_size=5), st.booleans())
SCALARS = st.one_of(KEYS, st.none(), st.floats(allow_nan=False), st.binary(max_size=300))
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.tuples(inner, inner, inner, inner),
        st.tuples(inner),
        st.dictionaries(KEYS, inner, max_size=4),
    ),
    max_leaves=20,
)


def written(folder, content, name="x.pkl"):
    path = folder / name
    path.write_bytes(content)
    return path


@settings(max_examples=200, deadline=None)
@given(VALUES, st.sampled_from([3, 4, 5]))
def test_plain_values_come_back(tmp_path_factory, value, protocol):
    shared = [value, value, [value]]  # by reference: the memo is read, not only written
    path = written(tmp_path_factory.getbasetemp(), pickle.dumps(shared, protocol))
    assert load_builtins(path) == shared
    assert type(load_builtins(path)[0]) is type(value)


class Runs:
    def __reduce__(self):
        return exec, ("raise SystemExit('a file has run code')",)


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize("load", [load_builtins, load_npy])
def test_code_never_runs(tmp_path, protocol, load):
    content = pickle.dumps(Runs(), protocol)
    if load is load_npy:
        content = npy_header() + content
    why = r"x.pkl: not a pickle of plain values: it names '(builtins|__builtin__)\.exec'"
    with pytest.raises(ValueError, match=why):
        load(written(tmp_path, content))


def npy_header(shape="()", descr="|O"):
    header = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header


@pytest.mark.parametrize(
    "value",
    [
        datetime.date(2020, 1, 1),
        OrderedDict(a=1),
        {1, 2},
        frozenset([1]),
        complex(1, 2),
        bytearray(b"a"),
        np.zeros(2),
        print,
    ],
)
def test_only_plain_values(tmp_path, value):
    with pytest.raises(ValueError, match="not a pickle of plain values"):
        load_builtins(written(tmp_path, pickle.dumps([value], 5)))


def nested_key(depth):
    """A dictionary whose key is a tuple of twice the same tuple of twice ...: its hash takes 2**depth."""
    doubled = b"".join(b"q%ch%c\x86" % (i, i) for i in range(depth))
    return b"\x80\x04})" + doubled + b"Ns."


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "pickle exhausted"),
        (b"not a pickle", "opcode|instruction"),
        (pickle.dumps([1, 2])[:-1], "pickle exhausted"),
        (pickle.dumps(list(range(99)))[:40], "exhausted|remain"),
        (b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b"a.", "remain"),  # bytes longer than the file
        (b"\x80\x04]r" + struct.pack("<I", 2**32 - 1) + b"0.", "instruction POP"),  # memory for 2**32 references
        (b"\x80\x04K\x01\x86.", "more than there is"),
        (b"\x80\x04h\x07.", "7"),  # never put
        (b"\x80\x04K\x01K\x02a.", "another type than int"),
        (b"\x80\x04]K\x01R.", "another type than int"),
        (b"\x80\x04}(K\x01u.", "zip"),
        (b"\x80\x04Pid\n.", "PERSID"),
        (b"\x80\x04\x82\x01.", "EXT1"),
        (b"\x80\x04}]]s.", "a key is neither"),
    ],
)
def test_damage_and_tricks_are_refused(tmp_path, content, why):
    with pytest.raises(ValueError, match=rf"x.pkl: not a pickle of plain values: .*({why})"):
        load_builtins(written(tmp_path, content))


def test_keys_that_take_forever_to_hash_are_refused_at_once(tmp_path):
    assert pickle.loads(nested_key(2)) == {(((), ()), ((), ())): None}
    with pytest.raises(ValueError, match="a key is neither text nor a number"):
        load_builtins(written(tmp_path, nested_key(60)))


def test_every_cut_of_a_file_is_a_value_error(tmp_path):
    np.save(tmp_path / "whole.npy", {"ecg": np.ones((2, 3), np.float32), "n": np.int64(3)})
    whole = (tmp_path / "whole.npy").read_bytes()
    for length in range(len(whole)):
        with pytest.raises(ValueError, match="x.pkl"):
            load_npy(written(tmp_path, whole[:length]))


def test_a_file_too_long_is_not_read(tmp_path):
    path = tmp_path / "long.pkl"
    with open(path, "wb") as file:
        file.truncate(2**28 + 1)
    with pytest.raises(ValueError, match=r"long.pkl: has 268,435,457 bytes"):
        load_builtins(path)


def same(a, b):
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    return type(a) is type(b) and a == b


RECORDING = {
    "ecg": np.random.default_rng(0).normal(size=(12, 50)).astype(np.float32),
    "report": "sinus rhythm",
    "path": "files/p1000/p10000032",
    "orig_sf": np.int64(500),
    "target_sf": 250,
    "segment_len": np.float64(1250),
    "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "big_endian": np.arange(3, dtype=">i4"),
    "empty": np.zeros((0, 3)),
    "mask": np.array([True, False]),
    "flag": np.bool_(True),
}


def test_recordings_come_back_as_numpy_reads_them(tmp_path):
    np.save(tmp_path / "r.npy", RECORDING)
    read = load_npy(tmp_path / "r.npy")
    assert read.keys() == RECORDING.keys()
    assert all(same(RECORDING[name], read[name]) for name in RECORDING)
    read["ecg"][0, 0] = 1  # writable, as any array


@pytest.mark.parametrize("protocol", [3, 4])
@pytest.mark.parametrize("core", [b"numpy.core", b"numpy._core"])
def test_recordings_of_either_numpy(tmp_path, protocol, core):
    holder = np.empty((), object)
    holder[()] = RECORDING
    content = pickle.dumps(holder, protocol)
    ours = b"numpy._core" if b"numpy._core" in content else b"numpy.core"
    if protocol == 4:  # names carry their length
        content = content.replace(
            struct.pack("<B", len(ours) + 11) + ours + b".multiarray",
            struct.pack("<B", len(core) + 11) + core + b".multiarray",
        )
    else:
        content = content.replace(ours + b".multiarray", core + b".multiarray")
    read = load_npy(written(tmp_path, npy_header() + content))
    assert all(same(RECORDING[name], read[name]) for name in RECORDING)


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ({"a": np.array(["x"], object)}, "an array of objects"),
        ({"a": np.array(["text"])}, "an array of 'U4'"),
        ({"a": np.array(["2020"], "M8[D]")}, "an array of 'M8'"),
        ({"a": np.zeros(1, [("f", "i4")])}, "an array of 'V4'"),
        ([1], "holds a list, not a dictionary"),
        ({"a": Runs()}, "builtins.exec"),
    ],
)
def test_other_objects_in_npy_are_refused(tmp_path, value, why):
    holder = np.empty((), object)
    holder[()] = value
    np.save(tmp_path / "r.npy", holder)
    with pytest.raises(ValueError, match=why):
        load_npy(tmp_path / "r.npy")


def test_arrays_of_numbers_are_left_to_numpy(tmp_path):
    np.save(tmp_path / "r.npy", np.zeros((2, 3), np.float32))
    with pytest.raises(ValueError, match=r"r.npy: holds an array \(2, 3\) of float32, .*numpy.load"):
        load_npy(tmp_path / "r.npy")
    with pytest.raises(ValueError, match="x.pkl: not an .npy file"):
        load_npy(written(tmp_path, b"words"))


def test_an_array_that_claims_more_than_it_holds_is_refused(tmp_path):
    array = np.arange(4, dtype=np.int8)
    holder = np.empty((), object)
    holder[()] = {"a": array}
    content = pickle.dumps(holder, 3).replace(b"K\x04\x85", b"M\xff\xff\x85")  # (4,) becomes (65535,)
    with pytest.raises(ValueError, match=r"an array \(65535,\) of int8 in 4 bytes"):
        load_npy(written(tmp_path, npy_header() + content))
