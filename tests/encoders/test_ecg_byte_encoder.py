"""ECG-Byte's tokens as a language model's input: numbers in and two bytes out, and what belongs to them in a folder."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import AutoFeatureExtractor, AutoModel

from data.ecg import LEADS, Ecg
from data.synthetic import SyntheticCohort
from encoders import check_encoder, load_encoder, new_encoder, save_encoder
from encoders.base import TokenSpan
from encoders.ecg_byte import (
    UPSTREAM,
    EcgByteConfig,
    EcgByteEncoder,
    EcgByteFeatureExtractor,
    EcgByteSettings,
    EcgByteTokenizer,
    Quantizer,
    TokenTable,
)
from encoders.ecg_byte.modeling import as_bytes, from_bytes

BUDGET = 6000


@pytest.fixture(scope="module")
def cohort():
    cohort = SyntheticCohort(12, records_per_patient=1, fs=100)
    return [cohort[record] for record in cohort.records]


@pytest.fixture(scope="module")
def byte(cohort):
    return EcgByteTokenizer.train(cohort, 300, EcgByteSettings(max_tokens=BUDGET), progress=False)


@pytest.fixture(scope="module")
def pair(byte):
    return EcgByteEncoder.for_tokenizer(byte)


# --- two bytes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_every_number_comes_back_from_its_bytes(dtype):
    numbers = torch.arange(2**16)
    assert torch.equal(from_bytes(as_bytes(numbers, dtype)), numbers)
    if dtype == torch.bfloat16:
        assert not torch.equal(numbers.to(dtype).long(), numbers), "or a single number would do"


def test_a_recording_is_handed_on_as_its_tokens(pair, byte, cohort):
    encoder, extractor = pair
    out = encoder(**extractor(cohort))
    order = byte.table.llm_order
    assert out.last_hidden_state.shape == (len(cohort), BUDGET, 2) == (12, encoder.config.max_tokens, 2)
    for ecg, tokens, mask in zip(cohort, out.last_hidden_state, out.mask):
        assert [order[number] for number in from_bytes(tokens[mask]).tolist()] == byte.encode(ecg)


def test_the_order_is_that_of_the_table_whatever_it_is(cohort):
    """Upstream's tables have all 256 bytes, in no order."""
    ids = np.random.default_rng(0).permutation(256 + 2).tolist()
    byte = EcgByteTokenizer(TokenTable(["mm", "mmm"], ids), EcgByteSettings(max_tokens=20_000))
    encoder, extractor = EcgByteEncoder.for_tokenizer(byte)
    assert encoder.config.vocabulary == 258 and encoder.config.zero_token == ids.index(ord("m"))
    features = extractor(cohort[0])
    numbers = features["ecg_tokens"][features["token_mask"]].tolist()
    assert [ids[number] for number in numbers] == byte.encode(cohort[0])


@pytest.mark.parametrize("number", [-1, 326])
def test_a_number_of_no_token_is_refused(pair, number):
    with pytest.raises(ValueError, match="ecg_tokens must be numbers from 0 to 325: was the feature extractor made"):
        pair[0](torch.tensor([[0, number]]))


def test_a_mask_of_other_tokens_is_refused(pair):
    with pytest.raises(ValueError, match=r"token_mask is \(1, 2\) but the encoder gives \(1, 3\) tokens"):
        pair[0](torch.tensor([[0, 1, 2]]), torch.ones(1, 2, dtype=torch.bool))


# --- zero -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("quantizer", "letter"),
    [
        (Quantizer(), "m"),  # the bin from -0.08 to 0.08 mV
        (Quantizer(low=0.0, high=2.6), "a"),
        (Quantizer("percentile", -2.0, 2.5), "l"),
        (Quantizer("minmax"), "a"),  # 0 is the low end, as it is for upstream
    ],
)
def test_the_token_of_zero_is_that_of_a_sample_at_0(quantizer, letter):
    byte = EcgByteTokenizer(TokenTable(()), EcgByteSettings(quantizer=quantizer, max_tokens=12_000))
    encoder, extractor = EcgByteEncoder.for_tokenizer(byte)
    assert byte.table.llm_order[encoder.zero_token] == ord(letter)
    flat = extractor(Ecg(np.zeros((12, 1000)), 100, LEADS))
    assert (flat["ecg_tokens"] == encoder.zero_token).all() and flat["token_mask"].all()


# --- the extractor ----------------------------------------------------------------------------------------------------


