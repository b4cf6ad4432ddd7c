"""Live decoding: how long a trial waits, and how near its z-scores are to those of the whole session.

    python benchmarks/live.py wait FINGERPRINT DATA OUT [--trials 30] [--every 4]
    python benchmarks/live.py scaling OUT [--seeds 0 1 2]

``wait`` copies test trials into a folder that ``mindtuner live`` watches, one every few seconds, while earlier ones are
painted; the table has the seconds of each stage, and until the picture is there. ``scaling`` takes an hour of subject 1 in
world 0 of the demo (OUT as in controls.py), as measured, and two earlier hours. The simulator's sessions have the same mean
and sd; people's do not, so each voxel's mean is moved by a random part of its sd (``DRIFTS``). The table has the mean squared
difference of a trial's z-scores to those by the whole hour's mean and sd, in parts of the hour, by how many trials earlier
sessions count for (``live.running.USUAL_TRIALS``).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from pages import markdown
from safetensors import safe_open

WEIGHTS = (1.0, 5.0, 20.0, 80.0, 320.0)
PARTS = ((0, 5), (5, 20), (20, 80), (80, 450))  # trials of the hour
EARLIER = 900  # trials
DRIFTS = (0.0, 0.3, 1.0)  # sd over voxels, in parts of a voxel's own sd


def wait(options: argparse.Namespace) -> str:
    from mindtuner.formats import load
    from mindtuner.pipeline.subject import read_tuned
    from mindtuner.pipeline.tuned_files import decoding_file

    dataset = load(options.data)
    subject = dataset.subject(read_tuned(decoding_file(options.fingerprint)).number)
    betas = subject.betas(subject.test.row[: options.trials])
    watched, out = options.out / "watched", options.out / "session"
    watched.mkdir(parents=True)
    command = ["live", options.fingerprint, options.data, watched, out, "--port", "0", "--stop-after", str(len(betas))]
    with subprocess.Popen([sys.executable, "-m", "mindtuner", *map(str, command)], stdout=subprocess.PIPE, text=True) as run:
        for line in run.stdout:
            if line.startswith("http://"):
                break
        shown = []
        for k, row in enumerate(betas):
            np.save(watched / ".part.npy", row)
            (watched / ".part.npy").rename(watched / f"trial-{k + 1}.npy")
            shown.append(time.time())
            time.sleep(options.every)
        run.communicate()
    with safe_open(out / "live.safetensors", "numpy") as file:
        trials = json.loads(file.metadata()["trials"])
    stages = {name: [entry["seconds"][name] for entry in trials] for name in trials[0]["seconds"]}
    stages["in all"] = [sum(entry["seconds"].values()) for entry in trials]
    painted = sorted((out / "pictures").glob("*.png"))
    stages["picture"] = [path.stat().st_mtime - start for path, start in zip(painted, shown, strict=True)]
    rows = [[name, f"{np.median(some):.3f}", f"{max(some):.3f}"] for name, some in stages.items()]
    return markdown(["stage", "median, s", "longest, s"], rows)


def scaling(options: argparse.Namespace) -> str:
    from planted import HOUR, brain_of
    from world import config_of, open_world

    from mindtuner.data.zscore import mean_and_sd
    from mindtuner.live import RunningZScore
    from mindtuner.simulation.brains import measure

    world = open_world(options.out, config_of(0))
    brain, training = brain_of(world, 0.5), world.dataset.stimuli.training_images
    rows = []
    for drift in DRIFTS:
        found: dict[float, list] = {weight: [] for weight in WEIGHTS}
        for seed in options.seeds:
            rng = np.random.default_rng(seed)
            images = rng.choice(training, EARLIER + HOUR, replace=False)
            betas = measure(brain, images, 100 * seed + np.arange(len(images)) // HOUR, 1.0).astype(np.float64)
            usual, hour = mean_and_sd(betas[:EARLIER]), betas[EARLIER:]
            hour = hour + drift * usual[1] * rng.normal(size=hour.shape[1])
            mean, sd = mean_and_sd(hour)
            for weight in WEIGHTS:
                scaled = RunningZScore(usual, weight)
                found[weight].append([np.square(scaled(row) - (row - mean) / sd).mean() for row in hour])
        for weight, errors in found.items():
            each = np.array(errors)
            parts = (f"{each[:, first:last].mean():.3f}" for first, last in PARTS)
            rows.append([f"{drift:g}", f"{weight:g} trials", *parts])
    header = ["drift, sd", "earlier sessions count for", *(f"trials {first + 1} to {last}" for first, last in PARTS)]
    return markdown(header, rows, left=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(dest="part", required=True)
    one = parts.add_parser("wait")
    one.add_argument("fingerprint", type=Path)
    one.add_argument("data", type=Path)
    one.add_argument("out", type=Path, help="an empty folder")
    one.add_argument("--trials", type=int, default=30)
    one.add_argument("--every", type=float, default=4.0, help="seconds between two trials, as NSD's")
    other = parts.add_parser("scaling")
    other.add_argument("out", type=Path)
    other.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    print({"wait": wait, "scaling": scaling}[options.part](options))


if __name__ == "__main__":
    main()
