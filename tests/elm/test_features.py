"""Cached encoder output: the same logits, computed once, found again only by what made it; and the collator on top."""

import ctypes
import errno
import fcntl
import json
import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock
from safetensors import safe_open

from data.conversations.rows import QuestionSet, dialogues, question_row
from data.support import cache
from elm import EcgCollator
from elm.inputs import features as features_module
from elm.inputs.features import FeatureStore, weights_hash
from elm.saved.arguments import ElmArguments
from elm.saved.run import feature_store
from encoders import load_encoder, save_encoder
from encoders.base import EcgEncoderOutput
from encoders.melp import MelpFeatureExtractor, MelpModel
from encoders.patch import PatchConfig, PatchEncoder, PatchFeatureExtractor


class Counting(PatchEncoder):
    """Counts the recordings it is given."""

    seen = 0

    def forward(self, ecg_values, token_mask=None):
        self.seen += len(ecg_values)
        assert not self.training and not torch.is_grad_enabled()
        return super().forward(ecg_values, token_mask)


@pytest.fixture
def source(make_ecg):
    return {f"r{i}": make_ecg(i, seconds=10 - i) for i in range(8)}


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    return Counting(PatchConfig(patch_size=200, hidden_size=12))


@pytest.fixture
def open_store(encoder, source, tmp_path):
    def make(encoder=encoder, extractor=None, source=source, name="corpus", root="cache", **settings):
        extractor = extractor or PatchFeatureExtractor.from_config(encoder.config)
        return FeatureStore(encoder, extractor, source, name, tmp_path / root, **settings)

    return make


def rows():
    def row(ecgs, question, answer):
        return question_row(
            id=question, ecgs=ecgs, patient_ids=["p"], question_type="t", question=question, answer=[answer]
        )

    single = [row(["r1"], "Is it?", "yes"), row([], "What?", "no"), row(["r5", "r2"], "Compare", "sinus rhythm")]
    return [*single, row(["r1"], "Is this a normal ECG?", "no")]


