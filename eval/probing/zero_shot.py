"""Zero-shot classification: which words does a MELP with its text side find a recording to be like?

    python -m eval.zero_shot --model out/melp-tiny --task synthetic
    python -m eval.zero_shot --model out/melp/pretraining --task ptbxl-super --ptbxl data/ptbxl
    python -m eval.zero_shot --model melp.ckpt --tokenizer ncbi/MedCPT-Query-Encoder --task cpsc2018 \
--cpsc2018 data/cpsc_2018 --splits data/splits --prompts CKEPE_prompt.json
    python -m eval.zero_shot --model out/melp --prompt "atrial fibrillation" --prompt "sinus rhythm" --ecg a.hea b.hea
    python -m eval.zero_shot --model out/melp --prompt "atrial fibrillation" --task ptbxl-super --ptbxl data/ptbxl

Tasks are those of eval.probe (ptbxl-super, ptbxl-sub, ptbxl-form, ptbxl-rhythm, cpsc2018, csn, ptbxl-all, csn-stated)
and synthetic: findings of the simulated cohort's held-out patients.

Nothing is fitted: the score of a class is the cosine of the recording and of the class's prompt in lower case, and each
class is ranked by itself. The number is the macro AUROC on the test records. docs/zero_shot.md says it all.

What is published of MELP, fuyingw/MELP_Encoder, is the ECG tower alone and cannot do this.

Writes zero_shot.json and zero_shot.md. Research use only; not a medical device.
"""

from __future__ import annotations

import copy
import json
import logging
import shlex
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from data.support.commands import command_line
from data.support.files import written_whole
from eval.probing.probe import Areas, Where, areas_of, with_interval
from eval.report.parts import auroc_span, markdown_table, signed_span

if TYPE_CHECKING:  # torch takes seconds to import, which `--help` need not wait for
    from transformers import PreTrainedTokenizerBase

    from data.ecg import EcgSource
    from encoders.melp import MelpFeatureExtractor, MelpForPretraining
    from eval.probing.tasks import Task

logger = logging.getLogger(__name__)

Numbers = dict[str, Any]
Floats = NDArray[np.float64]

PUBLISHED = "fuyingw/MELP_Encoder"
NEEDED = (
    f"Zero-shot classification compares recordings with texts, and this is the ECG tower alone, as the published file "
    f"({PUBLISHED}) is. Needed is a model with its text side: a whole training checkpoint of MELP (--model FILE.ckpt "
    "--tokenizer ncbi/MedCPT-Query-Encoder), none of which is published, or one that recipes/pretrain_melp.py has "
    "pretrained (its folder)"
)
SYNTHETIC = "synthetic"
SHOWN = 20  # records in a table of scores
TEXTS = 64  # encoded at once

