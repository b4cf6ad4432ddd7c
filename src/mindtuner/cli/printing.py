"""Results as the terminal shows them."""

from __future__ import annotations

from mindtuner.evaluation.held_out import held_out_text
from mindtuner.pipeline import Results


def print_results(results: Results) -> None:
    """The table of scores, and the category that was held out apart, where one was."""
    print(f"\n{results}")
    found = results.run.results
    if "held_out" in found:
        print(f"\n{held_out_text(found['held_out'], next(iter(found['methods'])))}")
