"""ECG-Byte: upstream's ids, tokens learned by a stated rule, and what comes back of a recording."""

from __future__ import annotations

import hashlib
import json
import logging
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter1d

from data.ecg import LEADS, Ecg
from data.readers import read_ecg
from data.synthetic import SyntheticCohort
from encoders.ecg_byte import UPSTREAM, EcgByteSettings, EcgByteTokenizer, Quantizer, Span, TokenTable
from encoders.ecg_byte import training as ecg_byte_training
from encoders.ecg_byte.table import BYTES, SYMBOLS
from encoders.ecg_byte.training import learn_merges

SHARED = Path(__file__).parents[2].parent / "shared"
GOLDEN = SHARED / "golden" / "ecg_byte"
TABLES = ("1000_25.pkl", "1000_25.json", "5000_500000.json", "6000_800000.json", "10000.json", "5000_300000.json")


def table_path(name: str) -> Path:
    prefix = "tokenizer" if name == "5000_300000.json" else "ecg_byte_tokenizer"  # as they are published
    return GOLDEN / "tokenizers" / f"{prefix}_{name}"


@pytest.fixture(scope="module")
def expected():
    if not GOLDEN.is_dir():
        pytest.skip(f"upstream's fixtures are not at {GOLDEN}")
    return json.loads((GOLDEN / "expected.json").read_text())


@pytest.fixture(scope="module")
def cohort():
    cohort = SyntheticCohort(20, records_per_patient=1, fs=100)
    return [cohort[record] for record in cohort.records]


@pytest.fixture(scope="module")
def trained(cohort):
    return EcgByteTokenizer.train(cohort, 300, progress=False)


def signal_of(name):
    return np.load(GOLDEN / "signals" / f"{name}.npy")


# --- upstream ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TABLES)
def test_published_tables_give_upstreams_ids(expected, name):
    tokenizer = EcgByteTokenizer.from_upstream(table_path(name))
    for signal, wanted in expected["instance_minmax"].items():
        values = signal_of(signal)
        read = tokenizer.read(values)
        assert read.ids == wanted["tokens"][table_path(name).stem], signal
        assert tokenizer.encode(Ecg(values, 250, LEADS)) == read.ids, signal
        assert (read.low, read.high) == (wanted["min"], wanted["max"])
        letters = (tokenizer.levels(values) + ord("a")).tobytes()
        assert hashlib.sha256(letters).hexdigest() == wanted["symbols_sha256"]
        error = np.abs(tokenizer.decode(read).astype(float) - values).max()
        assert error == pytest.approx(wanted["decode_max_abs_error"], rel=1e-6)
        assert (tokenizer.decode(read.ids, wanted["min"], wanted["max"]) == tokenizer.decode(read)).all()


def test_the_stand_alone_normalisation_is_upstreams(expected):
    percentile = expected["global_percentile"]
    quantizer = Quantizer("percentile", percentile["percentile_1"], percentile["percentile_99"], "upstream")
    compared = 0
    for signal, wanted in percentile["cases"].items():
        for name, ids in wanted["tokens"].items():
            path = GOLDEN / "tokenizers" / f"{name}.json"
            tokenizer = EcgByteTokenizer.from_upstream(path, replace(UPSTREAM, quantizer=quantizer))
            assert tokenizer.encode(signal_of(signal)) == ids
            compared += 1
    assert compared >= 3


def test_ids_reach_a_language_model_in_the_published_order(expected):
    table = TokenTable.from_upstream(table_path("1000_25.pkl"))
    assert list(table.llm_order) == json.loads(table_path("1000_25.json").read_text())["vocab_key_order"]
    assert sorted(table.llm_order) == list(range(1256)) and len(table) == 1256
    assert table[97] == b"a" and table[256] == b"kk" and table[255] == b"\xff"


def test_a_recording_of_another_rate_is_resampled(expected):
    tokenizer = EcgByteTokenizer.from_upstream(table_path("1000_25.json"))
    ecg = Ecg(signal_of("sim_2500"), 250, LEADS)
    assert tokenizer.read(ecg.resample(500)).samples == 2500
    assert tokenizer.encode(ecg.resample(500)) == tokenizer.encode(ecg.resample(500).resample(250))


