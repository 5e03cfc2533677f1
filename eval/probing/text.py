"""What people read of a probe and of zero-shot classification: the numbers in Markdown."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from data.support.files import written_whole
from eval.probing.areas import Numbers
from eval.report.parts import Table, auroc_span, markdown_table, signed_span

DISCLAIMER = "Research use only; not a medical device."
SHOWN = 20  # records in a table of scores


def write(folder: Path, name: str, numbers: Numbers, words: str) -> None:
    """Write `name.json` and `name.md`, and print the words."""
    with written_whole(folder / f"{name}.json", "w") as file:
        json.dump(numbers, file, indent=2)
    with written_whole(folder / f"{name}.md", "w") as file:
        file.write(words)
    print(f"\n{words}\nWritten to {folder / f'{name}.md'} and {name}.json")


def reasons(reason_of: Mapping[str, str]) -> str:
    """Names by their reason, in one sentence."""
    return "; ".join(f"{', '.join(names)} ({why})" for why, names in _by_reason(reason_of).items()) + "."


def _by_reason(reason_of: Mapping[str, str]) -> dict[str, list[str]]:
    names: dict[str, list[str]] = {}
    for name, why in reason_of.items():
        names.setdefault(why, []).append(name)
    return names


def _command(numbers: Numbers) -> list[str]:
    return [f"```\n{numbers['command']}\n```"] if "command" in numbers else []


def _items(lines: Sequence[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _area(numbers: Numbers) -> str:
    return auroc_span(numbers["auroc"], numbers["interval"])


# --- probe ------------------------------------------------------------------------------------------------------------


def probe_text(numbers: Numbers) -> str:
    """The numbers of `eval.probing.probe.measure`."""
    train, test, protocol = numbers["train_task"], numbers["test_task"], numbers["protocol"]
    what = train["name"] if train == test else f"from {train['name']} to {test['name']}"
    head = {
        "linear probe": "Linear probe: the encoder is frozen, and a penalised logistic regression per class reads one "
        f"vector per recording (`{protocol['features']}`), its strength chosen on the validation split.",
        "fine-tuned": "The whole encoder is trained with a linear head on one vector per recording "
        f"(`{protocol['features']}`), and the best epoch by validation taken.",
    }[protocol["head"]]
    about = (
        f"{head} Macro AUROC on {test['splits']['test']['records']:,} test records of "
        f"{test['splits']['test']['patients']:,} patients; intervals are 95 %, by patient. Random weights: the same "
        f"architecture, {protocol['random_seeds']} seeds; the difference is to their mean, in the same resamples, and "
        "its interval says nothing of how seeds vary."
    )
    parts = [f"# {protocol['head'].capitalize()}: {what}", *_command(numbers), about]
    parts += [markdown_table([table.head, *table.rows], table.words) for table in probe_tables(numbers)]
    left_out = [
        f"{result['percent']:g} %: {'no class is left' if not result['classes'] else 'left out of the mean'}: "
        f"{reasons(result['left_out'])}"
        for result in numbers["results"]
        if result["left_out"]
    ]
    if left_out:
        parts += ["Classes that cannot be learned, or not be tested:", _items(left_out)]
    splits = [(train, "train"), (train, "valid"), (test, "test")]
    rows = [[unit, *(f"{task['splits'][split][unit]:,}" for task, split in splits)] for unit in ("patients", "records")]
    rows += [
        [name, *(f"{task['splits'][split]['positives'][name]:,}" for task, split in splits)]
        for name in train["splits"]["train"]["positives"]
    ]
    parts.append(markdown_table([["", *(f"{task['name']}, {split}" for task, split in splits)], *rows]))
    encoders = [
        f"**{name}**: {about['model_type']}, {about['parameters']:,} parameters, weights {about['weights']}; "
        f"pretrained on: {about['pretrained_on'] or 'nothing stated'}."
        for name, about in numbers["encoders"].items()
    ]
    parts += [_items(encoders), *([_items(numbers["notes"])] if numbers["notes"] else [])]
    return "\n\n".join([*parts, DISCLAIMER]) + "\n"


def probe_tables(numbers: Numbers) -> list[Table]:
    """The macro means by draw, the differences of encoders, and the classes of the largest draw."""
    results = [result for result in numbers["results"] if result["classes"]]
    head = ["", *(f"{result['percent']:g} % of training patients" for result in results)]
    rows = [
        ["records", *(f"{result['records']:,}" for result in results)],
        ["classes in the mean", *(f"{len(result['classes'])}" for result in results)],
    ]
    for name in numbers["encoders"]:
        of_draws = [result["encoders"][name] for result in results]
        seeds = [one["random"]["by_seed"] for one in of_draws]
        rows += [
            [f"**{name}**", *(_area(one) for one in of_draws)],
            ["random weights, mean", *(_area(one["random"]) for one in of_draws)],
            ["random weights, range", *(f"{min(by_seed):.3f} to {max(by_seed):.3f}" for by_seed in seeds)],
            ["difference", *(_difference(one["difference"]) for one in of_draws)],
        ]
    tables = [Table(head, rows)]
    if any(result["pairs"] for result in results):
        of_pairs = [
            [f"{pairs[0]['first']} − {pairs[0]['second']}"]
            + [signed_span(pair["difference"], pair["interval"], 3) for pair in pairs]
            for pairs in zip(*(result["pairs"] for result in results))
        ]
        tables.append(Table(["difference of encoders", *head[1:]], of_pairs))
    return [*tables, _class_table(numbers, results[-1])]


def _class_table(numbers: Numbers, result: Numbers) -> Table:
    test = numbers["test_task"]["splits"]["test"]["positives"]
    rows = []
    for name in result["classes"]:
        of_encoders = [result["encoders"][encoder]["classes"][name] for encoder in numbers["encoders"]]
        cells = [cell for one in of_encoders for cell in (_area(one), _difference(one["difference"]))]
        rows.append([name, f"{result['positives'][name]:,}", f"{test[name]:,}", *cells])
    columns = [f"{name}{what}" for name in numbers["encoders"] for what in ("", ", minus random")]
    return Table([f"class ({result['percent']:g} %)", "in training", "in test", *columns], rows)


def _difference(numbers: Numbers) -> str:
    return signed_span(numbers["value"], numbers["interval"], 3)


# --- zero-shot --------------------------------------------------------------------------------------------------------


def zero_shot_text(numbers: Numbers) -> str:
    """The numbers of `eval.probing.zero_shot.measure`."""
    task, classes, random = numbers["task"], numbers["classes"], numbers.get("random")
    inside = {name: one for name, one in classes.items() if "apart" not in one}
    rows = [["**macro mean**", "", "", _area(numbers), *([_area(random)] if random else [])]]
    for name, one in (inside | classes).items():
        label = name if name in inside else f"{name} (apart)"
        rows.append([label, one["prompt"], f"{one['positives']:,}", _area(one)])
        rows[-1] += [f"{one['random']:.3f}"] if random else []
    head = ["class", "prompt", "positives", "AUROC", *(["random weights"] if random else [])]
    parts = [
        f"# Zero-shot classification: {task['name']}",
        *_command(numbers),
        f"The score of a class is the cosine of the recording and of its prompt; nothing is fitted. AUROC on "
        f"{task['records']:,} test records of {task['patients']:,} patients, its mean over {len(inside)} classes; "
        f"intervals are 95 %, from {numbers['protocol']['draws']:,} resamples of patients.",
        markdown_table([head, *rows], 2),
    ]
    if random:
        difference, low_to_high = numbers["difference"], sorted(random["by_seed"])
        parts.append(
            f"The same architecture with random weights on both sides, mean of {len(low_to_high)} seeds "
            f"({low_to_high[0]:.3f} to {low_to_high[-1]:.3f}): the model is above it by "
            f"{signed_span(difference['value'], difference['interval'])}."
        )
    apart = _by_reason({name: one["apart"] for name, one in classes.items() if "apart" in one})
    notes = [f"Not in the mean: {', '.join(names)}. {why}" for why, names in apart.items()]
    notes += [f"Left out: {name}, {why}." for name, why in numbers["left_out"].items()]
    return _with_model(parts, [*notes, *numbers["notes"]], numbers["model"])


def score_text(numbers: Numbers) -> str:
    """The numbers of `eval.probing.zero_shot.score`: the records most like the first prompt."""
    prompts, rows = numbers["prompts"], numbers["records"]
    first = sorted(rows, key=lambda row: (-row["cosines"][0], row["record"]))[:SHOWN]
    several = len(prompts) > 1
    head = ["record", *prompts, *(f"{prompt}, softmax" for prompt in prompts if several)]
    table = [[row["record"], *(f"{x:.3f}" for x in (*row["cosines"], *row.get("softmax", ())))] for row in first]
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
    return _with_model(parts, numbers["notes"], numbers["model"])


def _with_model(parts: Sequence[str], notes: Sequence[str], model: Numbers) -> str:
    about = (
        f"Weights {model['weights']}, {model['parameters']:,} parameters; the encoder was pretrained on: "
        f"{model['pretrained_on'] or 'nothing stated'}."
    )
    return "\n\n".join([*parts, _items([*notes, about]), DISCLAIMER]) + "\n"
