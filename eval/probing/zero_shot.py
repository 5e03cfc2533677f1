"""Zero-shot classification: which words does a MELP with its text side find a recording to be like?

Nothing is fitted (docs/zero_shot.md).
"""

import copy
import logging
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from scipy.special import softmax
from transformers import PreTrainedTokenizerBase

from data.ecg import EcgSource
from data.support.commands import command_of
from data.support.files import read_json, require_writable
from data.synthetic import NOISES, VOLTAGES
from elm.inputs.features import weights_hash
from elm.inputs.recordings import as_read
from encoders.melp import MelpFeatureExtractor, MelpForPretraining
from encoders.melp.files import load_pretraining
from encoders.melp.pretraining import zero_shot
from encoders.melp.text import tokenize_texts
from eval.probing.numbers import Areas, Floats, Numbers, compared, with_interval
from eval.probing.settings import ZeroShotSettings
from eval.probing.tasks import SYNTHETIC, Task, simulated, task_of
from eval.probing.transfer import prompts_of, read_prompts, seen_notes
from eval.probing.vectors import vectors
from eval.statistics import rounded

logger = logging.getLogger(__name__)

PUBLISHED = "fuyingw/MELP_Encoder"
NEEDED = (
    f"Zero-shot classification compares recordings with texts, and this is the ECG tower alone, as the published file "
    f"({PUBLISHED}) is. Needed is a model with its text side: a whole training checkpoint of MELP (--model FILE.ckpt "
    "--tokenizer ncbi/MedCPT-Query-Encoder), none of which is published, or one that recipes/pretrain_melp.py has "
    "pretrained (its folder)"
)
TEXTS = 64  # encoded at once

# Findings of simulated recordings that are measured and kept out of the mean, by why.
OUTSIDE: Mapping[str, Sequence[str]] = {
    "Voltage is a gain on the whole recording, which MELP does not see.": VOLTAGES[1:],
    "Noise is of the recording, not of the patient.": NOISES[1:],
}


class TextAndEcg(NamedTuple):
    """A model with its text side, and what it reads with."""

    model: MelpForPretraining
    extractor: MelpFeatureExtractor
    tokenizer: PreTrainedTokenizerBase


def run(settings: ZeroShotSettings) -> Numbers:
    """Load recordings and model, and measure or score.

    Raises:
        ValueError: As `load`, `measure`, `score`, `eval.probing.tasks.load_task`, `data.readers.read_ecg` and
            `elm.inputs.recordings.as_read`.
        FileNotFoundError: There is no such model or recording.
    """
    require_writable(settings.output, "--output")
    if settings.task is not None:  # recordings by path are kept nowhere
        require_writable(settings.cache_folder, "--cache")
    prompts = read_prompts(settings.prompts) if settings.prompts else None
    loaded = load(settings.model, settings.tokenizer)
    loaded.model.to("cuda" if torch.cuda.is_available() else "cpu")
    command = {"command": command_of("eval.zero_shot", settings)}
    if settings.task is None:
        ecgs, remarks = as_read([settings.read(path) for path in settings.ecg], loaded.extractor)
        for remark in remarks:
            logger.warning(remark)
        source = {ecg.record_id: ecg for ecg in ecgs}
        with tempfile.TemporaryDirectory() as folder:  # a path may hold another recording tomorrow
            return command | score(loaded, source, "files", list(source), settings.prompt, folder)
    simulation = settings.task == SYNTHETIC
    folds, cache, seed = settings.folds, settings.cache_folder, settings.seed
    task = simulated(settings.patients, folds, cache) if simulation else task_of(settings, settings.task)
    if settings.prompt:
        return command | score(loaded, task.source, task.source_key, task.splits["test"], settings.prompt, cache)
    random = [random_like(loaded, seed + i) for i in range(1, settings.random_seeds + 1)]
    outside = OUTSIDE if simulation else None
    return command | measure(loaded, task, cache, prompts=prompts, outside=outside, random=random, seed=seed)


def load(name: str, tokenizer: str | None = None) -> TextAndEcg:
    """A MELP with its text side: a folder, hub id or training checkpoint (then with a tokenizer).

    `name` is as `encoders.melp.files.load_pretraining` takes it, or the folder that recipes/pretrain_melp.py wrote,
    which has it in `pretraining`.

    Raises:
        ValueError: It is an encoder without a text side, says what is needed instead; or as `load_pretraining`.
        FileNotFoundError: There is none, or a file of it is missing.
    """
    path = Path(name)
    if (path / "pretraining" / "config.json").is_file():
        path = path / "pretraining"
    config = path / "config.json"
    kind = read_json(config).get("model_type") if config.is_file() else None
    if name == PUBLISHED or kind in ("ecg_melp", "melp"):
        raise ValueError(f"{name} has no text side. {NEEDED}")
    return TextAndEcg(*load_pretraining(path if path.exists() else name, tokenizer=tokenizer))