def test_it_keeps_to_the_contract_of_encoders(pair):
    """All of it holds; rates are compared by bytes that only happen to be closer, so tokens are compared below."""
    check_encoder(*pair)


def test_tokens_of_another_rate_or_order_of_leads_draw_the_same_recording(pair, byte):
    cohort = SyntheticCohort(3, records_per_patient=1, fs=500)
    _, extractor = pair
    for record in cohort.records:
        ecg = cohort[record]
        shown = [byte.decode(byte.read(one)) for one in (ecg, ecg.select(LEADS[::-1]), ecg.resample(250))]
        assert torch.equal(extractor(ecg)["ecg_tokens"], extractor(ecg.select(LEADS[::-1]))["ecg_tokens"])
        assert (shown[0] == shown[1]).all()
        assert np.abs(shown[0] - shown[2]).mean() < 0.02 and np.abs(shown[0] - shown[2]).max() < 0.5


def test_spans_cover_every_lead_from_its_beginning_to_its_end(pair, cohort):
    _, extractor = pair
    for ecg in cohort[:4]:
        spans = extractor.token_spans(ecg)
        assert len(spans) == int(extractor(ecg)["token_mask"].sum())
        assert [lead for i, lead in enumerate(LEADS) if any(s.lead == lead for s in spans)] == list(LEADS)
        order = [LEADS.index(span.lead) for span in spans]
        assert order == sorted(order)
        for lead in LEADS:
            mine = [span for span in spans if span.lead == lead]
            assert mine[0].start == 0 and mine[-1].end == pytest.approx(10)
            assert all(a.end == b.start and b.end > b.start for a, b in zip(mine, mine[1:]))


def test_spans_of_a_tokenizer_whose_tokens_cross_leads_are_refused(cohort):
    byte = EcgByteTokenizer(TokenTable(()), replace(UPSTREAM, max_tokens=100_000))
    _, extractor = EcgByteEncoder.for_tokenizer(byte)
    with pytest.raises(ValueError, match=r"go from one lead into the next: no lead is theirs \(across\)"):
        extractor.token_spans(cohort[0])


def test_a_recording_that_cannot_be_read_is_named(pair, cohort):
    signal = cohort[0].signal.copy()
    signal[3, 50] = np.nan
    with pytest.raises(ValueError, match="'r-nan' has samples that are not finite"):
        pair[1]([cohort[1], Ecg(signal, 100, LEADS, record_id="r-nan")])
    with pytest.raises(ValueError, match="'r-two'.*lead"):
        pair[1](Ecg(signal[:2], 100, LEADS[:2], record_id="r-two"))
    noise = 10 * np.random.default_rng(0).normal(size=(12, 1000))
    with pytest.raises(ValueError, match=f"'r-noise' needs .* tokens, .* more than max_tokens={BUDGET}"):
        pair[1](Ecg(noise, 100, LEADS, record_id="r-noise"))


def test_what_is_no_tokenizer_for_a_model_is_refused(byte, tmp_path):
    with pytest.raises(ValueError, match="needs a tokenizer: a file that EcgByteTokenizer.save wrote"):
        EcgByteFeatureExtractor()
    unbounded = EcgByteTokenizer(byte.table, replace(byte.settings, max_tokens=None))
    with pytest.raises(ValueError, match=r"has no budget \(max_tokens\): make one with EcgByteTokenizer.fit"):
        EcgByteEncoder.for_tokenizer(unbounded)
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(ValueError, match="other.json: not a tokenizer that was saved here"):
        EcgByteFeatureExtractor(tmp_path / "other.json")
    with pytest.raises(TypeError, match="has no setting budget"):
        EcgByteFeatureExtractor(byte.to_dict(), budget=3)


@pytest.mark.parametrize("differs", ["vocabulary", "budget", "zero_token"])
def test_a_configuration_of_another_tokenizer_is_refused(pair, byte, differs):
    sizes = {name: pair[0].config.to_dict()[name] for name in ("vocabulary", "budget", "zero_token")}
    assert EcgByteFeatureExtractor.from_config(EcgByteConfig(**sizes), tokenizer=byte.to_dict()).byte.table
    sizes[differs] += 1
    with pytest.raises(ValueError, match=r"\(vocabulary, budget, zero_token\) = \(326, 6000, 12\), not"):
        EcgByteFeatureExtractor.from_config(EcgByteConfig(**sizes), tokenizer=byte.to_dict())


