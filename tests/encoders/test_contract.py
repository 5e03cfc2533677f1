"""What every encoder and its feature extractor keep to, and that `check_encoder` finds what does not."""

import numpy as np
import pytest
import torch
from transformers import AutoConfig

from data.ecg import LEADS, Ecg
from data.experiment.conditions import zero_features
from encoders import check_encoder, load_encoder, new_encoder, save_encoder
from encoders.base import EcgEncoderOutput
from encoders.heartlang import HeartLangVQ
from encoders.patch import PatchConfig, PatchEncoder, PatchFeatureExtractor


def encode(pair, ecgs):
    encoder, extractor = pair
    with torch.no_grad():
        return encoder(**extractor(ecgs))


def test_every_encoder_keeps_the_contract_and_is_left_as_it_was(pair):
    encoder = pair[0].train()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    check_encoder(*pair)
    assert encoder.training
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())


# Each breaks one thing in an encoder that is sound.

FEATURES, FORWARD = PatchFeatureExtractor.features, PatchEncoder.forward


def features(change):
    """The extractor with its features changed, or with a change to the recording before."""

    def changed(self, ecg):
        found = FEATURES(self, ecg)
        return found | change(found, ecg)

    return PatchFeatureExtractor, "features", changed


def forward(change):
    """The encoder with its output changed."""

    def changed(self, ecg_values, token_mask=None):
        out = FORWARD(self, ecg_values, token_mask)
        return change(out, ecg_values)

    return PatchEncoder, "forward", changed


def recording(change):
    """The extractor with something done to a recording that a sound one does not do."""
    return PatchFeatureExtractor, "features", lambda self, ecg: FEATURES(self, change(ecg))


def neighbours(self, ecgs, return_tensors="pt"):
    made = super(PatchFeatureExtractor, self).__call__(ecgs, return_tensors)
    made["ecg_values"] = made["ecg_values"] / made["ecg_values"].abs().max()
    return made


def tokens(values):
    return lambda out, given: EcgEncoderOutput(values(out.last_hidden_state, given), out.mask)


def masked(values):
    return lambda out, given: EcgEncoderOutput(out.last_hidden_state, values(out.mask, given))


def unsaved(self, ecg_values, token_mask=None):
    out = FORWARD(self, ecg_values, token_mask)
    return EcgEncoderOutput(out.last_hidden_state * vars(self).get("gain", 1.0), out.mask)