def random_like(loaded: TextAndEcg, seed: int) -> TextAndEcg:
    """A model of the same architecture whose weights are drawn anew on both sides: the baseline of a ranking."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = type(loaded.model)(copy.deepcopy(loaded.model.config)).eval()
    return loaded._replace(model=model.to(loaded.model.device))


def cosines(
    loaded: TextAndEcg, source: EcgSource, key: str, records: Sequence[str], texts: Sequence[str], cache: Path | str
) -> Floats:
    """How like each text, in lower case as upstream has prompts, each recording is: `[records, texts]`.

    Recordings are encoded once and kept in the folder `cache`, under the name `key` (`eval.probing.vectors`).

    Raises:
        ValueError: A text has no words, or a recording's vector is not finite; names it.
    """
    model, extractor, tokenizer = loaded
    of_texts = []  # first: a prompt without words need not wait for the recordings
    with torch.no_grad():
        for start in range(0, len(texts), TEXTS):
            lower = [text.lower() for text in texts[start : start + TEXTS]]
            tokens = tokenize_texts(tokenizer, lower, model.config.text_length)
            inputs = {name: tensor.to(model.encoder.device) for name, tensor in tokens.items()}
            of_texts.append(model.encode_text(**inputs).double().cpu())
    of_ecgs = vectors(model.encoder, extractor, source, key, records, cache, "rhythm")
    scores = zero_shot(torch.from_numpy(of_ecgs).double(), torch.cat(of_texts))
    return np.asarray(scores.numpy(), dtype=np.float64)


def measure(
    loaded: TextAndEcg,
    task: Task,
    cache: Path | str,
    *,
    prompts: Mapping[str, str] | None = None,
    outside: Mapping[str, Sequence[str]] | None = None,
    random: Sequence[TextAndEcg] = (),
    draws: int = 2000,
    seed: int = 0,
) -> Numbers:
    """Macro AUROC of a task's classes on its test records, each class ranked by its prompt.

    Prompts are by class name (plain words without); `outside` are classes that are measured and kept out of the mean,
    by why; `random` are models of random weights to set beside it (`random_like`). No record is looked at but the
    test's; `draws` are resamples of its patients, and what recordings are encoded to is kept in `cache`.

    Raises:
        ValueError: No class is there in some test records and not in others; or as `prompts_of` and `cosines`.
    """
    records = task.splits["test"]
    counts, left_out = task.counts(records), task.unvaried(records, "test")
    why_outside = {name: why for why, names in (outside or {}).items() for name in names}
    classes = [name for name in task.classes if name not in left_out]
    headline = [i for i, name in enumerate(classes) if name not in why_outside]
    if not headline:
        raise ValueError(f"{task.name}: no class is there in some test records and not in others")
    used = {name: text for name, text in prompts_of(task, prompts).items() if name in classes}
    patients, truth = [task.patient_of[record] for record in records], task.matrix(records, classes)

    def areas_of(model: TextAndEcg) -> Areas:
        scores = cosines(model, task.source, task.source_key, records, list(used.values()), cache)
        return Areas.of(scores, truth, patients, draws, seed)

    areas, others = areas_of(loaded), [areas_of(model) for model in random]
    inside, beside = areas[headline], Areas.mean(others) if others else None
    pretrained_on = loaded.model.encoder.config.pretrained_on
    notes = [*task.notes, *(seen_notes("The model", pretrained_on, [task]) if task.name != SYNTHETIC else ())]
    if cut := _cut(loaded, used):
        notes.append(f"Prompts longer than the model reads, which are cut: {', '.join(cut)}.")
    of_task = {"name": task.name, "recordings": task.source_key, "records": len(records)}
    by_class: Numbers = {}
    for i, name in enumerate(classes):
        by_class[name] = {"prompt": used[name], "positives": counts[name]}
        by_class[name] |= {"apart": why_outside[name]} if name in why_outside else {}
        by_class[name] |= with_interval("auroc", areas.point[i], areas.resampled[i])
        by_class[name] |= {"random": rounded(beside.point[i])} if beside else {}
    return {
        "model": _described(loaded),
        "task": {**of_task, "patients": len(set(patients))},
        "protocol": {"draws": draws, "seed": seed},
        **(compared(inside, [one[headline] for one in others]) if others else with_interval("auroc", *inside.macro)),
        "classes": by_class,
        "left_out": left_out,
        "notes": notes,
    }


def score(
    loaded: TextAndEcg, source: EcgSource, key: str, records: Sequence[str], prompts: Sequence[str], cache: Path | str
) -> Numbers:
    """How like each prompt each recording is; arguments and errors as `cosines`.

    Per record its cosines and, of two or more prompts, the softmax over them at the model's temperature: how it would
    divide the recording among them if exactly one of them were true.
    """
    scores = cosines(loaded, source, key, records, prompts, cache)
    scale = float(np.exp(loaded.model.logit_scale.item()))
    rows: list[Numbers] = []
    for record, row, shares in zip(records, scores, softmax(scale * scores, axis=1)):
        rows.append({"record": record, "cosines": [rounded(x) for x in row]})
        rows[-1] |= {"softmax": [rounded(x) for x in shares]} if len(prompts) > 1 else {}
    notes = [f"Longer than the model reads, and cut: {text!r}." for text in _cut(loaded, dict(zip(prompts, prompts)))]
    about = {"model": _described(loaded), "recordings": key, "prompts": list(prompts), "scale": rounded(scale)}
    return {**about, "records": rows, "notes": notes}


def _cut(loaded: TextAndEcg, prompts: Mapping[str, str]) -> list[str]:
    """Names of the prompts that are longer than the model reads."""
    most = loaded.model.config.text_length - 3  # [BOS], [SEP] and the model's own [CLS]
    rows = loaded.tokenizer([text.lower() for text in prompts.values()], add_special_tokens=False)["input_ids"]
    return [name for name, row in zip(prompts, rows) if len(row) > most]


def _described(loaded: TextAndEcg) -> Numbers:
    encoder, parameters = loaded.model.encoder, sum(parameter.numel() for parameter in loaded.model.parameters())
    weights = {
        "weights": weights_hash(loaded.model),
        "parameters": parameters,
        "encoder_weights": weights_hash(encoder),
    }
    return weights | {"pretrained_on": encoder.config.pretrained_on}