# What classes are called where no file of prompts is given. No name means one thing in one corpus and another in
# another, but for what a label takes in: STE of PTB-XL is its non-specific ST elevation.
WORDS: Mapping[str, str] = {
    "1AVB": "first degree AV block", "2AVB": "second degree AV block",
    "2AVB1": "second degree AV block, Mobitz type I", "3AVB": "third degree AV block",
    "ABQRS": "abnormal QRS complex", "AF": "atrial flutter", "AFIB": "atrial fibrillation", "AFLT": "atrial flutter",
    "ALMI": "anterolateral myocardial infarction", "ALS": "left axis deviation",
    "AMI": "anterior myocardial infarction", "ANEUR": "ST-T changes of a ventricular aneurysm",
    "APB": "premature atrial beats", "AQW": "abnormal Q waves",
    "ARS": "right axis deviation", "ASMI": "anteroseptal myocardial infarction", "AT": "atrial tachycardia",
    "AVB": "AV block", "BIGU": "bigeminy", "CCR": "counterclockwise rotation", "CD": "conduction disturbance",
    "CLBBB": "complete left bundle branch block", "CR": "clockwise rotation",
    "CRBBB": "complete right bundle branch block", "DIG": "digitalis effect", "EL": "electrolyte disturbance",
    "ERV": "early repolarization", "HVOLT": "high QRS voltage", "HYP": "hypertrophy",
    "ILBBB": "incomplete left bundle branch block", "ILMI": "inferolateral myocardial infarction",
    "IMI": "inferior myocardial infarction", "INJAL": "anterolateral subendocardial injury",
    "INJAS": "anteroseptal subendocardial injury", "INJIL": "inferolateral subendocardial injury",
    "INJIN": "inferior subendocardial injury", "INJLA": "lateral subendocardial injury", "INVT": "inverted T waves",
    "IPLMI": "inferoposterolateral myocardial infarction", "IPMI": "inferoposterior myocardial infarction",
    "IRBBB": "incomplete right bundle branch block", "ISC": "ischemic ST-T changes", "ISCA": "anterior ischemia",
    "ISCAL": "anterolateral ischemia", "ISCAN": "anterior ischemia", "ISCAS": "anteroseptal ischemia",
    "ISCI": "inferior ischemia", "ISCIL": "inferolateral ischemia", "ISCIN": "inferior ischemia",
    "ISCLA": "lateral ischemia", "IVCD": "non-specific intraventricular conduction disturbance",
    "JEB": "junctional escape beats", "LAFB": "left anterior fascicular block",
    "LAFB/LPFB": "left anterior or posterior fascicular block", "LAO/LAE": "left atrial enlargement",
    "LBBB": "left bundle branch block", "LMI": "lateral myocardial infarction", "LNGQT": "long QT interval",
    "LOWT": "low amplitude T waves", "LPFB": "left posterior fascicular block", "LPR": "long PR interval",
    "LVH": "left ventricular hypertrophy", "LVOLT": "low QRS voltage", "MI": "myocardial infarction",
    "NDT": "non-diagnostic T wave abnormalities", "NORM": "normal ECG", "NST": "non-specific ST changes",
    "NT": "non-specific T wave changes", "PAC": "premature atrial beats", "PACE": "pacemaker rhythm",
    "PMI": "posterior myocardial infarction", "PRC(S)": "premature beats", "PRIE": "long PR interval",
    "PSVT": "paroxysmal supraventricular tachycardia", "PVC": "premature ventricular beats", "PWC": "P wave changes",
    "QTIE": "long QT interval", "QWAVE": "abnormal Q waves", "RAO/RAE": "right atrial enlargement",
    "RBBB": "right bundle branch block", "RVH": "right ventricular hypertrophy", "SA": "sinus arrhythmia",
    "SARRH": "sinus arrhythmia", "SBRAD": "sinus bradycardia", "SEHYP": "septal hypertrophy", "SR": "sinus rhythm",
    "ST": "sinus tachycardia", "STACH": "sinus tachycardia", "STD": "ST depression", "STDD": "ST depression",
    "STE": "ST elevation", "STTC": "ST-T changes", "STTU": "upsloping ST segment",
    "SVARR": "supraventricular arrhythmia", "SVT": "supraventricular tachycardia",
    "SVTAC": "supraventricular tachycardia", "TAB": "T wave abnormality", "TRIGU": "trigeminy", "TWC": "T wave changes",
    "TWO": "inverted T waves", "UW": "U waves", "VB": "ventricular bigeminy",
    "VCLVH": "voltage criteria for left ventricular hypertrophy", "VEB": "ventricular escape beats",
    "VPB": "premature ventricular beats", "VPC": "premature ventricular beats", "WPW": "Wolff-Parkinson-White syndrome",
}  # fmt: skip


class TextAndEcg(NamedTuple):
    """A model with its text side, and what it reads with."""

    model: MelpForPretraining
    extractor: MelpFeatureExtractor
    tokenizer: PreTrainedTokenizerBase