@pytest.mark.parametrize(
    "sizes", [{"vocabulary": 0}, {"budget": 0}, {"zero_token": 26}, {"zero_token": -1}, {"vocabulary": 2**16 + 1}]
)
def test_sizes_that_cannot_be_are_refused(sizes):
    with pytest.raises(ValueError, match="must be positive, and at most 65,536 tokens"):
        EcgByteConfig(**sizes)


# --- tokens of leads --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def named(byte):
    """The same tokenizer, with a token in front of each lead."""
    return EcgByteEncoder.for_tokenizer(byte, lead_tokens=True)


def test_a_token_in_front_of_each_lead_says_which_it_is(pair, named, cohort):
    (encoder, extractor), (_, plain) = named, pair
    assert (encoder.config.vocabulary, encoder.config.budget) == (326 + 12, BUDGET + 12)
    assert encoder.zero_token == pair[0].zero_token
    for ecg in [*cohort[:4], cohort[4].crop(0, 2.7)]:
        features, without = extractor(ecg), plain(ecg)
        numbers = features["ecg_tokens"][features["token_mask"]].tolist()
        first = [numbers.index(326 + lead) for lead in range(12)]
        assert first == sorted(first) and first[0] == 0 and sum(number >= 326 for number in numbers) == 12
        assert [n for n in numbers if n < 326] == without["ecg_tokens"][without["token_mask"]].tolist()
        spans = extractor.token_spans(ecg)
        assert len(spans) == len(numbers)
        assert [spans[place] for place in first] == [
            TokenSpan(lead, 0.0, pytest.approx(ecg.duration)) for lead in LEADS
        ]
        for place, lead in zip(first, LEADS):
            assert spans[place + 1].lead == lead and spans[place + 1].start == 0
    check_encoder(encoder, extractor)


def test_tokens_of_leads_belong_to_the_folder(named, pair, cohort, tmp_path):
    save_encoder(*named, tmp_path)
    _, extractor = load_encoder(tmp_path)
    assert torch.equal(extractor(cohort[0])["ecg_tokens"], named[1](cohort[0])["ecg_tokens"])
    pair[1].save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"\(326, 6000, 12\), not \(338, 6012, 12\)"):
        load_encoder(tmp_path)


@pytest.mark.parametrize("settings", [{"across": True}, {"leads": None}])
def test_leads_that_have_no_tokens_of_their_own_are_refused(byte, settings):
    other = EcgByteTokenizer(byte.table, replace(byte.settings, **settings))
    with pytest.raises(ValueError, match="lead_tokens need a tokenizer that names its leads, none of whose tokens go"):
        EcgByteEncoder.for_tokenizer(other, lead_tokens=True)


# --- folders ----------------------------------------------------------------------------------------------------------


def test_what_is_saved_loads_to_the_same_tokenizer(pair, byte, cohort, tmp_path):
    save_encoder(*pair, tmp_path)
    saved = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert saved["tokenizer"] == byte.to_dict() and saved.keys() == {
        "tokenizer",
        "lead_tokens",
        "feature_extractor_type",
    }
    want = pair[1](cohort)
    autos = AutoModel.from_pretrained(tmp_path), AutoFeatureExtractor.from_pretrained(tmp_path)
    for encoder, extractor in (load_encoder(tmp_path), autos):
        assert type(encoder) is EcgByteEncoder and extractor.byte.to_dict() == byte.to_dict()
        assert all(torch.equal(value, want[name]) for name, value in extractor(cohort).items())
    autos[1].save_pretrained(tmp_path / "again")
    file = tmp_path / "again" / "preprocessor_config.json"
    assert file.read_bytes() == (tmp_path / "preprocessor_config.json").read_bytes()


def test_a_folder_whose_tokenizer_was_exchanged_is_refused(pair, byte, tmp_path):
    save_encoder(*pair, tmp_path)
    EcgByteFeatureExtractor(EcgByteTokenizer(byte.table.first(50), byte.settings).to_dict()).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"\(76, 6000, 12\), not \(326, 6000, 12\)"):
        load_encoder(tmp_path)


def test_a_new_one_is_made_from_a_file(byte, tmp_path):
    byte.save(tmp_path / "byte.json")
    sizes = {"vocabulary": 326, "budget": BUDGET, "zero_token": 12}
    _, extractor = new_encoder("ecg_byte", tokenizer=str(tmp_path / "byte.json"), **sizes)
    assert extractor.byte.to_dict() == byte.to_dict()
    with pytest.raises(ValueError, match=r"= \(326, 6000, 12\), not \(26, 1024, 0\)"):
        new_encoder("ecg_byte", tokenizer=str(tmp_path / "byte.json"))
