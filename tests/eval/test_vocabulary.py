"""Measures of rows: known tables give known numbers, and upstream's initialisation is told from ours."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from data.synthetic import SyntheticCohort
from elm import ElmConfig, ElmForConditionalGeneration, ElmProcessor
from elm.model import vocabulary
from elm.saved.folder import save
from elm.training.tiny_llama import llama_config, train_tokenizer
from encoders.ecg_byte import EcgByteEncoder, EcgByteSettings, EcgByteTokenizer, TokenTable
from eval.probing.vocabulary import FRAME, compare, measure, relative_changes, table
from eval.vocabulary import main

GOLDEN = Path(__file__).parents[2].parent / "shared" / "golden" / "ecg_byte" / "tokenizers"
WORDS = 600


@pytest.fixture(scope="module")
def byte():
    cohort = SyntheticCohort(8, records_per_patient=1, fs=100)
    settings = EcgByteSettings(max_tokens=8000)
    return EcgByteTokenizer.train([cohort[record] for record in cohort.records], 200, settings, progress=False)


def llama(**settings):
    torch.manual_seed(0)
    sizes = {"vocab_size": WORDS, "hidden_size": 256, "intermediate_size": 384, "num_hidden_layers": 3,
             "num_attention_heads": 4, "initializer_range": 0.06, "tie_word_embeddings": False}  # fmt: skip
    return LlamaForCausalLM(LlamaConfig(**sizes | settings)).eval()


# --- known numbers ----------------------------------------------------------------------------------------------------


def test_rows_at_right_angles_copies_and_opposites():
    words = torch.eye(8)
    alike, apart = torch.ones(5, 8), torch.tensor([[3.0, 0], [-3.0, 0]])
    found = measure(words, words, [0.25, 1.0, 0.5])
    assert found.raw == pytest.approx((0,) * 5, abs=1e-6)
    assert found.centred == pytest.approx((-1 / 7,) * 5, abs=1e-6)  # corners of a simplex
    assert (found.moved, found.least, found.most) == (0.5, 0.25, 1.0) and found.off_mean == 1
    assert measure(alike, words, [0]).raw == pytest.approx((1,) * 5, abs=1e-6)
    assert measure(alike, words, [0]).off_mean == 0
    found = measure(apart, words, [0])
    assert found.raw == pytest.approx((-1,) * 5) and found.off_mean == pytest.approx(3 / (7 / 8) ** 0.5)


class Counting:
    """Its logits say how often each id stands in what it read."""

    device = "cpu"

    def __call__(self, input_ids):
        self.read = input_ids
        counts = torch.nn.functional.one_hot(input_ids, 30).sum(1).float()
        return type("Output", (), {"logits": counts[:, None]})


def test_a_change_is_of_words_logits_in_parts_of_the_first_ones():
    """Of the ids 20 to 29, which are no words, nothing is said."""
    language = Counting()
    first, none, both = relative_changes(language, [([1] * 50, [2] * 50), ([21], [22]), ([3], [3])], words=20)
    assert none == both == 0
    before = torch.bincount(language.read[0], minlength=30)[:20].float()
    before[3] -= 1  # of the last pair
    want = before.clone()
    want[1] += 50
    assert first == pytest.approx(50 * 2**0.5 / float(want.norm()), rel=1e-5)
    assert language.read.shape == (2, 2 * FRAME + 1) and (language.read[:, :FRAME] < 20).all()


# --- upstream and ours ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{}, {"tie_word_embeddings": True}, {"num_hidden_layers": 2}])
def test_an_exchanged_ecg_is_noticed_as_words_are_with_our_rows_and_not_with_upstreams(byte, settings):
    found = compare(llama(**settings), byte, WORDS, tokens=100, exchanges=6)
    usual = found["words"].moved
    assert found["content"].moved / usual >= 0.5 and found["upstream"].moved / usual < 0.1
    assert found["upstream"].raw[0] > 0.999 and found["upstream"].off_mean < 0.01
    assert found["content"].raw[2] < 0.5 and 0.5 < found["content"].off_mean < 1.5


def test_trained_rows_are_measured_as_they_are(byte):
    language, count = llama(), len(byte.table.llm_order)
    same = torch.ones(count, 256)
    words = language.get_input_embeddings().weight.data[:count].clone()
    found = compare(language, byte, WORDS, same, tokens=60, exchanges=3)
    assert found["trained"].most == 0 and found["trained"].off_mean == 0
    found = compare(llama(), byte, WORDS, words, tokens=60, exchanges=3)
    assert 0.7 < found["trained"].moved / found["words"].moved < 1.4
    assert found["trained"].off_mean == pytest.approx(1, abs=0.05)
    shown = "\n".join(table(found))
    assert f"{found['trained'].moved / found['words'].moved:.2g} with trained rows." in shown


def test_rows_without_a_token_are_no_words(byte):
    """Some tables are padded."""
    language = llama(vocab_size=WORDS + 40)
    language.get_input_embeddings().weight.data[WORDS:] = 1e4
    found = compare(language, byte, WORDS, tokens=30, exchanges=2)
    assert found["words"].raw[-1] < 0.9 and found["upstream"].off_mean < 0.01


def test_a_published_table_has_a_row_for_every_byte():
    """In upstream's order, and at its rate."""
    if not GOLDEN.is_dir():
        pytest.skip(f"upstream's fixtures are not at {GOLDEN}")
    byte = EcgByteTokenizer.from_upstream(GOLDEN / "ecg_byte_tokenizer_1000_25.json")
    language = llama(hidden_size=64)
    found = compare(language, byte, WORDS, tokens=40, exchanges=2)
    assert language.get_input_embeddings().num_embeddings == WORDS + 256 + len(byte.table.merges)
    assert found["upstream"].moved / found["words"].moved < 0.1 < found["content"].moved / found["words"].moved


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained_here(byte, tmp_path_factory):
    torch.manual_seed(0)
    tokenizer = train_tokenizer(["Is this a normal ECG? yes no"], 320)
    language = LlamaForCausalLM(llama_config(tokenizer))
    encoder, extractor = EcgByteEncoder.for_tokenizer(byte, lead_tokens=True)
    start = vocabulary.extend(language, tokenizer, extractor)
    config = ElmConfig(text_config=language.config, encoder_config=encoder.config, projector_type="vocabulary",
                       ecg_token_id=tokenizer.convert_tokens_to_ids("<ecg>"), vocabulary_start=start)  # fmt: skip
    model = ElmForConditionalGeneration.from_parts(config, encoder, language)
    model.model.projector.weight.data.zero_()
    told = {"language_model": "tiny", "dataset_name": "synthetic", "notes": [], "train_condition": "real"}
    return save(model, ElmProcessor(extractor, tokenizer), tmp_path_factory.mktemp("model"), training=told)