def load(name: str, tokenizer: str | None = None) -> TextAndEcg:
    """A MELP with its text side: a folder, hub id or training checkpoint.

    Args:
        name: As `encoders.melp.files.load_pretraining` takes it, or the folder that recipes/pretrain_melp.py wrote,
            which has it in `pretraining`.
        tokenizer: For a checkpoint of upstream.

    Raises:
        ValueError: It is an encoder without a text side, says what is needed instead; or as `load_pretraining`.
        FileNotFoundError: There is none, or a file of it is missing.
    """
    from encoders.melp.files import load_pretraining

    path = Path(name)
    if (path / "pretraining" / "config.json").is_file():
        path = path / "pretraining"
    config = path / "config.json"
    kind = json.loads(config.read_text(encoding="utf-8")).get("model_type") if config.is_file() else None
    if name == PUBLISHED or kind in ("ecg_melp", "melp"):
        raise ValueError(f"{name} has no text side. {NEEDED}")
    return TextAndEcg(*load_pretraining(path if path.exists() else name, tokenizer=tokenizer))


def random_like(loaded: TextAndEcg, seed: int) -> TextAndEcg:
    """The same architecture with weights drawn anew on both sides: what ranking by such a model is worth."""
    import torch

    config = copy.deepcopy(loaded.model.config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = type(loaded.model)(config).eval()
    return loaded._replace(model=model.to(loaded.model.device))


def read_prompts(path: Path | str) -> dict[str, str]:
    """Prompts by class name from a JSON file such as MELP's and MERL's CKEPE_prompt.json.

    Raises:
        ValueError: It is not an object of names and texts; names the file.
    """
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}") from error
    if not isinstance(found, dict) or not all(isinstance(text, str) and text.strip() for text in found.values()):
        raise ValueError(f'{path}: expected one text for each class, as in {{"AFIB": "atrial fibrillation"}}')
    return found


def prompts_of(task: Task, prompts: Mapping[str, str] | None = None) -> dict[str, str]:
    """The prompt of each class of a task: from those given, else in plain words.

    Raises:
        ValueError: A class has none; names those.
    """
    own = dict(zip(task.classes, task.classes)) if task.name == SYNTHETIC else WORDS  # findings are words already
    source = own if prompts is None else prompts
    if missing := [name for name in task.classes if name not in source]:
        raise ValueError(f"{task.name}: no prompt for {', '.join(missing)}: add them to the file of prompts")
    return {name: source[name] for name in task.classes}


def text_vectors(loaded: TextAndEcg, texts: Sequence[str]) -> Floats:
    """Texts in the shared space, of unit length `[texts, D]`; in lower case, as upstream has prompts.

    Raises:
        ValueError: A text has no words.
    """
    import torch

    from encoders.melp.text import tokenize_texts

    model, _, tokenizer = loaded
    parts = []
    with torch.no_grad():
        for start in range(0, len(texts), TEXTS):
            lower = [text.lower() for text in texts[start : start + TEXTS]]
            tokens = tokenize_texts(tokenizer, lower, model.config.text_length)
            there = {name: tensor.to(model.encoder.device) for name, tensor in tokens.items()}
            parts.append(model.encode_text(**there).double().cpu().numpy())
    return np.concatenate(parts)


def cosines(
    loaded: TextAndEcg,
    source: EcgSource,
    source_key: str,
    records: Sequence[str],
    texts: Sequence[str],
    cache: Path | str,
) -> Floats:
    """How like each text each recording is, `[records, texts]`.

    Args:
        loaded: The model.
        source: Gives the recordings.
        source_key: A name for them; recordings are encoded once and kept in `cache` (`eval.probing.vectors`).
        records: Which.
        texts: Prompts.
        cache: Folder for what recordings are encoded to.

    Raises:
        ValueError: A text has no words, or a recording's vector is not finite; names it.
    """
    import torch

    from encoders.melp.pretraining import zero_shot
    from eval.probing.vectors import vectors

    model, extractor, _ = loaded
    of_texts = text_vectors(loaded, texts)  # first: a prompt without words need not wait for the recordings
    of_ecgs = vectors(model.encoder, extractor, source, source_key, records, cache, "rhythm")
    scores = zero_shot(torch.from_numpy(of_ecgs).double(), torch.from_numpy(of_texts))
    return np.asarray(scores.numpy(), dtype=np.float64)


