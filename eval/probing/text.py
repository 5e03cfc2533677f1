"""What people read of a probe and of zero-shot classification: the numbers in Markdown."""

import json
from collections.abc import Mapping
from pathlib import Path

from data.support.files import written_whole
from eval.probing.numbers import Numbers
from eval.report.parts import Table, auroc_span, markdown_table, signed_span
from eval.report.templates import filled_in

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


def _page(name: str, numbers: Numbers, **words: object) -> str:
    return filled_in(Path(__file__).with_name(f"{name}.md.jinja"), {"command": "", **numbers, **words})


def _area(numbers: Numbers) -> str:
    return auroc_span(numbers["auroc"], numbers["interval"])


def probe_text(numbers: Numbers) -> str:
    """The numbers of `eval.probing.probe.measure`."""
    train, test = numbers["train_task"], numbers["test_task"]
    splits = [(train, "train"), (train, "valid"), (test, "test")]
    counts = [task["splits"][split] for task, split in splits]
    rows = [[unit, *(f"{of_split[unit]:,}" for of_split in counts)] for unit in ("patients", "records")]
    for name in counts[0]["positives"]:
        rows.append([name, *(f"{of_split['positives'][name]:,}" for of_split in counts)])
    head = ["", *(f"{task['name']}, {split}" for task, split in splits)]
    return _page(
        "probe",
        numbers,
        what=train["name"] if train == test else f"from {train['name']} to {test['name']}",
        tables=[markdown_table([table.head, *table.rows], table.words) for table in probe_tables(numbers)],
        left_out=[one | {"reasons": reasons(one["left_out"])} for one in numbers["results"] if one["left_out"]],
        split_table=markdown_table([head, *rows]),
    )


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
    if of_pairs := [
        [f"{pairs[0]['first']} − {pairs[0]['second']}", *(_difference(pair, "difference") for pair in pairs)]
        for pairs in zip(*(result["pairs"] for result in results))
    ]:
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


def _difference(numbers: Numbers, name: str = "value") -> str:
    return signed_span(numbers[name], numbers["interval"], 3)


def zero_shot_text(numbers: Numbers) -> str:
    """The numbers of `eval.probing.zero_shot.measure`."""
    classes, random = numbers["classes"], numbers.get("random")
    inside = {name: one for name, one in classes.items() if "apart" not in one}
    rows = [["**macro mean**", "", "", _area(numbers), *([_area(random)] if random else [])]]
    for name, one in (inside | classes).items():
        label = name if name in inside else f"{name} (apart)"
        rows.append([label, one["prompt"], f"{one['positives']:,}", _area(one)])
        rows[-1] += [f"{one['random']:.3f}"] if random else []
    head = ["class", "prompt", "positives", "AUROC", *(["random weights"] if random else [])]
    outside = _by_reason({name: one["apart"] for name, one in classes.items() if "apart" in one})
    words = {"inside": len(inside), "table": markdown_table([head, *rows], 2), "random": random, "outside": outside}
    span = signed_span(numbers["difference"]["value"], numbers["difference"]["interval"]) if random else ""
    return _page("zero_shot", numbers, **words, span=span)


def score_text(numbers: Numbers) -> str:
    """The numbers of `eval.probing.zero_shot.score`: the records most like the first prompt."""
    prompts, rows = numbers["prompts"], numbers["records"]
    first = sorted(rows, key=lambda row: (-row["cosines"][0], row["record"]))[:SHOWN]
    several = len(prompts) > 1
    head = ["record", *prompts, *(f"{prompt}, softmax" for prompt in prompts if several)]
    table = [[row["record"], *(f"{x:.3f}" for x in (*row["cosines"], *row.get("softmax", ())))] for row in first]
    return _page("scores", numbers, shown=len(first), several=several, table=markdown_table([head, *table]))