GOOD = ({**{i: chr(i) for i in range(256)}, 256: "ab", 257: "abc"}, [([97, 98], 256), ([97, 98, 99], 257)])


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda v, m: (v, m), None),
        (lambda v, m: (v, m[::-1]), "ids of merges must be 256, 257"),
        (lambda v, m: ({**v, 257: "abd"}, m), "the vocabulary and the merges differ"),
        (lambda v, m: ({k: s for k, s in v.items() if k != 257}, m), "257 is missing"),
        (lambda v, m: ({k: s for k, s in v.items() if k != 97}, m), "order of tokens must hold"),
        (lambda v, m: ({**v, 257: "ab"}, [m[0], ([97, 98], 257)]), "two tokens are the same string 'ab'"),
        (lambda v, m: ({**v, 256: "a1"}, [([97, 49], 256), m[1]]), "token 256 must be two or more of the letters"),
        (lambda v, m: [v, m, 3], "too many values"),
    ],
)
def test_a_table_that_contradicts_itself_is_refused(tmp_path, change, why):
    path = tmp_path / "table.pkl"
    path.write_bytes(pickle.dumps(change(*GOOD)))
    if why is None:
        assert TokenTable.from_upstream(path).merges == ("ab", "abc")
        return
    with pytest.raises(ValueError, match=rf"table.pkl: not a table of ECG-Byte: .*{why}"):
        TokenTable.from_upstream(path)


def test_json_that_is_no_table_is_refused(tmp_path):
    for content, why in (("{}", "'merges' is missing"), ("[1]", "not a table"), ("nonsense", "not a table")):
        (tmp_path / "t.json").write_text(content)
        with pytest.raises(ValueError, match=f"t.json: not a table of ECG-Byte: .*{why}" if why[0] == "'" else why):
            TokenTable.from_upstream(tmp_path / "t.json")


# --- encoding ---------------------------------------------------------------------------------------------------------


def longest(strings, text):
    found, start = [], 0
    while start < len(text):
        stop = next(stop for stop in range(len(text), start, -1) if text[start:stop] in strings)
        found.append(text[start:stop])
        start = stop
    return found


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.text("abc", min_size=2, max_size=12), unique=True, max_size=40),
    st.lists(st.integers(0, 42), max_size=60),
)
def test_the_longest_token_is_taken_from_the_left(merges, picks):
    table = TokenTable(merges)
    strings = [*"abc", *merges]
    text = "".join(strings[pick % len(strings)] for pick in picks)
    ids = table.encode(text)
    assert [table[token].decode() for token in ids] == longest({*SYMBOLS, *merges}, text)
    assert table.decode(ids) == text.encode()


def test_symbols_of_no_token_are_refused(trained):
    with pytest.raises(ValueError, match="no token has the id 556: they end at 555"):
        trained.decode([97, 556])
    with pytest.raises(ValueError, match="token 65 is a byte that stands for no level"):
        trained.decode([65] * 12)
    with pytest.raises(ValueError, match="11 samples cannot be those of 12 leads"):
        trained.decode([97] * 11)


# --- levels -----------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(["millivolts", "minmax", "percentile"]), st.floats(1e-3, 10))
def test_what_was_encoded_comes_back_within_half_a_bin(trained, seed, normalize, scale):
    rng = np.random.default_rng(seed)
    quantizer = Quantizer(normalize, -2 * scale, 3 * scale)
    tokenizer = EcgByteTokenizer(trained.table, replace(trained.settings, quantizer=quantizer))
    walk = rng.normal(size=(12, 200)).cumsum(axis=1)
    signal = np.clip(walk * scale / 4, -2 * scale, 3 * scale).astype(np.float32)
    signal[0, :2] = np.float32(-2 * scale), np.float32(3 * scale)  # both ends
    read = tokenizer.read(signal)
    half = (read.high - read.low + 1e-6) / 26 / 2
    assert np.abs(tokenizer.decode(read) - signal).max() <= half * (1 + 1e-4)
    assert (tokenizer._ids(tokenizer.levels(signal)) == read.ids) and read.outside <= 2