def _cut(loaded: TextAndEcg, prompts: Mapping[str, str]) -> list[str]:
    """Names of the prompts that are longer than the model reads."""
    most = loaded.model.config.text_length - 3  # [BOS], [SEP] and the model's own [CLS]
    rows = loaded.tokenizer([text.lower() for text in prompts.values()], add_special_tokens=False)["input_ids"]
    return [name for name, row in zip(prompts, rows) if len(row) > most]


def _described(loaded: TextAndEcg) -> Numbers:
    from elm.inputs.features import weights_hash
    from eval.probing.vectors import describe

    told = describe(loaded.model.encoder)
    return {
        "weights": weights_hash(loaded.model),
        "parameters": sum(parameter.numel() for parameter in loaded.model.parameters()),
        "encoder_weights": told["weights"],
        "pretrained_on": told["pretrained_on"],
    }


# --- a task -----------------------------------------------------------------------------------------------------------


def measure(
    loaded: TextAndEcg,
    task: Task,
    cache: Path | str,
    *,
    prompts: Mapping[str, str] | None = None,
    apart: Mapping[str, Sequence[str]] | None = None,
    random: Sequence[TextAndEcg] = (),
    draws: int = 2000,
    seed: int = 0,
) -> Numbers:
    """Macro AUROC of a task's classes on its test records, each class ranked by its prompt.

    Args:
        loaded: The model.
        task: Only its test records are looked at.
        cache: Folder for what recordings are encoded to.
        prompts: By class name; plain words without.
        apart: Classes that are measured and kept out of the mean, by why.
        random: Models of random weights to set beside it (`random_like`).
        draws: Resamples of test patients.
        seed: Of the resamples.

    Returns:
        What JSON can hold; see `text`.

    Raises:
        ValueError: No class is there in some test records and not in others; or as `prompts_of` and `cosines`.
    """
    from eval.probing.tasks import seen_corpora

    records = task.splits["test"]
    counts = task.counts(records)
    left_out = {
        name: f"{'no' if count == 0 else 'every'} test record has it"
        for name, count in counts.items()
        if count in (0, len(records))
    }
    why_apart = {name: why for why, names in (apart or {}).items() for name in names}
    kept = [name for name in task.classes if name not in left_out]
    headline = [name for name in kept if name not in why_apart]
    if not headline:
        raise ValueError(f"{task.name}: no class is there in some test records and not in others")
    every = prompts_of(task, prompts)
    used = {name: every[name] for name in kept}
    patients, truth = [task.patient_of[record] for record in records], task.matrix(records, kept)
    inside = [i for i, name in enumerate(kept) if name in headline]

    def areas_with(model: TextAndEcg) -> Areas:
        scores = cosines(model, task.source, task.source_key, records, list(used.values()), cache)
        return areas_of(scores, truth, patients, draws, seed)

    areas, others = areas_with(loaded), [areas_with(model) for model in random]
    macro = float(areas.point[inside].mean()), areas.resampled[inside].mean(axis=0)
    beside: Numbers = {}
    if others:
        by_seed = [float(other.point[inside].mean()) for other in others]
        resampled = np.mean([other.resampled[inside].mean(axis=0) for other in others], axis=0)
        beside["random"] = {**with_interval("auroc", float(np.mean(by_seed)), resampled), "by_seed": by_seed}
        beside["difference"] = with_interval("value", macro[0] - float(np.mean(by_seed)), macro[1] - resampled)
    notes = list(task.notes)
    pretrained_on = loaded.model.encoder.config.pretrained_on
    if task.name != SYNTHETIC:
        for corpus in seen_corpora(pretrained_on, [task]):
            notes.append(
                f"The model was pretrained on: {pretrained_on}. That names {corpus}: it may have seen the test "
                "records, or other records of their patients."
            )
            logger.warning("%s", notes[-1])
    if cut := _cut(loaded, used):
        notes.append(f"Prompts longer than the model reads, which are cut: {', '.join(cut)}.")
    return {
        "model": _described(loaded),
        "task": {
            "name": task.name,
            "recordings": task.source_key,
            "records": len(records),
            "patients": len(set(patients)),
        },
        "protocol": {"draws": draws, "seed": seed},
        **with_interval("auroc", *macro),
        **beside,
        "classes": {
            name: {
                "prompt": used[name],
                "positives": counts[name],
                **({"apart": why_apart[name]} if name in why_apart else {}),
                **with_interval("auroc", float(areas.point[i]), areas.resampled[i]),
                **({"random": float(np.mean([other.point[i] for other in others]))} if others else {}),
            }
            for i, name in enumerate(kept)
        },
        "left_out": left_out,
        "notes": notes,
    }


