"""Get the public MindEye2 release of NSD from the Hugging Face hub.

Only the files that the subjects and sessions asked for need, with their sizes shown first. A fetch that was stopped goes
on where it was when the same command is given again. NSD's terms bind whoever uses the data; see docs/fetch.md.

The networks that the full-size system is built on: mindtuner fetch weights. LAION-fMRI: mindtuner fetch laion.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

TERMS_AT = "https://cvnlab.slite.page/p/dC~rBTjqjb/How-to-get-the-data"
AGREEMENT_AT = "https://naturalscenesdataset.org"
_TERMS = f"""\
These are brain scans of people: the Natural Scenes Dataset (NSD), as the authors of MindEye2 prepared it.
Whoever uses them is bound by NSD's terms:
  how to get the data   {TERMS_AT}
  the form to agree on  the NSD Data Access Agreement, linked at {AGREEMENT_AT}
To fetch them is to say that you have read these terms and agreed to them there.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("out", type=Path, metavar="OUT", help="folder for the dataset: new, or one that fetch began")
    parser.add_argument("--subjects", metavar="N,N,...", help="subjects, such as 1,2 or 1-4 (default: all)")
    parser.add_argument(
        "--sessions",
        metavar="N,N,...",
        help="sessions whose training trials to get, such as 1 or 1-10 (default: all); test trials "
        "come along whole, and a subject's betas are one file",
    )
    parser.add_argument("--list", action="store_true", help="show what would be fetched, and fetch nothing")
    parser.add_argument("--yes", action="store_true", help="do not ask: you have agreed to NSD's terms")
    parser.add_argument("--repo", metavar="OWNER/NAME", help="dataset repository (default: pscotti/mindeyev2)")
    parser.add_argument("--revision", default="main", metavar="REV", help="branch, tag or commit (default: main)")
    parser.add_argument(
        "--endpoint",
        metavar="URL",
        help="hub to fetch from; gets your hub login if you have one (default: HF_ENDPOINT, or https://huggingface.co)",
    )


def run(options: argparse.Namespace) -> None:
    from mindtuner.errors import UserError

    subjects, sessions = numbers("--subjects", options.subjects), numbers("--sessions", options.sessions)
    if not (options.list or options.yes or sys.stdin.isatty()):
        raise UserError(
            f"--yes: not given, and there is no terminal to ask on; expected --yes, which says that you have "
            f"agreed to NSD's terms ({TERMS_AT})"
        )

    from mindtuner.formats.nsd_release import fetch

    release = fetch.read_release(options.repo or fetch.REPO, options.revision, options.endpoint)
    plan = fetch.plan_fetch(release, options.out, subjects, sessions)
    print(f"{_TERMS}\n{release.repo} at {release.endpoint}, revision {release.revision}\n")
    to_come = print_table(plan)
    if options.list:
        return
    plan.check_space()
    question = f"\nHave you agreed to NSD's terms, and shall {to_come} come to {options.out}? [y/N] "
    if not options.yes and not agreed(question):
        raise UserError(f"{options.out}: not fetched; expected y for an answer")
    card = fetch.fetch(plan)
    print(f"\n{options.out}: complete, all checksums right")
    for subject, found in card.get("sessions", {}).items():
        print(f"subject {subject}: training trials of session {', '.join(map(str, found)) or 'none'} only")


def numbers(option: str, text: str | None) -> list[int] | None:
    """``1,3-5`` -> [1, 3, 4, 5]. Raises UserError, naming the option, for anything else."""
    from mindtuner.errors import UserError

    if text is None:
        return None
    found: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        ends = (first, last) if dash else (first, first)
        if not all(end.isdecimal() and len(end) < 4 for end in ends) or not 1 <= int(ends[0]) <= int(ends[1]):
            raise UserError(f"{option}: is {text!r}; expected numbers from 1 on, such as 1,2 or 1-4")
        found.update(range(int(ends[0]), int(ends[1]) + 1))
    return sorted(found)


def agreed(question: str) -> bool:
    """Whether the user answers y."""
    try:
        return input(question).strip().lower() in ("y", "yes")
    except EOFError:
        return False


def print_table(plan) -> str:
    """Print one line a part, and return how much is still to come, in words."""
    from tabulate import tabulate

    from mindtuner.download import in_words

    rows = [("", "files", "size", "to come")]
    for label, files in [*plan.parts.items(), ("total", plan.files)]:
        size = sum(file.size for file in files)
        rows.append((label, str(len(files)), in_words(size), in_words(size - plan.bytes_here(files))))
    lines = tabulate(rows, tablefmt="plain", colalign=("left", "right", "right", "right"), disable_numparse=True).splitlines()
    print("\n".join([*lines[:-1], "-" * len(lines[-1]), lines[-1]]))
    return rows[-1][3]