def test_a_model_that_was_trained_here_is_a_third_kind_of_rows(trained_here, byte, tmp_path, capsys):
    main(["--model", str(trained_here), "--tokens", "20", "--exchanges", "2"])
    told = capsys.readouterr().out
    vocabulary_start = json.loads((trained_here / "config.json").read_text())["ecg_vocabulary"]["vocabulary_start"]
    assert f"{vocabulary_start} words, 226 ECG tokens" in told
    assert told.count("trained rows") == 4 and "0 with trained rows." in told, "all zeros say nothing of an ECG"
    byte.save(tmp_path / "byte.json")
    with pytest.raises(SystemExit, match="2"):
        main(["--model", str(trained_here), "--tokenizer", str(tmp_path / "byte.json")])
    assert "has a tokenizer of its own: leave --tokenizer out" in capsys.readouterr().err


def test_a_tokenizer_from_a_file_in_bfloat16(byte, tmp_path, capsys):
    EcgByteTokenizer(TokenTable(byte.table.merges[:40]), byte.settings).save(tmp_path / "byte.json")
    main(["--tokenizer", str(tmp_path / "byte.json"), "--tokens", "20", "--exchanges", "2", "--dtype", "bfloat16"])
    told = capsys.readouterr().out
    assert "random weights (4 layers, hidden size 256), bfloat16: 4,096 words, 66 ECG tokens." in told
    assert "trained" not in told and "Another patient's ECG moves the next word" in told
    (tmp_path / "other.json").write_text('{"some": "thing"}')
    with pytest.raises(SystemExit, match="2"):
        main(["--tokenizer", str(tmp_path / "other.json")])
    assert "other.json: not a table of ECG-Byte" in capsys.readouterr().err