def text(numbers: Numbers) -> str:
    """The numbers of `measure` in Markdown."""
    task, classes = numbers["task"], numbers["classes"]
    inside = {name: told for name, told in classes.items() if "apart" not in told}
    beside = numbers.get("random")
    rows = [["**macro mean**", "", "", auroc_span(numbers["auroc"], numbers["interval"])]]
    rows[0] += [auroc_span(beside["auroc"], beside["interval"])] if beside else []
    rows += [
        [name, told["prompt"], f"{told['positives']:,}", auroc_span(told["auroc"], told["interval"])]
        + ([f"{told['random']:.3f}"] if beside else [])
        for name, told in (inside | classes).items()
    ]
    for row, name in zip(rows[1:], inside | classes):
        row[0] += " (apart)" if name not in inside else ""
    parts = [
        f"# Zero-shot classification: {task['name']}",
        *_command(numbers),
        f"The score of a class is the cosine of the recording and of its prompt; nothing is fitted. AUROC on "
        f"{task['records']:,} test records of {task['patients']:,} patients, its mean over {len(inside)} classes; "
        f"intervals are 95 %, from {numbers['protocol']['draws']:,} resamples of patients.",
        markdown_table([["class", "prompt", "positives", "AUROC", *(["random weights"] if beside else [])], *rows], 2),
    ]
    if beside:
        difference, low_to_high = numbers["difference"], sorted(beside["by_seed"])
        parts.append(
            f"The same architecture with random weights on both sides, mean of {len(low_to_high)} seeds "
            f"({low_to_high[0]:.3f} to {low_to_high[-1]:.3f}): the model is above it by "
            f"{signed_span(difference['value'], difference['interval'])}."
        )
    reasons: dict[str, list[str]] = {}
    for name, told in classes.items():
        if "apart" in told:
            reasons.setdefault(told["apart"], []).append(name)
    said = [f"Not in the mean: {', '.join(names)}. {why}" for why, names in reasons.items()]
    said += [f"Left out: {name}, {why}." for name, why in numbers["left_out"].items()]
    return _closed(parts, [*said, *numbers["notes"]], numbers["model"])


# --- prompts of one's own ---------------------------------------------------------------------------------------------


def score(
    loaded: TextAndEcg,
    source: EcgSource,
    source_key: str,
    records: Sequence[str],
    prompts: Sequence[str],
    cache: Path | str,
) -> Numbers:
    """How like each prompt each recording is; arguments and errors as `cosines`.

    Returns:
        What JSON can hold: per record its cosines and, of two or more prompts, the softmax over them at the model's
        temperature: how it would divide the recording among them if exactly one of them were true.
    """
    from eval.statistics import rounded

    found = cosines(loaded, source, source_key, records, prompts, cache)
    rows: list[Numbers] = [
        {"record": record, "cosines": [rounded(x) for x in row]} for record, row in zip(records, found)
    ]
    scale = float(np.exp(loaded.model.logit_scale.item()))
    if len(prompts) > 1:
        logits = scale * found
        shares = np.exp(logits - logits.max(axis=1, keepdims=True))
        shares /= shares.sum(axis=1, keepdims=True)
        for told, row in zip(rows, shares):
            told["softmax"] = [rounded(x) for x in row]
    cut = _cut(loaded, dict(zip(prompts, prompts)))
    return {
        "model": _described(loaded),
        "recordings": source_key,
        "prompts": list(prompts),
        "scale": rounded(scale),
        "records": rows,
        "notes": [f"Longer than the model reads, and cut: {prompt!r}." for prompt in cut],
    }