@torch.no_grad()
@pytest.mark.parametrize("encoder", ["patch", "features", "beats", "rhythm", "heart-words", "heart-compact", "codes"])
def test_the_same_labels_and_logits_as_from_recordings(make_pair, source, tmp_path, encoder):
    model, processor = make_pair(encoder, pool=2)
    store = FeatureStore(model.model.encoder, processor.feature_extractor, source, "corpus", tmp_path)
    batch = [*rows(), *dialogues(rows(), turns=2)]
    raw = EcgCollator(processor, source)(batch)
    cached = EcgCollator(processor, {}, store)(batch)  # the recordings are not read
    again = EcgCollator(processor, {}, FeatureStore(*_parts(store), {}, "corpus", tmp_path))(batch)
    inputs = {*model.model.encoder.ecg_inputs, "token_mask"}
    assert raw.keys() - inputs == cached.keys() - {"ecg_features", "ecg_mask"}
    for name in ("input_ids", "attention_mask", "labels"):
        assert torch.equal(raw[name], cached[name])
    assert (raw["labels"] != -100).any(dim=1).all()
    for loaded in (cached, again):
        got, want = model(**loaded), model(**raw)
        torch.testing.assert_close(got.logits, want.logits, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(got.loss, want.loss)


def _parts(store):
    return store.encoder, store.extractor


def test_features_are_those_of_the_encoder_bit_by_bit(open_store, encoder, source):
    got = open_store().get(["r3", "r0", "r3"])
    tensors = PatchFeatureExtractor.from_config(encoder.config)([source[r] for r in ("r3", "r0", "r3")])
    with torch.no_grad():
        want = encoder.eval()(**tensors)
    assert torch.equal(got["ecg_features"], want.last_hidden_state) and torch.equal(got["ecg_mask"], want.mask)
    assert got["ecg_mask"].sum(1).tolist() == [4, 5, 4]


def test_each_recording_is_encoded_once_and_found_when_opened_again(open_store, encoder):
    store = open_store().fill(["r0", "r1", "r2", "r1"], batch_size=2)
    assert encoder.seen == 3
    store.fill(["r0", "r3"])
    assert encoder.seen == 4 and "r3" in store and "r4" not in store
    want = store.get(["r3", "r1"])
    reopened = open_store()
    got = reopened.fill(["r0", "r1", "r2", "r3"]).get(["r3", "r1"])
    assert encoder.seen == 4
    assert all(torch.equal(got[name], want[name]) for name in want)


def test_what_makes_another_output_takes_another_folder(open_store, encoder):
    torch.manual_seed(1)
    config = encoder.config
    other_weights = Counting(config)
    one_bit = Counting(config)
    one_bit.load_state_dict(encoder.state_dict())
    with torch.no_grad():
        one_bit.position[0, 0] = torch.nextafter(one_bit.position[0, 0], torch.tensor(1e9))
    stores = [
        open_store(),
        open_store(other_weights),
        open_store(one_bit),
        open_store(Counting(config).to(torch.bfloat16)),
        open_store(extractor=PatchFeatureExtractor.from_config(config, normalize="zscore")),
        open_store(extractor=PatchFeatureExtractor.from_config(config, scale=1.0)),
        open_store(name="another corpus"),
        open_store(zero=True),
    ]
    assert len({store.folder for store in stores}) == len(stores)
    same = Counting(config)
    same.load_state_dict(encoder.state_dict())
    assert open_store(same).folder == stores[0].folder


def test_a_setting_that_moves_no_weight_takes_another_folder(encoder_config, open_store):
    """MELP's weights do not tell which of its outputs is read; nor do they, or the extractor, tell its heads."""
    encoders, stores = [], []
    for settings in ({}, {"name": "beats"}, {"name": "rhythm"}, {"num_attention_heads": 4}):
        torch.manual_seed(0)
        encoders.append(MelpModel(encoder_config(**{"name": "features"} | settings)))
        stores.append(open_store(encoders[-1], MelpFeatureExtractor.from_config(encoders[-1].config)))
    assert len({weights_hash(encoder) for encoder in encoders}) == 1
    assert len({store.folder for store in stores}) == 4


def test_saving_and_loading_an_encoder_finds_the_same_folder(open_store, tmp_path):
    torch.manual_seed(0)
    fresh = PatchEncoder(PatchConfig(patch_size=200, hidden_size=12))
    extractor = PatchFeatureExtractor.from_config(fresh.config, scale=0.7)
    before = open_store(fresh, extractor).folder
    save_encoder(fresh, extractor, tmp_path / "encoder")
    assert open_store(*load_encoder(tmp_path / "encoder")).folder == before
    assert open_store(*load_encoder(tmp_path / "encoder", scale=0.8)).folder != before


def test_zeroed_inputs_and_not_zeroed_outputs(open_store, encoder, source):
    zeros = open_store(zero=True).get(["r0", "r4"])
    assert torch.equal(zeros["ecg_mask"], open_store().get(["r0", "r4"])["ecg_mask"])
    with torch.no_grad():
        want = encoder.eval()(torch.zeros(2, 12, 1000)).last_hidden_state
    assert torch.equal(zeros["ecg_features"], want) and want.abs().max() > 0


class Breaking(dict):
    """A source whose disk fails at one record."""

    def __getitem__(self, record):
        if record == "r5":
            raise OSError("the disk is gone")
        return super().__getitem__(record)


def test_an_interrupted_fill_leaves_nothing_to_read(open_store, encoder, source):
    store = open_store(source=Breaking(source))
    store.fill(["r0"])
    encoder.train()
    with pytest.raises(OSError, match="the disk is gone"):
        store.fill(["r1", "r2", "r5", "r6"], batch_size=1)
    assert encoder.training, "the encoder is left as it was"
    seen = encoder.seen
    for left in (store, open_store()):
        assert "r0" in left and not any(record in left for record in ("r1", "r2", "r5", "r6"))
        assert litter(left) == set()
    got = open_store().get(["r1", "r5"])
    assert encoder.seen == seen + 2
    fresh = PatchFeatureExtractor.from_config(encoder.config)([source["r1"], source["r5"]])
    with torch.no_grad():
        assert torch.equal(got["ecg_features"], encoder.eval()(**fresh).last_hidden_state)


def litter(store):
    """What a store's folder holds beside shards and the file whose bytes are locked."""
    return {path.name for path in store.folder.iterdir() if path.suffix != ".safetensors"} - {".claims"}


def shards(store):
    """The bytes of every shard."""
    return {path.name: path.read_bytes() for path in store.folder.glob("*.safetensors")}


# --- shards and processes ---------------------------------------------------------------------------------------------

FORK = multiprocessing.get_context("fork")  # a new interpreter would import torch for seconds


class Slow(dict):
    """A source that takes its time, and notes whom it gave what."""

    def __init__(self, records, log=None, seconds=0.003):
        super().__init__(records)
        self.log, self.seconds = log, seconds

    def __getitem__(self, record):
        time.sleep(self.seconds)
        if self.log is not None:
            with open(self.log, "a") as file:
                file.write(f"{os.getpid()} {record}\n")
        return super().__getitem__(record)


class Waiting(Slow):
    """A source that never gives anything, and notes that it was asked."""

    def __getitem__(self, record):
        self.log.touch()
        time.sleep(600)


@pytest.fixture
def many(make_ecg):
    return {f"m{i}": make_ecg(i, seconds=2) for i in range(60)}


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(features_module, "SHARD_RECORDS", 4)


def child(run):
    torch.set_num_threads(1)  # a pool of threads does not survive a fork
    process = FORK.Process(target=run, daemon=True)
    process.start()
    return process


def test_shards_hold_so_many_records_or_so_many_bytes(open_store, many, monkeypatch):
    monkeypatch.setattr(features_module, "SHARD_RECORDS", 25)
    store = open_store(source=many).fill(many)
    sizes = [len(json.loads(opened.metadata()["records"])) for opened in opened_shards(store)]
    assert sorted(sizes) == [10, 25, 25]
    monkeypatch.setattr(features_module, "SHARD_BYTES", 4000)  # 5 tokens of 12 numbers and a mask take 245, an id 64
    store = open_store(source=many, name="another").fill(many)
    assert all(opened.get_slice("features").get_shape() == [12, 5, 12] for opened in opened_shards(store))


def opened_shards(store):
    return [safe_open(path, "numpy") for path in store.folder.glob("*.safetensors")]


@pytest.mark.slow
def test_killed_at_any_moment_a_fill_goes_on_to_the_same_bytes(open_store, many, small_shards):
    undisturbed = open_store(source=many, root="undisturbed").fill([*many])
    draw, kills, longest, found, begun = random.Random(0), 0, 0.05, [], time.monotonic()
    while len(found) < len(many):
        assert time.monotonic() - begun < 300, f"{len(found)} of {len(many)} records after {kills} kills"
        before = len(found)
        process = child(lambda: open_store(source=Slow(many)).fill(many, batch_size=4))
        time.sleep(draw.uniform(0, longest))
        process.kill()
        process.join()
        kills += process.exitcode == -signal.SIGKILL
        store = open_store(source={})  # whatever is there is whole: it is found and read
        found = [record for record in many if record in store]
        assert len(found) == 4 * len(list(store.folder.glob("*.safetensors"))) >= before
        if found:
            assert torch.equal(store.get(found)["ecg_features"], undisturbed.get(found)["ecg_features"])
        longest *= 1 if len(found) > before else 1.2  # a slow machine
    assert kills >= 5
    # A shard that was being written, and whoever wrote it, are gone for good with the next one that is written.
    store = open_store(source=many)
    for path in list(store.folder.glob("*.safetensors"))[:1]:
        path.unlink()
    (store.folder / ".0123456789abcdef.safetensors.00112233").write_bytes(b"torn")
    store.fill(many)
    assert shards(store) == shards(undisturbed) and litter(store) == set()


def test_processes_share_the_work_and_readers_see_it(open_store, encoder, many, small_shards, tmp_path):
    log, records = tmp_path / "log", [*many]
    reader = open_store(source={})
    before = open_store(source=many).fill(records[30:32])
    here = [
        child(lambda mine=mine: open_store(source=Slow(many, log)).fill(mine)) for mine in (records[:45], records[15:])
    ]
    for process in here:
        process.join(240)
        assert process.exitcode == 0
    given = [line.split() for line in log.read_text().splitlines()]
    assert sorted(record for _, record in given) == sorted(set(records) - {"m30", "m31"}), "each once"
    assert {int(pid) for pid, _ in given} == {process.pid for process in here}
    seen = encoder.seen
    assert reader.get(records)["ecg_features"].shape[0] == before.get(records)["ecg_features"].shape[0] == 60
    assert encoder.seen == seen and litter(reader) == set()
    want = open_store(source=many, root="undisturbed").get(records)["ecg_features"]
    torch.testing.assert_close(reader.get(records)["ecg_features"], want)


def test_who_waits_for_a_process_that_dies_does_its_work(open_store, many, small_shards, tmp_path):
    records = [*many][:6]
    log, folder = tmp_path / "log", open_store().folder
    holder = child(lambda: open_store(source=Waiting(many, log)).fill(records))
    until(log.exists)
    other = child(lambda: open_store(source=many).fill(records))
    until(lambda: len(list(folder.glob("*.safetensors"))) == 1)  # the two records that nobody had claimed
    other.join(0.3)
    assert other.is_alive(), "it waits"
    got = open_store(source=many).get(records[:1])["ecg_features"]  # who only reads does not
    holder.kill()
    other.join(240)
    assert other.exitcode == 0
    store = open_store(source={})
    assert all(record in store for record in records) and litter(store) == set()
    assert torch.equal(store.get(records[:1])["ecg_features"], got)


def until(reached, seconds=240):
    begun = time.monotonic()
    while not reached():
        assert time.monotonic() - begun < seconds
        time.sleep(0.01)


def test_reading_waits_for_no_lock(open_store, encoder):
    store = open_store().fill(["r0"])
    seen = encoder.seen
    with open(store.folder / ".claims", "w") as claims, FileLock(store.root / ".features.lock"):
        fcntl.lockf(claims, fcntl.LOCK_EX)  # all of its bytes
        reader = child(lambda: (open_store(source={}).get(["r0"]), open_store(source={}).fill(["r0"])))
        reader.join(240)
    assert reader.exitcode == 0 and encoder.seen == seen


# --- room -------------------------------------------------------------------------------------------------------------


def taken(store):
    return sum(path.stat().st_size for path in store.root.glob("features-*/*"))


def test_the_longest_unused_shards_of_others_make_room(open_store, encoder, many, small_shards, caplog):
    records = [*many]
    size = taken(open_store(source=many, root="one", name="old").fill(records[:4]))
    cache_gb = 6.5 * size / 1e9
    old = open_store(source=many, name="old", cache_gb=cache_gb).fill(records[:16])
    other = open_store(source=many, name="other", cache_gb=cache_gb).fill(records[:8])
    for age, path in enumerate(sorted(old.folder.glob("*.safetensors"), key=lambda path: path.stat().st_mtime)):
        os.utime(path, (0, 1000 + age))
    for path in other.folder.glob("*.safetensors"):
        os.utime(path, (0, 900))
    open_store(source=many, name="other", cache_gb=cache_gb).get(records[:4])  # used: no longer the oldest
    new = open_store(source=many, name="new", cache_gb=cache_gb).fill(records[:12])
    assert not caplog.records and taken(new) <= cache_gb * 1e9
    left = {name: open_store(source=many, name=name) for name in ("old", "other", "new")}
    assert [sum(record in store for record in records) for store in left.values()] == [8, 4, 12]
    assert all(record in left["old"] for record in records[8:16]) and all(r in left["other"] for r in records[:4])
    # A store that had the shards open goes on, and pushes nobody out by being read.
    seen, want = encoder.seen, open_store(source=many, root="undisturbed").get(records[:16])
    encoder.seen = seen
    got = old.get(records[:16])
    assert all(torch.equal(got[name], want[name]) for name in want) and encoder.seen == seen + 8
    assert all(record in open_store(source={}, name="new") for record in records[:12])
    assert taken(new) <= cache_gb * 1e9


def test_what_does_not_fit_is_computed_each_time_and_said_once(open_store, encoder, many, caplog):
    records = [*many]
    store = open_store(source=many, cache_gb=15_000 / 1e9)
    assert store.fill(records) is store
    kept = [record for record in records if record in store]
    assert 45 <= len(kept) < 60 and 14_000 < taken(store) <= 15_000
    want = open_store(source=many, root="undisturbed").get(records)
    encoder.seen = 0
    for _ in range(2):
        got = store.get(records)
        torch.testing.assert_close(got, want, atol=1e-6, rtol=0)  # other batches are other sums
    assert encoder.seen == 2 * (60 - len(kept)) and taken(store) <= 15_000
    (message,) = [record.getMessage() for record in caplog.records]
    assert f"no room for the encoder's output of {60 - len(kept)} recordings in {store.folder}" in message
    assert "cache_gb is 1.5e-05; with them it takes 1.85e-05 GB" in message and "encoded each time" in message


def test_nothing_is_kept_of_0_gb(open_store, encoder, caplog, tmp_path):
    store = open_store(cache_gb=0).fill(["r0"])
    store.get(["r0"]), store.get(["r0"])
    assert encoder.seen == 2 and not caplog.records and not (tmp_path / "cache").exists()
    for wrong in (-1, float("nan")):
        with pytest.raises(ValueError, match=r"cache_gb must be 0 \(keep nothing\) or more, got"):
            open_store(cache_gb=wrong)


@pytest.mark.parametrize("way", ["fill", "get"])
def test_a_full_disk_is_no_room(open_store, encoder, monkeypatch, caplog, way):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    store = open_store().fill(["r7"])
    monkeypatch.setattr(cache, "written_whole", full)
    if way == "fill":
        store.fill(["r0", "r1"])
    encoder.seen = 0
    for _ in range(2):
        assert store.get(["r0", "r1"])["ecg_features"].shape == (2, 5, 12)
    assert encoder.seen == 4
    (message,) = [record.getMessage() for record in caplog.records]
    assert "of 2 recordings" in message and "No space left on device on its disk" in message
    monkeypatch.setattr(cache, "written_whole", lambda *_: (_ for _ in ()).throw(PermissionError("not yours")))
    with pytest.raises(PermissionError, match="not yours"):
        store.fill(["r0"])


def mount_small_disk(folder, size):
    """A disk of its own for this process; an `OSError` where that is not allowed."""
    libc, user, group = ctypes.CDLL(None, use_errno=True), os.getuid(), os.getgid()
    if libc.unshare(0x10000000 | 0x00020000):  # CLONE_NEWUSER, CLONE_NEWNS
        raise OSError(ctypes.get_errno(), "unshare")
    for name, content in (("setgroups", "deny"), ("uid_map", f"0 {user} 1"), ("gid_map", f"0 {group} 1")):
        Path("/proc/self", name).write_text(content)
    if libc.mount(b"none", os.fsencode(folder), b"tmpfs", 0, b"size=%d" % size):
        raise OSError(ctypes.get_errno(), "mount")


def test_a_disk_that_is_really_full(open_store, many, small_shards, monkeypatch):
    """Shards of 62 kB on a disk of 256 kB, most of which somebody else takes."""
    wide = Counting(PatchConfig(patch_size=20, hidden_size=78))
    said, messages = FORK.Pipe(duplex=False)

    def fill():
        store = open_store(wide, source=many)
        store.root.mkdir()
        try:
            mount_small_disk(store.root, 256_000)
        except OSError as error:
            return messages.send(f"no disk of its own: {error}")
        monkeypatch.setattr(features_module.logger, "warning", lambda *args: messages.send(args[0] % args[1:]))
        records, other = [*many][:12], store.root / "somebody else's"
        other.write_bytes(bytes(100_000))
        store.fill(records)
        assert store.get(records)["ecg_features"].shape == (12, 50, 78)
        assert sum(record in store for record in records) == 8 and litter(store) == set()
        other.unlink()
        assert all(record in store.fill(records) for record in records) and litter(store) == set()
        messages.send("")

    process = child(fill)
    process.join(240)
    message = said.recv() if said.poll() else ""
    if message.startswith("no disk"):
        pytest.skip(message)
    assert process.exitcode == 0 and "of 4 recordings" in message and "No space left on device on its disk" in message
    assert said.recv() == "", "said once"


def test_a_damaged_shard_is_deleted_and_computed_anew(open_store, encoder, caplog):
    store = open_store().fill(["r0", "r1"])
    (path,) = store.folder.glob("*.safetensors")
    whole, want = path.read_bytes(), store.get(["r0", "r1"])
    length = 8 + int.from_bytes(whole[:8], "little")
    shorter = [whole[:cut] for cut in (0, 5, 100, length, len(whole) - 1)]
    not_json = whole[:8] + b"{" * (length - 8) + whole[length:]
    for damaged in (*shorter, whole + b"\0", not_json, whole.replace(b"r0", b'r"')):
        path.write_bytes(damaged)
        caplog.clear()
        assert "r0" not in open_store() and f"{path} is damaged, it" in caplog.text
        assert not path.exists()
    path.write_bytes(shorter[-1])  # cut short after it was opened
    caplog.clear()
    assert torch.equal(store.get(["r0", "r1"])["ecg_features"], want["ecg_features"])
    encoder.seen = 0
    assert torch.equal(open_store().get(["r0", "r1"])["ecg_features"], want["ecg_features"])


def test_an_encoder_on_a_gpu_is_not_run_by_a_data_loaders_worker(open_store, encoder, monkeypatch):
    store = open_store().fill(["r0"])
    encoder.to("meta")
    monkeypatch.setattr(torch.utils.data, "get_worker_info", lambda: object())
    assert store.get(["r0"])["ecg_features"].shape == (1, 5, 12)
    with pytest.raises(RuntimeError, match="cannot run the encoder on meta, and 'r1' is not in the feature cache"):
        store.get(["r1"])


def test_no_records(open_store):
    with pytest.raises(ValueError, match="no records to get"):
        open_store().get([])


def test_the_encoder_is_moved_for_a_fill_and_moved_back(open_store, encoder, monkeypatch):
    went = []
    monkeypatch.setattr(encoder, "to", lambda device: went.append(torch.device(device)))
    open_store().fill(["r0"], device="cpu:0").fill(["r0"], device="cpu:0")
    assert went == [torch.device("cpu:0"), torch.device("cpu"), torch.device("cpu")]


def test_a_run_says_how_much_its_caches_may_take(pair, source, tmp_path):
    questions = QuestionSet("q", source, "corpus", train=[], test=[], reports=[], patient_of={})
    arguments = ElmArguments(cache_dir=str(tmp_path), cache_gb=1e-6)
    store = feature_store(arguments, pair.model, pair.processor, questions)
    assert store.cache_gb == 1e-6 and store.root == tmp_path
    store.fill(source)
    assert taken(store) <= 1000


def test_a_missing_record_is_the_sources_error(open_store):
    store = open_store()
    with pytest.raises(KeyError, match="r99"):
        store.get(["r0", "r99"])
    assert "r0" not in store


def test_padding_that_is_not_a_number_does_not_spread(make_pair, source, tmp_path):
    """Neither from the cache nor from the encoder."""
    model, processor = make_pair(pool=2, mode="mean")

    class Careless(PatchEncoder):
        def forward(self, ecg_values, token_mask=None):
            tokens = super().forward(ecg_values, token_mask).last_hidden_state
            return EcgEncoderOutput(tokens.masked_fill(~token_mask[..., None], float("nan")), token_mask)

    model.model.encoder = Careless(model.config.encoder_config).eval()
    store = FeatureStore(model.model.encoder, processor.feature_extractor, source, "corpus", tmp_path)
    for collator in (EcgCollator(processor, source), EcgCollator(processor, source, store)):
        loss = model(**collator(rows())).loss
        loss.backward()
        assert loss.isfinite() and all(weight.grad.isfinite().all() for weight in model.model.projector.parameters())


def test_training_on_zeros(pair, source):
    collator = EcgCollator(pair.processor, source, zero_inputs=pair.model.model.encoder.ecg_inputs)
    real, zeros = EcgCollator(pair.processor, source)(rows()), collator(rows())
    assert zeros["ecg_values"].shape == real["ecg_values"].shape and (zeros["ecg_values"] == 0).all()
    assert all(torch.equal(zeros[name], real[name]) for name in real if name != "ecg_values")
    text = [row for row in rows() if not row["ecgs"]]
    assert collator(text).keys() == {"input_ids", "attention_mask", "labels"}


def test_rows_without_any_ecg(pair, source, tmp_path):
    model, processor = pair
    store = FeatureStore(model.model.encoder, processor.feature_extractor, source, "corpus", tmp_path)
    text = [row for row in rows() if not row["ecgs"]] * 2
    cached, raw = EcgCollator(processor, source, store)(text), EcgCollator(processor, source)(text)
    assert cached.keys() == raw.keys() and all(torch.equal(cached[name], raw[name]) for name in raw)
    assert model(**cached).loss.isfinite()


def test_the_hash_knows_names_shapes_types_and_values():
    def module(**parameters):
        made = torch.nn.Module()
        for name, value in parameters.items():
            made.register_buffer(name, value)
        return made

    a = torch.arange(6.0)
    variants = [
        module(a=a),
        module(b=a),
        module(a=a.view(2, 3)),
        module(a=a.int()),
        module(a=a.double()),
        module(a=a.flip(0)),
        module(a=a, b=torch.tensor(True)),
        module(a=torch.where(a == 0, -a, a)),  # minus zero
        module(a=0 * a),
        module(a=0 * a.int()),
    ]
    assert len({weights_hash(one) for one in variants}) == len(variants)
    strided = torch.stack([a, a], dim=1)[:, 0]
    assert not strided.is_contiguous() and weights_hash(module(a=strided)) == weights_hash(module(a=a))


def test_shards_are_safetensors(open_store, encoder):
    """Numbers and JSON: nothing that runs code when it is read."""
    store = open_store().fill(["r0", "r1"])
    (shard,) = opened_shards(store)
    assert json.loads(shard.metadata()["records"]) == ["r0", "r1"]
    want = store.get(["r0", "r1"])
    assert np.array_equal(shard.get_tensor("features"), want["ecg_features"].numpy())
    assert np.array_equal(shard.get_tensor("mask"), want["ecg_mask"].numpy())
