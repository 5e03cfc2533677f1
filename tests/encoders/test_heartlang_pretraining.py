"""HeartLang's pretraining: sentences on disk, masks, order, what is decayed, and what is measured."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader

from data.ecg import LEADS, Ecg
from data.synthetic import SyntheticCohort
from encoders.heartlang import (
    HeartLangConfig,
    HeartLangForMaskedSentence,
    HeartLangVQ,
    HeartLangVQConfig,
    QrsTokenizer,
    sentences,
)
from encoders.heartlang.pretraining import (
    Guesses,
    MaskedSentences,
    Reconstruction,
    encoder_of,
    mean_words,
    new_masked_model,
    target_codes,
)
from encoders.heartlang.sentences import sentences_of
from encoders.training import Shuffled

WORDS = 96
SIZES = {
    "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "head_dim": 8, "intermediate_size": 32,
    "max_words": WORDS, "dropout": 0.0, "embedding_dropout": 0.0,
}  # fmt: skip


class Source(dict):
    """Recordings by name, that counts how often it is asked."""

    asked = 0

    def __getitem__(self, record):
        self.asked += 1
        return super().__getitem__(record)


@pytest.fixture(scope="module")
def source():
    cohort = SyntheticCohort(8, records_per_patient=1)
    found = Source({record: cohort[record] for record in cohort.records})
    signal = cohort[cohort.records[0]].signal.copy()
    signal[3, 5] = np.nan
    found["broken"] = Ecg(signal, 100, LEADS, record_id="broken")
    return found


@pytest.fixture(scope="module")
def tokenizer():
    return QrsTokenizer(max_words=WORDS)


@pytest.fixture(scope="module")
def cut(source, tokenizer, tmp_path_factory):
    torch.set_num_threads(1)
    return sentences_of(
        [r for r in source if r != "broken"], source, "test", tokenizer, tmp_path_factory.mktemp("cache")
    )


@pytest.fixture(scope="module")
def vqhbr():
    torch.manual_seed(0)
    config = HeartLangVQConfig(**SIZES, decoder_layers=1, codebook_size=32, code_dim=8)
    return HeartLangVQ(config).eval()


# --- sentences on disk ------------------------------------------------------------------------------------------------


def test_sentences_are_the_tokenizers_bit_by_bit(cut, source, tokenizer):
    wanted = tokenizer([source[record] for record in cut.records])
    for i in range(len(cut)):
        for name in ("words", "in_chan", "in_time"):
            assert torch.equal(cut[i][name], wanted[name][i]) and cut[i][name].dtype == wanted[name].dtype


def test_each_recording_is_cut_once_for_both_stages(source, tmp_path):
    records = list(source)[:4]
    config = HeartLangVQConfig(**SIZES)
    first = sentences_of(records[:2], source, "test", QrsTokenizer.from_config(config), tmp_path)
    before = source.asked
    again = sentences_of(records, source, "test", QrsTokenizer(max_words=WORDS), tmp_path)
    assert source.asked == before + 2, "two were there"
    assert again.records == records and torch.equal(again[1]["words"], first[1]["words"])
    sentences_of(records, source, "another corpus", QrsTokenizer(max_words=WORDS), tmp_path)
    sentences_of(records, source, "test", QrsTokenizer(max_words=WORDS, filter=None), tmp_path)
    assert source.asked == before + 10 and len(list(tmp_path.iterdir())) == 3


def test_what_cannot_be_cut_is_left_out_and_named(source, tokenizer, tmp_path, caplog):
    records = [*list(source)[:2], "broken"]
    for _ in range(2):  # the second time from disk
        found = sentences_of(records, source, "test", tokenizer, tmp_path)
        assert found.records == records[:2] and list(found.refused) == ["broken"]
        assert "not finite" in found.refused["broken"] and "1 of 3 recordings left out, such as broken" in caplog.text
    with pytest.raises(
        ValueError, match="none of 1 recordings could be cut into words, the first 'broken'.*not finite"
    ):
        sentences_of(["broken"], source, "test", tokenizer, tmp_path)


def test_an_array_without_its_index_is_cut_again(source, tokenizer, tmp_path, monkeypatch):
    def killed(*_, **__):
        raise KeyboardInterrupt

    records = list(source)[:3]
    monkeypatch.setattr(sentences.Shards, "write", killed)
    with pytest.raises(KeyboardInterrupt):
        sentences_of(records, source, "test", tokenizer, tmp_path)
    monkeypatch.undo()
    (folder,) = tmp_path.iterdir()
    assert [path.suffix for path in folder.iterdir()] == [".npy"]
    assert len(sentences_of(records, source, "test", tokenizer, tmp_path)) == 3


def test_processes_share_the_work(source, tokenizer, cut, tmp_path, monkeypatch):
    monkeypatch.setattr(sentences, "SHARD_RECORDS", 1)
    found = sentences_of(cut.records, dict(source), "test", tokenizer, tmp_path, jobs=2)
    assert len(found.paths) == 8 and found.records == cut.records
    assert all(torch.equal(found[i]["words"], cut[i]["words"]) for i in range(8))


def test_some_are_spread_over_all(cut):
    some = cut.spread(3)
    assert some.records == [cut.records[i] for i in (0, 2, 5)] and cut.spread(99).records == cut.records
    assert torch.equal(some[1]["words"], cut[2]["words"])


# --- chance -----------------------------------------------------------------------------------------------------------


def test_masks_follow_from_seed_recording_and_epoch(cut):
    masked = MaskedSentences(cut, share=0.5, seed=3)
    torch.manual_seed(1)
    first = [masked[i]["mask"] for i in range(len(cut))]
    torch.manual_seed(2)
    workers = DataLoader(masked, batch_size=1, num_workers=1)
    assert all(torch.equal(mask, batch["mask"][0]) for mask, batch in zip(first, workers, strict=True))
    later = masked[len(cut)]
    assert torch.equal(later["words"], masked[0]["words"]) and not torch.equal(later["mask"], first[0])
    assert not torch.equal(MaskedSentences(cut, share=0.5, seed=4)[0]["mask"], first[0])
    for i, mask in enumerate(first):
        words = int((cut[i]["in_chan"] > 0).sum())
        assert int(mask.sum()) == round(words / 2) and not (mask & (cut[i]["in_chan"] == 0)).any()
    assert int(MaskedSentences(cut, padding=True)[0]["mask"].sum()) == WORDS // 2


def test_the_order_follows_from_seed_and_epoch():
    order, anew = Shuffled(50, seed=1, anew=False), Shuffled(50, seed=1, anew=True)
    first = list(order)
    assert sorted(first) == list(range(50)) and list(order) == first == list(anew)
    order.set_epoch(2)
    anew.set_epoch(2)
    assert list(order) != first and list(anew) == [100 + number for number in order]
    assert list(Shuffled(50, seed=2, anew=False)) != first


# --- models -----------------------------------------------------------------------------------------------------------


def test_a_new_codebook_has_gradients_within_bounds(cut):
    """Padding of a new model lies where the gradient of a direction is infinite."""
    torch.manual_seed(0)
    model = HeartLangVQ(HeartLangVQConfig(**SIZES, decoder_layers=1, codebook_size=32, code_dim=8)).train()
    model(**next(iter(DataLoader(cut, batch_size=8)))).loss.backward()
    norms = [weight.grad.norm() for weight in model.parameters() if weight.grad is not None]
    assert 0 < max(norms) < 10


def test_a_masked_model_takes_the_shape_of_its_codebook(vqhbr):
    words = QrsTokenizer(max_words=WORDS, filter=None)
    model, tokenizer = new_masked_model(vqhbr, words, {"hidden_size": 24, "head_dim": 4}, {})
    assert (model.config.max_words, model.config.vocab_size, model.config.hidden_size) == (WORDS, 32, 24)
    assert tokenizer.filter is None and tokenizer.max_words == WORDS
    encoder = encoder_of(model)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in encoder.state_dict().items())
    with pytest.raises(
        ValueError, match=r"max_words is 256, but the VQ-HBR whose codes are guessed has 96: leave it out"
    ):
        new_masked_model(vqhbr, words, {"max_words": 256}, {})
    with pytest.raises(ValueError, match=r"filter is \[0.5, 30.0\], but the VQ-HBR whose codes are guessed has None"):
        new_masked_model(vqhbr, words, {}, {"filter": (0.5, 30)})


# --- measuring --------------------------------------------------------------------------------------------------------


def words_by_lead(items):
    """(lead, word) of every word that is no padding, recording by recording."""
    return [
        [(int(lead), word) for lead, word in zip(item["in_chan"], item["words"].double()) if lead > 0] for item in items
    ]


def test_reconstruction_beside_its_baselines(cut, vqhbr):
    train, held_out = cut.spread(4), cut
    usual = {}
    for lead in range(1, 13):
        usual[lead] = torch.stack([w for record in words_by_lead(train) for own, w in record if own == lead]).mean(0)
    means = mean_words(train)
    assert all(torch.allclose(means.of_lead[lead].double(), word, atol=1e-6) for lead, word in usual.items())
    sample = torch.stack([word for record in words_by_lead(train) for _, word in record]).mean()
    assert means.sample == pytest.approx(float(sample), abs=1e-9)
    found = Reconstruction(train, held_out, batch_size=3)(vqhbr)
    with torch.no_grad():
        out = vqhbr(**next(iter(DataLoader(held_out, batch_size=len(held_out)))))
    for i, record in enumerate(words_by_lead(held_out)):
        restored = out.reconstruction[i].double()[: len(record)]
        words = torch.stack([word for _, word in record])
        error = float((restored - words).square().sum())
        of_lead = float(sum((word - usual[lead]).square().sum() for lead, word in record))
        assert found.above["reconstruction_error"][i] == pytest.approx(error, rel=1e-5)
        assert found.above["mean_word_error"][i] == pytest.approx(of_lead, rel=1e-5)
        assert found.above["zero_error"][i] == pytest.approx(float(words.square().sum()), rel=1e-6)
        assert found.above["over_mean_word"][i] == pytest.approx(of_lead - error, rel=1e-4)
        variance = float((words - sample).square().sum())
        assert found.above["explained_variance"][i] == pytest.approx(variance - error, rel=1e-4)
        assert found.below["explained_variance"][i] == pytest.approx(variance, rel=1e-5)
        assert found.below["reconstruction_error"][i] == words.numel()
    valid = torch.stack([item["in_chan"] > 0 for item in held_out])
    assert found.numbers["codes_used"] == len(out.codes[valid].unique())


@pytest.mark.parametrize("padding", [False, True])
@pytest.mark.parametrize("positions", [False, True])
def test_guesses_beside_their_baselines(cut, vqhbr, padding, positions):
    """Against loops; padding counts neither as a word to guess nor where codes are counted."""
    train, masked = cut.spread(5), MaskedSentences(cut, share=0.6, padding=padding)
    torch.manual_seed(1)
    model = HeartLangForMaskedSentence(HeartLangConfig(**SIZES, vocab_size=32)).eval()
    found = Guesses(train, masked, 3, vqhbr, positions)(model)

    def codes_of(item):
        return target_codes(vqhbr, {name: value[None] for name, value in item.items()}, positions)[0].tolist()

    seen = [(int(lead), code) for item in train for lead, code in zip(item["in_chan"], codes_of(item)) if lead > 0]
    most = np.bincount([code for _, code in seen], minlength=32).argmax()
    of_lead = {k: np.bincount([code for lead, code in seen if lead == k], minlength=32).argmax() for k in range(1, 13)}
    for i, item in enumerate(masked[number] for number in range(len(masked))):
        codes, leads, mask = codes_of(item), item["in_chan"].tolist(), item["mask"].tolist()
        hidden = [place for place in range(WORDS) if mask[place] and leads[place] > 0]
        with torch.no_grad():
            logits = model(**{name: value[None] for name, value in item.items()}).logits
        guesses = dict(zip([place for place in range(WORDS) if mask[place]], logits, strict=True))
        right = sum(int(guesses[place].argmax()) == codes[place] for place in hidden)
        nats = sum(float(F.cross_entropy(guesses[place], torch.tensor(codes[place]))) for place in hidden)
        near = 0
        for place in hidden:
            others = [k for k in range(WORDS) if leads[k] == leads[place] and not mask[k]]
            nearest = min(others, key=lambda k: (abs(k - place), k), default=None)
            near += codes[place] == (of_lead[leads[place]] if nearest is None else codes[nearest])
        assert found.below["masked_accuracy"][i] == len(hidden)
        assert found.above["masked_accuracy"][i] == right
        assert found.above["masked_cross_entropy"][i] == pytest.approx(nats, rel=1e-4)
        assert found.above["most_frequent_code"][i] == sum(codes[place] == most for place in hidden)
        assert found.above["most_frequent_code_of_lead"][i] == sum(codes[k] == of_lead[leads[k]] for k in hidden)
        assert found.above["nearest_word"][i] == near
        assert found.above["over_nearest_word"][i] == right - near


def test_codes_with_and_without_positions_differ(cut, vqhbr):
    batch = next(iter(DataLoader(cut, batch_size=8)))
    told, untold = (target_codes(vqhbr, batch, positions)[batch["in_chan"] > 0] for positions in (True, False))
    assert (told != untold).any()
