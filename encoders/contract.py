"""What every encoder and its feature extractor keep to, as a check that other people can run on theirs."""

import copy
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from transformers import AutoFeatureExtractor, AutoModel

from data.ecg import LEADS, Ecg
from encoders.base import EcgEncoder, EcgEncoderOutput, EcgFeatureExtractor
from encoders.hub import load_encoder, save_encoder


def check_encoder(encoder: EcgEncoder, extractor: EcgFeatureExtractor) -> None:
    """Try an encoder on simulated recordings of twelve leads, and refuse it unless it keeps to `encoders.base`.

    Its features are named and shaped as it says; its tokens are as many and as wide as its configuration states, differ
    where recordings differ and not with the neighbours in a batch; its mask tells signal from padding; it reads as many
    seconds as it says; leads go by name and samples by time; a NaN is refused by the name of its record; what is saved
    loads to the same outputs; and it runs in bfloat16. The encoder is of a registered type, with any weights; its mode
    and weights stay as they are.

    Raises:
        ValueError: It does not; says in what.
    """
    pair = copy.deepcopy(encoder).eval().float(), extractor
    try:
        for check in (_features, _tokens, _mask, _seconds, _batch, _names_and_time, _refusals, _bfloat16, _folder):
            check(*pair)
    except _Broken as fault:
        raise ValueError(f"{type(encoder).__name__} with {type(extractor).__name__}: {fault}") from fault.__cause__


class _Broken(Exception):
    """A way in which an encoder breaks the contract."""


def _demand(holds: bool | np.bool_, otherwise: str) -> None:
    if not holds:
        raise _Broken(otherwise)


def simulated(seconds: float = 10.0, fs: float = 500, seed: int = 0, record_id: str = "") -> Ecg:
    """Pulses at 72 per minute, another size in each lead; the same in time whatever the rate and the length."""
    gains = np.random.default_rng(seed).normal(size=(12, 1))
    phase = (np.arange(round(seconds * fs)) / fs * 1.2) % 1.0
    pulses = np.exp(-(((phase - 0.3) / 0.03) ** 2)) + 0.3 * np.exp(-(((phase - 0.6) / 0.08) ** 2))
    return Ecg(gains * pulses, fs, LEADS, record_id=record_id)


@torch.no_grad()
def _encode(encoder: EcgEncoder, extractor: EcgFeatureExtractor, *ecgs: Ecg) -> EcgEncoderOutput:
    return encoder(**extractor(list(ecgs)))


def _features(encoder: EcgEncoder, extractor: EcgFeatureExtractor) -> None:
    features = extractor([simulated(), simulated(3.3)])
    wanted = sorted({*encoder.ecg_inputs, "token_mask"})
    names, declared = sorted(features), sorted(set(extractor.model_input_names))
    _demand(names == wanted, f"the extractor gives {names}; ecg_inputs and token_mask are {wanted}")
    _demand(declared == wanted, f"model_input_names is {declared}; ecg_inputs and token_mask are {wanted}")
    mask, shape = features["token_mask"], (2, encoder.config.max_tokens)
    _demand(mask.dtype == torch.bool, f"token_mask is {mask.dtype}, not bool")
    _demand(mask.shape == shape, f"token_mask is {tuple(mask.shape)}; two recordings and max_tokens make {shape}")
    refused = _refuses(TypeError, lambda: type(extractor)(no_such_setting=1))
    _demand(refused, "the extractor takes settings it does not have")


def _tokens(encoder: EcgEncoder, extractor: EcgFeatureExtractor) -> None:
    out = _encode(encoder, extractor, simulated(seed=1), simulated(seed=2))
    _demand(isinstance(out, EcgEncoderOutput), f"forward gives {type(out).__name__}, not EcgEncoderOutput")
    shape = (2, encoder.config.max_tokens, encoder.config.output_dim)
    got = tuple(out.last_hidden_state.shape)
    _demand(got == shape, f"last_hidden_state is {got}; two recordings, max_tokens and output_dim make {shape}")
    _demand(bool(out.last_hidden_state.isfinite().all()), "tokens are not finite")
    again = _encode(encoder, extractor, simulated(seed=1), simulated(seed=2))
    _demand(torch.equal(out.last_hidden_state, again.last_hidden_state), "in eval mode, other tokens the second time")
    _demand(not torch.allclose(*out.last_hidden_state, atol=1e-6), "the same tokens for two different recordings")
    flat = _encode(encoder, extractor, Ecg(np.full((12, 5000), 1.5), 500, LEADS)).last_hidden_state
    _demand(bool(flat.isfinite().all()), "tokens of a flat recording are not finite")


def _mask(encoder: EcgEncoder, extractor: EcgFeatureExtractor) -> None:
    most = 0
    for seconds in (1.0, 3.3, 10.0, 25.0):
        features = extractor([simulated(seconds)])
        with torch.no_grad():
            mask = encoder(**features).mask
            without = encoder(**{name: features[name] for name in encoder.ecg_inputs}).mask
        _demand(mask is not None and mask.dtype == torch.bool, "the output has no bool mask")
        _demand(torch.equal(mask, features["token_mask"]), f"mask is not the extractor's token_mask ({seconds:g} s)")
        as_with = without.shape == mask.shape and (bool(without.all()) or torch.equal(without, mask))
        _demand(as_with, "without a token_mask, the mask is neither true throughout nor the same as with it")
        count = int(mask.sum())
        first = bool(mask[0, :count].all())
        _demand(first, f"padding comes before signal ({seconds:g} s): a recording begins at token 0")
        _demand(count > 0, f"a recording of {seconds:g} s has no token that carries signal")
        _demand(count >= most, f"a recording of {seconds:g} s has fewer tokens that carry signal than a shorter one")
        most = count