def test_the_default_scale_keeps_amplitude_and_has_a_level_for_no_voltage(trained, cohort):
    centre = trained.levels(np.full((12, 3), 0.07, np.float32))
    assert (centre == trained.levels(np.full((12, 3), -0.07, np.float32))).all()
    assert trained.decode(trained.read(np.zeros((12, 3)))) == pytest.approx(0, abs=1e-6)
    loud, quiet = cohort[0].signal, cohort[0].signal / 4
    assert trained.encode(loud) != trained.encode(quiet)
    minmax = EcgByteTokenizer(trained.table, replace(trained.settings, quantizer=Quantizer("minmax")))
    assert minmax.encode(loud) == minmax.encode(quiet)  # which is why it is not the default


def test_constant_and_huge_recordings(trained):
    constant = np.full((12, 50), 0.37, np.float32)
    minmax = EcgByteTokenizer(trained.table, replace(trained.settings, quantizer=Quantizer("minmax")))
    assert not minmax.levels(constant).any() and minmax.decode(minmax.read(constant)) == pytest.approx(0.37, abs=1e-6)
    assert len(np.unique(trained.levels(constant))) == 1
    huge = np.zeros((12, 50), np.float32)
    huge[0, :2] = 3e38, -3e38
    read = trained.read(huge)
    assert read.outside == 2 and trained.decode(read)[0, :2] == pytest.approx([2.08, -1.92])
    with pytest.raises(ValueError, match=r"'spikes': samples from -3e\+38 to 3e\+38 mV have no range in float32"):
        minmax.encode(Ecg(huge, 100, LEADS, "spikes"))


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("fs", [100, 500])
def test_samples_that_are_not_finite_name_the_record(trained, value, fs):
    signal = np.zeros((12, 500), np.float32)
    signal[3, 7] = value
    with pytest.raises(ValueError, match="record 'r7' has samples that are not finite"):
        trained.encode(Ecg(signal, fs, LEADS, "r7"))
    with pytest.raises(ValueError, match="ECG has samples that are not finite"):
        trained.encode(signal)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda: Quantizer("zscore"), "normalize must be one of millivolts, minmax, percentile, got 'zscore'"),
        (lambda: Quantizer(decode="low"), "decode must be one of midpoint, upstream, got 'low'"),
        (lambda: Quantizer(low=2, high=-2), "low and high must be millivolts in ascending order, got 2 and -2"),
        (lambda: EcgByteSettings(sampling_rate=0), "sampling_rate must be a positive number, got 0"),
        (lambda: EcgByteSettings(max_tokens=-5), "max_tokens must be a positive number, got -5"),
        (lambda: EcgByteSettings(leads=("I", "i")), "leads must be names of leads, each once"),
        (lambda: EcgByteSettings(leads=("X",)), "unknown lead 'X'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(change, why):
    with pytest.raises(ValueError, match=why):
        change()


def test_leads_are_taken_by_name_and_arrays_must_have_all(trained, cohort):
    ecg = cohort[0]
    assert trained.encode(ecg.select(LEADS[::-1])) == trained.encode(ecg) == trained.encode(ecg.signal)
    with pytest.raises(ValueError, match="has no lead V6"):
        trained.encode(ecg.select(LEADS[:11]))
    with pytest.raises(ValueError, match=r"must be \[12 leads, samples\], got shape \(11, 1000\)"):
        trained.encode(ecg.signal[:11])
    assert trained.read(ecg.pad(20)).samples == 1000 and trained.read(ecg.crop(0, 3)).samples == 300


def test_ids_of_minmax_do_not_say_their_range(trained):
    minmax = EcgByteTokenizer(trained.table, replace(trained.settings, quantizer=Quantizer("minmax")))
    with pytest.raises(ValueError, match="ids do not say the range of their recording: give low and high"):
        minmax.decode([97] * 12)
    assert minmax.decode([97 + 25] * 12, -1, 1) == pytest.approx(1 - 1 / 26, abs=1e-5)


def test_real_recordings_stay_within_the_default_range():
    files = [
        path
        for path in (SHARED / "data" / "wfdb").glob("*/*.hea")
        if path.parent.name in ("ptbxl", "ptb", "georgia", "cpsc2018", "cpsc2018_extra", "chapman_ningbo")
    ]
    if not files:
        pytest.skip(f"no real recordings at {SHARED / 'data' / 'wfdb'}")
    quantizer, outside, samples = Quantizer(), 0, 0
    for path in files[::4]:
        signal = read_ecg(path).signal
        outside += quantizer.outside(signal, quantizer.low, quantizer.high)
        samples += signal.size
    assert outside < 0.005 * samples


# --- where tokens lie -------------------------------------------------------------------------------------------------


def test_spans_tile_every_lead(trained, cohort):
    read = trained.read(cohort[1])
    spans = trained.spans(read)
    assert read.leads == LEADS and len(spans) == len(read.ids)
    levels = trained.levels(cohort[1])
    end = (0, 0)
    for token, (span,) in zip(read.ids, spans):  # never two: tokens end with their lead
        first, last = round(span.start * 100), round(span.stop * 100)
        assert (span.row, first) == (end if end[1] < 1000 else (end[0] + 1, 0))
        assert (levels[span.row, first:last] + 97).tobytes() == trained.table[token]
        end = (span.row, last)
    assert end == (11, 1000)


def test_a_token_that_goes_across_has_a_span_in_each_lead():
    tokenizer = EcgByteTokenizer(TokenTable(["a" * 11]), UPSTREAM)
    read = tokenizer.read(np.zeros((3, 5), np.float32))
    assert read.ids == [256, 97, 97, 97, 97] and read.leads == ()
    first, second, *_ = tokenizer.spans(read)
    assert first == (Span(0, 0, 0.02), Span(1, 0, 0.02), Span(2, 0, 0.004)) and second == (Span(2, 0.004, 0.008),)


# --- learning ---------------------------------------------------------------------------------------------------------


def recounted(pieces, merges, across):
    """The same rule without any bookkeeping: everything is counted again for each merge."""
    sequences = [[int(v) for piece in pieces for v in piece]] if across else [[int(v) for v in p] for p in pieces]
    strings = list(SYMBOLS)
    while len(strings) < 26 + merges:
        counts = {}
        for sequence in sequences:
            for pair in zip(sequence, sequence[1:]):
                counts[pair] = counts.get(pair, 0) + 1
        pair = min(counts, key=lambda pair: (-counts[pair], pair), default=None)
        if pair is None or counts[pair] < 2:
            break
        string = strings[pair[0]] + strings[pair[1]]
        if string not in strings:
            strings.append(string)
        for sequence in sequences:
            at = 0
            while at + 1 < len(sequence):
                if (sequence[at], sequence[at + 1]) == pair:
                    sequence[at : at + 2] = [strings.index(string)]
                at += 1
    return strings[26:]


@settings(max_examples=150, deadline=None)
@given(st.lists(st.lists(st.integers(0, 3), max_size=60), min_size=1, max_size=5), st.booleans())
def test_merges_are_those_of_counting_everything_again(pieces, across):
    if not any(pieces):
        return
    arrays = [np.array(piece, np.uint8) for piece in pieces]
    assert learn_merges(arrays, 40, across, progress=False) == recounted(pieces, 40, across)


def test_of_equally_frequent_pairs_the_oldest_tokens_come_first():
    pieces = [np.array(p, np.uint8) for p in ([3, 1], [2, 0], [2, 1]) * 2]  # db, ca, cb: twice each
    assert learn_merges(pieces, 3, progress=False) == ["ca", "cb", "db"]


def test_no_token_goes_across_leads_unless_it_is_told_to(cohort):
    pieces = [row for ecg in cohort[:4] for row in EcgByteTokenizer(TokenTable(())).levels(ecg)]
    inside = "\n".join((row + 97).tobytes().decode() for row in pieces)
    assert all(merge in inside for merge in learn_merges(pieces, 400, progress=False))
    halves = [np.array([0, 1, 2], np.uint8), np.array([3, 1, 2], np.uint8)] * 3
    assert learn_merges(halves, 1, across=False, progress=False) == ["bc"]
    assert learn_merges(halves, 4, across=True, progress=False) == ["bc", "abc", "dbc", "abcdbc"]


def test_learning_ends_where_nothing_occurs_twice(caplog):
    with caplog.at_level(logging.WARNING, ecg_byte_training.__name__):
        assert learn_merges([np.array([0, 1, 0, 1, 5], np.uint8)], 10, progress=False) == ["ab"]
    assert "no pair occurs twice after 1 of 10 merges" in caplog.text
    for wrong, why in (([], "no recording to learn tokens from"), ([np.zeros(0, np.uint8)], "no recording")):
        with pytest.raises(ValueError, match=why):
            learn_merges(wrong, 5, progress=False)
    with pytest.raises(ValueError, match="merges must be 0 to 65509, got 70000"):
        learn_merges([np.zeros(4, np.uint8)], 70_000, progress=False)


def test_learned_tokens_shorten_recordings_that_were_not_learned_from(cohort):
    table = EcgByteTokenizer.train(cohort[:15], 300, progress=False).table
    counts = [
        sum(len(EcgByteTokenizer(table.first(size)).encode(ecg)) for ecg in cohort[15:]) for size in (0, 30, 100, 300)
    ]
    assert counts[0] == 5 * 12_000 and counts == sorted(counts, reverse=True) and counts[-1] < counts[0] / 4


# --- the budget -------------------------------------------------------------------------------------------------------


def noisy(ecg, size, record_id="noisy"):
    noise = np.random.default_rng(0).normal(scale=size, size=ecg.signal.shape)
    return replace(ecg, signal=ecg.signal + noise, record_id=record_id)


def test_a_recording_beyond_the_budget_is_smoothed_and_keeps_all_leads(trained, cohort):
    small = EcgByteTokenizer(trained.table, replace(trained.settings, max_tokens=2000))
    clean = max((ecg for ecg in cohort if len(trained.encode(ecg)) < 1300), key=lambda ecg: ecg.signal.std())
    assert small.encode(clean) == trained.encode(clean) and small.read(clean).smoothing == 0
    ecg = noisy(clean, 0.1)
    assert len(trained.encode(ecg)) > 2000
    read = small.read(ecg)
    assert len(read.ids) <= 2000
    tried = [gaussian_filter1d(ecg.signal, samples, axis=-1, mode="nearest") for samples in (0.5, 1.0, 2.0)]
    needed = next(i for i, smooth in enumerate(tried) if len(trained.encode(smooth)) <= 2000)
    assert read.smoothing == (0.005, 0.01, 0.02)[needed] and read.ids == trained.encode(tried[needed])
    drawn = small.decode(read)
    assert drawn.shape == (12, 1000)
    inside = np.abs(tried[needed]) < 2  # every lead is there, where it was and as large
    assert np.abs(drawn - tried[needed])[inside].max() <= 0.08 + 1e-5 and inside.mean() > 0.99
    assert np.abs(drawn - clean.signal).mean() < np.abs(ecg.signal - clean.signal).mean()
    with pytest.raises(ValueError, match=r"record 'storm' needs \d+ tokens, and \d+ when smoothed: .*max_tokens=2000"):
        small.encode(noisy(clean, 20.0, "storm"))


def test_fit_gives_up_no_more_than_it_must(cohort):
    roomy = EcgByteTokenizer.fit(cohort, 20_000, 600, progress=False)
    assert roomy.settings == EcgByteSettings(max_tokens=20_000) and len(roomy.table.merges) == 500
    counts = [len(roomy.encode(ecg)) for ecg in cohort[4::5]]
    tight = EcgByteTokenizer.fit(cohort, max(counts) // 2, 600, progress=False)
    assert set(tight.settings.leads) == {"I", "II", *LEADS[6:]}  # the others follow from I and II
    assert all(len(tight.encode(ecg)) <= max(counts) // 2 for ecg in cohort[4::5])


def test_fit_says_when_nothing_fits(cohort):
    with pytest.raises(ValueError, match=r"10 tokens are too few: with \d+ merges, 8 leads, 50 Hz and 2.5 seconds"):
        EcgByteTokenizer.fit(cohort[:6], 10, 30, progress=False)
    with pytest.raises(ValueError, match="4 recordings are too few"):
        EcgByteTokenizer.fit(cohort[:4], 1000, 30, progress=False)


# --- files ------------------------------------------------------------------------------------------------------------


def test_a_saved_tokenizer_gives_the_same_ids(tmp_path, trained, cohort, expected):
    fitted = replace(trained.settings, max_tokens=3000, leads=("II", "V1"), quantizer=Quantizer(high=3.0))
    upstream = EcgByteTokenizer.from_upstream(table_path("1000_25.json"))
    for tokenizer in (trained, EcgByteTokenizer(trained.table, fitted), upstream):
        tokenizer.save(tmp_path / "a" / "tokenizer.json")
        loaded = EcgByteTokenizer.load(tmp_path / "a" / "tokenizer.json")
        assert loaded.settings == tokenizer.settings and loaded.table.llm_order == tokenizer.table.llm_order
        assert loaded.encode(cohort[3]) == tokenizer.encode(cohort[3])
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["tokenizer.json"]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda saved: saved.pop("merges"), "expected merges, llm_order and settings"),
        (lambda saved: saved["settings"].update(speed=3), "speed"),
        (lambda saved: saved["settings"].pop("leads"), "leads"),
        (lambda saved: saved["settings"]["quantizer"].update(normalize="x"), "normalize must be one of"),
        (lambda saved: saved["merges"].append("A"), "token 556 must be two or more"),
    ],
)
def test_a_changed_file_is_refused(tmp_path, trained, change, why):
    trained.save(tmp_path / "t.json")
    saved = json.loads((tmp_path / "t.json").read_text())
    change(saved)
    (tmp_path / "t.json").write_text(json.dumps(saved))
    with pytest.raises(ValueError, match=f"t.json: not a tokenizer that was saved here: .*{why}"):
        EcgByteTokenizer.load(tmp_path / "t.json")


