"""Cached encoder output: the same logits, computed once, found again only by what made it; and the collator on top."""

import json

import numpy as np
import pytest
import torch

from data.conversations.rows import dialogues, question_row
from elm import EcgCollator
from elm import features as features_module
from elm.features import FeatureStore, weights_hash
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
    def make(encoder=encoder, extractor=None, source=source, name="corpus", zero=False):
        extractor = extractor or PatchFeatureExtractor.from_config(encoder.config)
        return FeatureStore(encoder, extractor, source, name, tmp_path / "cache", zero=zero)

    return make


def rows():
    def row(ecgs, question, answer):
        return question_row(
            id=question, ecgs=ecgs, patient_ids=["p"], question_type="t", question=question, answer=[answer]
        )

    single = [row(["r1"], "Is it?", "yes"), row([], "What?", "no"), row(["r5", "r2"], "Compare", "sinus rhythm")]
    return [*single, row(["r1"], "Is this a normal ECG?", "no")]


@torch.no_grad()
@pytest.mark.parametrize("encoder", ["patch", "features", "beats", "rhythm"])
def test_the_same_labels_and_logits_as_from_recordings(make_pair, source, tmp_path, encoder):
    model, processor = make_pair(encoder, pool=2)
    store = FeatureStore(model.model.encoder, processor.feature_extractor, source, "corpus", tmp_path)
    batch = [*rows(), *dialogues(rows(), turns=2)]
    raw = EcgCollator(processor, source)(batch)
    cached = EcgCollator(processor, {}, store)(batch)  # the recordings are not read
    again = EcgCollator(processor, {}, FeatureStore(*_parts(store), {}, "corpus", tmp_path))(batch)
    assert raw.keys() - {"ecg_values", "token_mask"} == cached.keys() - {"ecg_features", "ecg_mask"}
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


@pytest.mark.parametrize("where", ["source", "index"])
def test_an_interrupted_fill_leaves_nothing_to_read(open_store, encoder, source, monkeypatch, where):
    store = open_store(source=Breaking(source) if where == "source" else source)
    store.fill(["r0"])
    if where == "index":
        monkeypatch.setattr(features_module.json, "dump", lambda *_: (_ for _ in ()).throw(OSError("no space left")))
    encoder.train()
    with pytest.raises(OSError, match="gone|space"):
        store.fill(["r1", "r2", "r5", "r6"], batch_size=1)
    monkeypatch.undo()
    assert encoder.training, "the encoder is left as it was"
    seen = encoder.seen
    for left in (store, open_store()):
        assert "r0" in left and not any(record in left for record in ("r1", "r2", "r5", "r6"))
        assert not list(left.folder.glob(".*")), "litter"
    got = open_store().get(["r1", "r5"])
    assert encoder.seen == seen + 2
    fresh = PatchFeatureExtractor.from_config(encoder.config)([source["r1"], source["r5"]])
    with torch.no_grad():
        assert torch.equal(got["ecg_features"], encoder.eval()(**fresh).last_hidden_state)


def test_two_runs_may_fill_the_same_cache_at_once(open_store, source):
    """The second one fills while the first one reads its last recording."""
    other = open_store()

    class Meanwhile(dict):
        def __getitem__(self, record):
            if record == "r2":
                other.fill(["r1", "r2"])
            return super().__getitem__(record)

    one = open_store(source=Meanwhile(source)).fill(["r1", "r2"])
    want = other.get(["r1", "r2"])["ecg_features"]
    for store in (one, open_store()):
        assert torch.equal(store.get(["r1", "r2"])["ecg_features"], want)


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


def test_shards_are_plain_files(open_store, encoder):
    """Arrays and JSON: nothing that runs code when it is read."""
    store = open_store().fill(["r0", "r1"])
    index, features, mask = (next(store.folder.glob(p)) for p in ("*.json", "*.features.npy", "*.mask.npy"))
    assert json.loads(index.read_text()) == ["r0", "r1"] and len(list(store.folder.iterdir())) == 3
    assert np.load(features, allow_pickle=False).dtype == np.float32
    assert np.load(mask, allow_pickle=False).dtype == bool
    assert {file.stat().st_mode & 0o777 for file in store.folder.iterdir()} == {0o644}