def _seconds(encoder: EcgEncoder, extractor: EcgFeatureExtractor) -> None:
    reads = extractor.seconds_read
    begin = reads + 1 if np.isfinite(reads) else 35.0  # a second behind: a filter looks a little beyond
    ecg, other = simulated(begin + 5), simulated(begin + 5, seed=1)
    later = (np.arange(ecg.signal.shape[1]) >= begin * ecg.fs) & (np.arange(ecg.signal.shape[1]) < (begin + 3) * ecg.fs)
    features = extractor([ecg])
    changed = extractor([replace(ecg, signal=np.where(later, other.signal, ecg.signal))])
    same = all(torch.equal(features[name], changed[name]) for name in features)
    says = "seconds_read (its setting `seconds`, unless it says otherwise)"
    _demand(same or not np.isfinite(reads), f"it reads more than the {reads:g} s of {says}")
    _demand(np.isfinite(reads) or not same, f"of {ecg.duration:g} s it does not read all: state how many in {says}")


def _batch(encoder: EcgEncoder, extractor: EcgFeatureExtractor) -> None:
    ecgs = [simulated(10.0, seed=1), simulated(4.0, seed=2), simulated(30.0, seed=3)]
    features = extractor(ecgs)
    together = _encode(encoder, extractor, *ecgs).last_hidden_state
    for row, ecg in enumerate(ecgs):
        for name, value in extractor([ecg]).items():
            _demand(torch.equal(features[name][row], value[0]), f"{name} depends on the other recordings of a batch")
        alone = _encode(encoder, extractor, ecg).last_hidden_state[0]
        close = torch.allclose(alone, together[row], atol=1e-4 * float(alone.abs().max()), rtol=0)
        _demand(close, "tokens depend on the other recordings of a batch")


def _names_and_time(encoder: EcgEncoder, extractor: EcgFeatureExtractor) -> None:
    ecg = simulated()
    features, other = extractor([ecg]), extractor([ecg.select(LEADS[::-1])])
    for name in features:
        same = torch.equal(features[name], other[name])
        _demand(same, f"{name} depends on the order of the leads: take them by name")
    tokens, different = _encode(encoder, extractor, ecg, simulated(seed=1)).last_hidden_state
    for fs in (250, 1000):
        slower = _encode(encoder, extractor, simulated(fs=fs)).last_hidden_state[0]
        near = bool((slower - tokens).norm() < 0.5 * (different - tokens).norm())
        _demand(near, f"at {fs} Hz the recording of 500 Hz gives tokens like those of another one: resample it")


def _refusals(encoder: EcgEncoder, extractor: EcgFeatureExtractor) -> None:
    signal = simulated().signal.copy()
    signal[:, 100] = np.nan
    bad = Ecg(signal, 500, LEADS, record_id="r-with-nan")
    named = _refuses(ValueError, lambda: extractor([bad]), "r-with-nan")
    _demand(named, "a recording with NaN is not refused with a ValueError that names the record")


def _refuses(error: type[Exception], call: Callable[[], object], words: str = "") -> bool:
    try:
        call()
    except error as raised:
        return words in str(raised)
    return False


def _bfloat16(encoder: EcgEncoder, extractor: EcgFeatureExtractor) -> None:
    half = copy.deepcopy(encoder).to(torch.bfloat16)
    try:
        out = _encode(half, extractor, simulated()).last_hidden_state
    except RuntimeError as error:
        raise _Broken(f"in bfloat16 it fails ({error}): begin with `ecg_values.to(self.dtype)`") from error
    _demand(out.dtype == torch.bfloat16, f"in bfloat16 its tokens are {out.dtype}")
    _demand(bool(out.isfinite().all()), "in bfloat16 its tokens are not finite")


def _folder(encoder: EcgEncoder, extractor: EcgFeatureExtractor) -> None:
    want = _encode(encoder, extractor, simulated(), simulated(6.0)).last_hidden_state
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_encoder(encoder, extractor, folder)
        try:
            ours = load_encoder(folder)
            auto = AutoModel.from_pretrained(folder).eval(), AutoFeatureExtractor.from_pretrained(folder)
        except Exception as error:  # whatever a class of other people raises
            raise _Broken(f"what it saves does not load: {error}") from error
        for how, (loaded, its_extractor) in (("load_encoder", ours), ("the Auto classes", auto)):
            _demand(type(loaded) is type(encoder), f"{how} loads a {type(loaded).__name__}")
            same = its_extractor.to_dict() == extractor.to_dict() and type(its_extractor) is type(extractor)
            _demand(same, f"{how} loads another feature extractor than was saved")
            got = _encode(loaded, its_extractor, simulated(), simulated(6.0)).last_hidden_state
            _demand(torch.equal(got, want), f"{how} loads an encoder with other outputs than was saved")