# --- for a language model ---------------------------------------------------------------------------------------------


def test_a_language_model_is_given_the_tokens_that_occur_and_what_they_look_like(trained):
    order = trained.table.llm_order
    assert order == (*range(97, 123), *range(BYTES, BYTES + 300))
    waves = trained.waveforms(8)
    assert waves.shape == (326, 8) and waves.dtype == np.float32
    assert waves[0] == pytest.approx(-2 + 0.08, abs=1e-6) and waves[25] == pytest.approx(2.16 - 0.08, abs=1e-6)
    token = max(range(BYTES, len(trained.table)), key=lambda token: len(set(trained.table[token])))
    drawn = trained.decode([token] * 12)[0]
    wave = waves[order.index(token)]
    assert wave[[0, -1]] == pytest.approx(drawn[[0, -1]]) and drawn.min() - 1e-6 <= wave.min() < wave.max()
    assert len(drawn) == trained.lengths[token] == len(trained.table[token])
    # Flat tokens of several lengths look alike: together with their lengths no two tokens are the same.
    waves = trained.waveforms(int(trained.lengths.max()))
    known = np.column_stack([waves, trained.lengths[list(order)]])
    assert len(np.unique(waves, axis=0)) < 300 and len(np.unique(known, axis=0)) == 326


def test_waveforms_of_a_published_table_are_in_its_order(expected):
    tokenizer = EcgByteTokenizer.from_upstream(table_path("1000_25.json"))
    waves = tokenizer.waveforms(4)
    order = list(tokenizer.table.llm_order)
    assert waves.shape == (1256, 4) and not waves[order.index(7)].any()
    assert waves[order.index(ord("z"))] == pytest.approx(1.0) and waves[order.index(ord("a"))] == pytest.approx(0.0)