def finite(ecg):
    return Ecg(np.nan_to_num(ecg.signal), ecg.fs, ecg.leads, record_id=ecg.record_id)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (features(lambda found, ecg: {"gain": np.float32(1)}), r"gives \['ecg_values', 'gain', 'token_mask'\]"),
        ((PatchFeatureExtractor, "model_input_names", ["ecg_values"]), r"model_input_names is \['ecg_values'\]"),
        (features(lambda found, ecg: {"token_mask": found["token_mask"][1:]}), r"token_mask is \(2, 49\); .* make \("),
        (features(lambda found, ecg: {"token_mask": found["token_mask"] * 1.0}), "token_mask is torch.float64, not"),
        ((PatchFeatureExtractor, "__init__", lambda self, *_, **__: None), "takes settings it does not have"),
        ((PatchConfig, "max_tokens", property(lambda self: 51)), r"token_mask is \(2, 50\); .* make \(2, 51\)"),
        (forward(lambda out, given: (out.last_hidden_state,)), "forward gives tuple, not EcgEncoderOutput"),
        (forward(tokens(lambda t, given: t[..., :5])), r"last_hidden_state is \(2, 50, 5\); .* make \(2, 50, 16\)"),
        (forward(tokens(lambda t, given: t / 0)), "tokens are not finite"),
        (forward(tokens(lambda t, given: torch.randn_like(t))), "in eval mode, other tokens the second time"),
        (forward(tokens(lambda t, given: t * 0)), "the same tokens for two different recordings"),
        (forward(tokens(lambda t, given: t / given.std((1, 2), keepdim=True))), "flat recording are not finite"),
        (forward(masked(lambda m, given: None)), "the output has no bool mask"),
        (forward(masked(lambda m, given: ~m)), r"mask is not the extractor's token_mask \(1 s\)"),
        (features(lambda found, ecg: {"token_mask": found["token_mask"][::-1]}), "padding comes before signal"),
        (features(lambda found, ecg: {"token_mask": found["token_mask"] & (ecg.duration > 2)}), "1 s has no token"),
        (features(lambda found, ecg: {"token_mask": np.arange(50) < 90 / ecg.duration}), "3.3 s has fewer tokens"),
        ((PatchFeatureExtractor, "seconds_read", 6.0), "it reads more than the 6 s of seconds_read"),
        ((PatchFeatureExtractor, "seconds_read", np.inf), "of 40 s it does not read all: state how"),
        (forward(tokens(lambda t, given: t + t.mean(0))), "tokens depend on the other recordings of a batch"),
        ((PatchFeatureExtractor, "__call__", neighbours), "ecg_values depends on the other recordings of a batch"),
        (recording(lambda ecg: Ecg(ecg.signal, ecg.fs, LEADS, record_id=ecg.record_id)), "depends on the order of the"),
        (recording(lambda ecg: Ecg(ecg.signal, 500, ecg.leads, record_id=ecg.record_id)), "at 250 Hz .* resample it"),
        (recording(finite), "NaN is not refused with a ValueError that names the record"),
        (recording(lambda ecg: Ecg(ecg.signal, ecg.fs, ecg.leads)), "NaN is not refused"),
        (forward(tokens(lambda t, given: t.float())), "in bfloat16 its tokens are torch.float32"),
        (forward(tokens(lambda t, given: t + t @ torch.ones(16, 16))), "in bfloat16 it fails .*to\\(self.dtype\\)"),
        ((PatchFeatureExtractor, "own_settings", ("leads",)), "saves does not load: .*scale 0.25 but 0.5 follows"),
        ((PatchEncoder, "forward", unsaved), "load_encoder loads an encoder with other outputs than was saved"),
    ],
)  # fmt: skip
def test_what_is_broken_is_named(broken, message, monkeypatch):
    torch.manual_seed(0)
    sound = new_encoder("ecg_patch", hidden_size=16, scale=0.25)
    sound[0].gain = 2.0  # no weight and no setting, so nothing saves it
    monkeypatch.setattr(*broken)
    with pytest.raises(ValueError, match=f"PatchEncoder with PatchFeatureExtractor: .*{message}"):
        check_encoder(*sound)


def test_classes_that_are_not_registered_are_named():
    class Derived(PatchEncoder):
        pass

    class DerivedExtractor(PatchFeatureExtractor):
        pass

    class Unknown(PatchConfig):
        model_type = "ecg_unknown"

    sound = new_encoder("ecg_patch", hidden_size=16)
    with pytest.raises(ValueError, match="Derived with .*: load_encoder loads a PatchEncoder"):
        check_encoder(Derived(sound[0].config), sound[1])
    with pytest.raises(ValueError, match="DerivedExtractor: .*(loads another feature extractor|does not load)"):
        check_encoder(sound[0], DerivedExtractor())
    sound[0].config = Unknown(hidden_size=16)
    with pytest.raises(ValueError, match="does not load: unknown encoder type 'ecg_unknown'"):
        check_encoder(*sound)


# What holds for ours besides.


@pytest.mark.parametrize("seconds", [0.004, 3.3, 7.0, 25.0])
def test_the_mask_lies_in_time(signal_pair, make_ecg, seconds):
    encoder, extractor = signal_pair
    out = encode(signal_pair, make_ecg(seconds=seconds))
    assert out.last_hidden_state.isfinite().all()
    count = int(out.mask.sum())
    share = count / encoder.config.max_tokens
    if encoder.config.max_tokens > 20:  # tokens that lie in time, not queries over all of it
        steps = encoder.config.num_patches if isinstance(encoder, PatchEncoder) else encoder.config.max_tokens
        assert share == pytest.approx(min(1.0, seconds / 10), abs=1.5 / steps)
    else:
        assert share == 1
    assert count > 0


def test_a_mask_for_another_number_of_tokens_is_refused(pair, make_ecg):
    encoder, extractor = pair
    with pytest.raises(ValueError, match="token_mask is \\(1, 999\\)"):
        encoder(**extractor(make_ecg(seconds=5.0)) | {"token_mask": torch.ones(1, 999, dtype=torch.bool)})


@pytest.mark.parametrize("fs", [250, 360, 400, 1000])
def test_sampling_rate_is_met_by_time(pair, make_ecg, fs):
    same, other = encode(pair, make_ecg(fs=500)), encode(pair, make_ecg(fs=fs))
    assert torch.equal(same.mask, other.mask)
    assert likeness(same, other, pair) > 0.99


