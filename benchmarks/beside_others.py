"""How long the quick demo takes beside other jobs, with threads that follow the load, against one thread alone.

    python benchmarks/beside_others.py OUT [--busy 0 2 6] [--rounds 2] [--table FILE]

A busy process counts in Python for ever. Beside enough of them one thread has its fair share of the machine, and more threads
only wait for each other. So the fair share is the time of the same demo with ``OMP_NUM_THREADS=1`` beside as many busy
processes, and when quiet the time with torch's own number of threads. ``spinning`` is what a program does that looks at
nothing: torch's own number of threads, which spin while they wait; it is left out beside more processes than cores, where
it takes most of an hour. Rounds take turns, so that a change of the machine meets all alike; the table has medians.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from pages import markdown, write_between

CORES = psutil.cpu_count()
WAYS = {
    "following": {},
    "one thread": {"OMP_NUM_THREADS": "1"},
    "spinning": {"OMP_NUM_THREADS": str(CORES)},
}


@contextmanager
def busy(count: int) -> Iterator[None]:
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def seconds(out: Path, way: str) -> float:
    shutil.rmtree(out, ignore_errors=True)
    start = time.monotonic()
    demo = [sys.executable, "-m", "mindtuner", "demo", "--quick", "--out", str(out)]
    subprocess.run(demo, check=True, env=os.environ | WAYS[way], stdout=subprocess.DEVNULL)
    return time.monotonic() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="an empty folder, deleted and made again for each demo")
    parser.add_argument("--busy", type=int, nargs="+", default=[0, 2, 6], help="other processes")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--table", type=Path, metavar="FILE", help="a page with marks for it")
    options = parser.parse_args()
    rows = []
    for count in options.busy:
        ways = [way for way in WAYS if way != "spinning" or count <= CORES]
        with busy(count):
            taken = [{way: seconds(options.out, way) for way in ways} for _ in range(options.rounds)]
        fair = "one thread" if count else "spinning"
        each = {way: f"{statistics.median(one[way] for one in taken):.0f}" for way in ways}
        times = [one["following"] / one[fair] for one in taken]
        ratio = f"{statistics.median(times):.2f} ({min(times):.2f} to {max(times):.2f})"
        rows.append([str(count), *(each.get(way, "") for way in WAYS), ratio])
    text = markdown(["busy processes", *(f"{way}, s" for way in WAYS), "following / fair share"], rows, left=0)
    print(text)
    if options.table:
        write_between(options.table, "beside_others", text)


if __name__ == "__main__":
    main()