def score_text(numbers: Numbers) -> str:
    """The numbers of `score` in Markdown: the records most like the first prompt."""
    prompts, rows = numbers["prompts"], numbers["records"]
    first = sorted(rows, key=lambda told: (-told["cosines"][0], told["record"]))[:SHOWN]
    head, several = ["record", *prompts], len(prompts) > 1
    if several:
        head += [f"{prompt}, softmax" for prompt in prompts]
    table = [
        [told["record"], *(f"{x:.3f}" for x in told["cosines"]), *(f"{x:.3f}" for x in told.get("softmax", ()))]
        for told in first
    ]
    about = f"Cosines of recordings and prompts; {len(first):,} of {len(rows):,} records, by the first prompt."
    if len(first) < len(rows):
        about += " All of them are in zero_shot.json."
    if several:
        about += (
            f" The softmax is over these prompts, of the cosines times {numbers['scale']:.3g}, the model's own scale: "
            "it takes exactly one of them to be true."
        )
    about += " A cosine is no probability: compare records by one prompt, not prompts by one record."
    parts = ["# Zero-shot scores", *_command(numbers), about, markdown_table([head, *table])]
    return _closed(parts, numbers["notes"], numbers["model"])


def _command(numbers: Numbers) -> list[str]:
    return [f"```\n{numbers['command']}\n```"] if "command" in numbers else []


def _closed(parts: Sequence[str], notes: Sequence[str], model: Numbers) -> str:
    told = (
        f"Weights {model['weights']}, {model['parameters']:,} parameters; the encoder was pretrained on: "
        f"{model['pretrained_on'] or 'nothing stated'}."
    )
    items = "\n".join(f"- {note}" for note in (*notes, told))
    return "\n\n".join([*parts, items, "Research use only; not a medical device."]) + "\n"


# --- command line -----------------------------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = command_line("eval.zero_shot", __doc__)
    add = parser.add_argument
    add("--model", required=True, metavar="NAME",
        help="what recipes/pretrain_melp.py wrote, its hub id, or a whole training checkpoint of MELP")  # fmt: skip
    add("--tokenizer", metavar="NAME", help="of a checkpoint's text model: folder or hub id")
    add("--task", help="whose test records are classified; with --prompt, scored")
    for corpus, told in (("ptbxl", "PTB-XL"), ("cpsc2018", "CPSC2018"), ("csn", "CSN")):
        add(f"--{corpus}", type=Path, metavar="DIR", help=f"recordings of {told}, as published")
    add("--splits", type=Path, metavar="DIR", help="split tables of CPSC2018 and CSN")
    add("--folds", default="1-8/9/10", metavar="A/B/C",
        help="of PTB-XL and simulated patients: training, validation, test (1-8/9/10)")  # fmt: skip
    add("--rate", type=int, default=500, help="of PTB-XL: the records of 100 or of 500 Hz (default: 500)")
    add("--leave_out_missing", action="store_true", help="leave out records of the split tables that are not on disk")
    add("--patients", type=int, default=2000, metavar="N", help="of the task synthetic, in all folds (default: 2000)")
    add("--prompts", type=Path, metavar="FILE", help="JSON with the prompt of each class (default: plain words)")
    add("--prompt", action="append", metavar="TEXT", help="score records by a prompt of your own; repeat it to compare")
    add(
        "--ecg",
        nargs="+",
        default=[],
        metavar="PATH",
        help="with --prompt: recordings, WFDB or any format that is read",
    )
    add("--random_seeds", type=int, default=3, metavar="N",
        help="models of random weights beside it (default: 3); 0 for none")  # fmt: skip
    add("--seed", type=int, default=0, help="of the resamples and of random weights (default: 0)")
    add("--cache", type=Path, default=Path("out/cache"), metavar="DIR", help="of vectors (default: out/cache)")
    add("--output", type=Path, default=Path("out/zero_shot"), metavar="DIR", help="default: out/zero_shot")
    args = parser.parse_args(argv)
    if (args.task is None) == (not args.ecg):
        parser.error("give --task, or --ecg with the recordings to be scored")
    if args.ecg and not args.prompt:
        parser.error("--ecg needs --prompt: what the recordings are compared with")
    if args.prompt and args.prompts:
        parser.error("--prompts is of a task's classes and --prompt of your own: give one of them")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        prompts = read_prompts(args.prompts) if args.prompts else None
        folders = {name: vars(args)[name] for name in ("ptbxl", "cpsc2018", "csn") if vars(args)[name] is not None}
        where = Where(folders, args.splits, args.folds, args.rate, args.leave_out_missing)
        numbers = run(
            args.model, args.tokenizer, args.task, where, args.patients, prompts, args.prompt, args.ecg, args.cache,
            args.seed, args.random_seeds,
        )  # fmt: skip
    except (FileNotFoundError, ImportError, ValueError) as error:
        parser.exit(2, f"error: {error}\n")
    given = sys.argv[1:] if argv is None else argv
    numbers = {"command": f"python -m eval.zero_shot {shlex.join(given)}", **numbers}
    words = score_text(numbers) if args.prompt else text(numbers)
    with written_whole(args.output / "zero_shot.json", "w") as file:
        json.dump(numbers, file, indent=2)
    with written_whole(args.output / "zero_shot.md", "w") as file:
        file.write(words)
    print(f"\n{words}\nWritten to {args.output / 'zero_shot.md'} and zero_shot.json")