def likeness(one, other, pair):
    """The least cosine of the tokens of two outputs; of codes, how many are the same."""
    near = torch.nn.functional.cosine_similarity(one.last_hidden_state, other.last_hidden_state, dim=-1)[one.mask]
    return (near > 0.9).float().mean() + 0.1 if isinstance(pair[0], HeartLangVQ) else near.min()


def test_an_inverted_lead_is_turned_back(pair, make_ecg):
    ecg = make_ecg()
    inverted = ecg.select([*LEADS[:3], "-aVR", *LEADS[4:]])  # Cabrera's
    upright, turned = pair[1](ecg), pair[1](inverted)
    assert all(torch.equal(upright[name], turned[name]) for name in pair[0].ecg_inputs)


def test_unusable_recordings_are_refused_by_name(pair, make_ecg):
    extractor = pair[1]
    with pytest.raises(ValueError, match="'r7' has no lead V3"):
        extractor(make_ecg(record_id="r7").select([name for name in LEADS if name != "V3"]))
    signal = make_ecg().signal.copy()
    signal[4, 100] = np.nan
    with pytest.raises(ValueError, match="'r8'.*not finite.* aVL"):
        extractor([make_ecg(), Ecg(signal, 500, LEADS, record_id="r8")])
    with pytest.raises(TypeError, match="ndarray"):
        extractor([signal])
    with pytest.raises(ValueError, match="no recording"):
        extractor([])


@pytest.mark.parametrize("level", [0.0, 2.5, -2.5])
def test_a_flat_recording_is_finite(pair, level):
    assert encode(pair, Ecg(np.full((12, 3000), level), 500, LEADS)).last_hidden_state.isfinite().all()


@torch.no_grad()
def test_zeroed_words_keep_their_places(word_pair, make_ecg):
    encoder, extractor = word_pair
    features = extractor([make_ecg(seed=1), make_ecg(seconds=6.0, seed=2)])
    zeroed = zero_features(features, encoder.ecg_inputs)
    assert not zeroed["words"].any() and features["words"].any()
    assert all(torch.equal(zeroed[name], features[name]) for name in ("in_chan", "in_time", "token_mask"))
    out, real = encoder(**zeroed), encoder(**features)
    assert out.last_hidden_state.isfinite().all() and torch.equal(out.mask, real.mask)
    assert not torch.allclose(out.last_hidden_state, real.last_hidden_state, atol=1e-3)


def test_what_the_weights_have_seen_is_saved_with_them(pair, tmp_path):
    encoder, extractor = pair
    encoder.config.pretrained_on = "a corpus and its reports"
    save_encoder(encoder, extractor, tmp_path)
    loaded = load_encoder(tmp_path)[0]
    assert loaded.config.pretrained_on == "a corpus and its reports" and not loaded.training
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in encoder.state_dict().items())
    assert AutoConfig.from_pretrained(tmp_path).to_dict() == loaded.config.to_dict()


def test_half_precision_is_close(pair, make_ecg):
    encoder, extractor = pair
    want = encode(pair, make_ecg())
    got = encode((encoder.to(torch.bfloat16), extractor), make_ecg())
    got.last_hidden_state = got.last_hidden_state.float()
    assert likeness(want, got, pair) > 0.99


def test_every_weight_can_learn(pair, make_ecg):
    encoder, extractor = pair
    outputs = encoder.train()(**extractor([make_ecg(seed=1), make_ecg(seed=2)]))
    sum(value.pow(2).sum() for value in outputs.values() if value.is_floating_point()).backward()
    learning = [weight for weight in encoder.parameters() if weight.requires_grad]
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in learning)


def test_any_attention_may_be_chosen_around_an_encoder(pair):
    for name in ("sdpa", "eager", "flex_attention"):
        assert pair[0].get_correct_attn_implementation(name) == name
    assert pair[0].get_input_embeddings() is not None


def test_misspelt_settings_are_refused(pair):
    with pytest.raises(TypeError, match="sampling_frequency"):
        type(pair[1])(sampling_frequency=250)
    with pytest.raises(ValueError, match="takes 12 leads, not I, II"):
        type(pair[1]).from_config(pair[0].config, leads=("I", "II"))
