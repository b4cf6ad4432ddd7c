"""The scores of a run as lines of text: a row a method, one of chance, and what a reader has to know besides."""

from __future__ import annotations

from tabulate import tabulate

from mindtuner.evaluation.scores.catalogue import ONE_HALF, ONE_IN_N, Score, of_part
from mindtuner.evaluation.scores.networks import not_scored


def text(results: dict) -> str:
    """The methods' scores in a few aligned lines, and in words what they leave out."""
    first = next(iter(results["methods"].values()))
    scores = [
        score
        for part in ("retrieval", "reconstruction")
        for score in of_part(part).values()
        if score.name in first.get(part, ())
    ]
    rows = [[method, *(entry[score.part][score.name] for score in scores)] for method, entry in results["methods"].items()]
    rows.append(["chance", *(chance_of(results["chance"], score) for score in scores)])
    table = tabulate(rows, ["method", *(score.label for score in scores)], "plain", floatfmt=".3f", missingval="-")
    return "\n".join([table, *remarks(results)])


def chance_of(chance: dict, score: Score, method: str = "mindtuner") -> float | None:
    """The chance level of a score in a run's results; None where it was measured for other methods only."""
    if score.chance == ONE_IN_N:
        return chance["retrieval"][score.name]
    return chance["two_way"] if score.chance == ONE_HALF else chance["reconstruction"][score.name].get(method)


def remarks(results: dict) -> list[str]:
    """What a reader of the table has to know: scores where less is better, networks, what is left out, smaller pools."""
    own = results["setting"]["scores"]
    seen = [
        f"{of_part('reconstruction')[name].label} {found['mean']:.3f}"
        for name, found in results.get("objects", {"seen": {}})["seen"].items()
    ]
    undefined = results["undefined"].get("pixcorr", {"left_out": {"count": 0}, "counted_zero": {}})  # none without pictures
    by = [f"{', '.join(network['layers'])} by {network['network']}" for network in own["networks"].values()]
    said = [f"networks: {'; '.join(by)}", not_scored(own["not_scored"])]
    lower = [
        score.label
        for score in of_part("reconstruction").values()
        if not score.higher_is_better and score.name in next(iter(results["methods"].values())).get("reconstruction", ())
    ]
    said += [
        f"category of {len(found['names'])}, {method}: {found['accuracy']['value']:.3f} named right, chance "
        f"{found['accuracy']['chance']:.3f}, p {found['accuracy']['p']:.4f}"
        for method, found in results.get("categories", {}).items()
    ]
    said.append(f"lower is better: {', '.join(lower)}" if lower else "")
    said.append(f"of the seen pictures themselves: {', '.join(seen)}" if seen else "")
    if undefined["left_out"]["count"]:
        said.append(
            f"PixCorr leaves out {undefined['left_out']['count']} seen images of one value everywhere: "
            f"{undefined['left_out']['images']}"
        )
    said += [
        f"PixCorr of {method} counts 0 for {some['count']} pictures of one value everywhere, of the images {some['images']}"
        for method, some in undefined["counted_zero"].items()
    ]
    for method, entry in results["methods"].items():
        pools = [
            f"{direction} {small[-1]['top1']:.3f}" for direction, small in entry["retrieval_pools"].items() if len(small) > 1
        ]
        said.append(f"top-1 of {own['retrieval_pool']}, {method}: {', '.join(pools)}" if pools else "")
    return [text for text in said if text]