def run(
    model: str,
    tokenizer: str | None,
    task: str | None,
    where: Where,
    patients: int,
    prompts: Mapping[str, str] | None,
    own: Sequence[str] | None,
    ecgs: Sequence[str],
    cache: Path,
    seed: int,
    random_seeds: int,
) -> Numbers:
    """Load recordings and model, and measure or score.

    Args:
        model: As `load`, and the next.
        tokenizer: Of a checkpoint.
        task: Whose test records; without it `ecgs` are scored.
        where: The corpora.
        patients: Of the simulated cohort.
        prompts: Of the classes.
        own: Prompts of one's own: records are scored, not measured.
        ecgs: Paths of recordings.
        cache: As `measure`.
        seed: As `measure`.
        random_seeds: Models of random weights beside it.

    Raises:
        ValueError: As `load`, `measure`, `score`, `eval.probing.tasks.load_task` and `data.readers.read_ecg`.
        FileNotFoundError: There is no such model or recording.
    """
    import torch

    from data.readers import read_ecg
    from eval.probing.tasks import simulated

    loaded = load(model, tokenizer)
    loaded.model.to("cuda" if torch.cuda.is_available() else "cpu")
    if task is None:
        source = {path: read_ecg(path) for path in ecgs}
        with tempfile.TemporaryDirectory() as folder:  # a path may hold another recording tomorrow
            return score(loaded, source, "files", list(source), own or [], folder)
    chosen = simulated(patients, where.folds, cache) if task == SYNTHETIC else where.task(task)
    if own:
        return score(loaded, chosen.source, chosen.source_key, chosen.splits["test"], own, cache)
    random = [random_like(loaded, seed + i) for i in range(1, random_seeds + 1)]
    apart = _apart() if task == SYNTHETIC else None
    return measure(loaded, chosen, cache, prompts=prompts, apart=apart, random=random, seed=seed)


def _apart() -> dict[str, Sequence[str]]:
    from data.synthetic import NOISES, VOLTAGES

    return {
        "Voltage is a gain on the whole recording, which MELP does not see.": VOLTAGES[1:],
        "Noise is of the recording, not of the patient.": NOISES[1:],
    }


if __name__ == "__main__":
    main()
