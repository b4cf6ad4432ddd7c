"""Which features should the encoding model see? Brain correlation of the seen pictures, by region, and what it costs.

    python benchmarks/encoding_features.py DATASET [--subjects 1 2 3] [--seeds 3]

DATASET is a folder that mindtuner reads, such as one of ``mindtuner simulate``. For each subject, an encoding model is fitted
on all training trials and predicts the voxels of all test images from the pictures that were seen. Prints a table in
Markdown: mean over subjects and seeds (of the folds) of the correlation per image across a region's voxels, and its sd over
subjects; chance of the last; the ceilings by the repeats; seconds of processor time of a fit. Before it, for each subject,
processor time of the other steps and, of simulated subjects, the estimated noise ceilings less the planted ones.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from mindtuner.data import Subject
from mindtuner.evaluation.brain_correlation import BrainTruth, brain_block
from mindtuner.evaluation.encoding import EncodingModel, Responses, responses
from mindtuner.evaluation.scores.brain import brain_chance, brain_scores
from mindtuner.evaluation.scores.features import EncodingFeatures
from mindtuner.formats import load

PICTURES = 64
EARLY, LATE = EncodingFeatures.groups
KINDS = {
    "pooled": (slice(EARLY, None), None),
    "early, with places": (slice(0, EARLY), None),
    "both, as one": (slice(None), None),
    "both, as two groups": (slice(None), EncodingFeatures.groups),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--subjects", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--seeds", type=int, default=3, help="of the folds")
    options = parser.parse_args()
    dataset = load(options.dataset, subjects=options.subjects)
    embed = EncodingFeatures()
    rows: dict[str, list[dict[str, float]]] = {kind: [] for kind in (*KINDS, "chance", "ceiling")}
    seconds: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for subject in map(dataset.subject, options.subjects):
        start = time.process_time()
        train = responses(subject, subject.train)
        reading = time.process_time() - start
        test = responses(subject, subject.test)
        start = time.process_time()
        seen, new = (
            np.concatenate(
                [
                    embed(dataset.stimuli.images(ids).astype(np.float32))
                    for ids in np.array_split(images, -(-len(images) // 64))
                ]
            )
            for images in (train.images, test.images)
        )
        looking = (time.process_time() - start) / (len(seen) + len(new))
        for kind, (columns, groups) in KINDS.items():
            found = []
            for seed in range(options.seeds):
                start = time.process_time()
                model = EncodingModel.fit(seen[:, columns], train.betas, train.images, seed, groups)
                seconds[kind].append(time.process_time() - start)
                predicted = model.predict(new[:, columns])
                found.append(
                    {name: own["pattern"].mean() for name, own in brain_scores(predicted, test.betas, subject.rois).items()}
                )
            rows[kind].append({name: float(np.mean([one[name] for one in found])) for name in found[0]})
        start = time.process_time()
        some = BrainTruth(model, test.betas[:PICTURES], test.repeats[:PICTURES], subject.rois, train.noise, len(train.images))
        brain_block(new[:PICTURES], some, 0)
        scoring = time.process_time() - start
        rows["chance"].append(brain_chance(predicted, test.betas, subject.rois, 0))
        rows["ceiling"].append(
            {
                name: train.noise.pattern_ceiling(test.repeats, subject.rois[name]) if train.noise else np.nan
                for name in found[0]
            }
        )
        print(
            f"subject {subject.number}: {subject.n_voxels} voxels, {len(train.images)} training images, "
            f"{len(test.images)} test images; {1000 * looking:.1f} ms to embed an image, {reading:.1f} s to read training "
            f"betas, {scoring:.2f} s to score {len(some.measured)} pictures"
            f"{planted(options.dataset, subject, train)}",
            flush=True,
        )
    names = list(rows["ceiling"][0])
    print("\n| features | " + " | ".join(names) + " | fit, s |\n|---|" + "---:|" * (len(names) + 1))
    for kind, subjects in rows.items():
        cells = [
            f"{np.mean(values):.3f} ± {np.std(values, ddof=1) if len(values) > 1 else np.nan:.3f}"
            for values in ([one[name] for one in subjects] for name in names)
        ]
        cost = f"{np.mean(seconds[kind]):.1f}" if kind in seconds else ""
        print(f"| {kind} | " + " | ".join(cells) + f" | {cost} |")


def planted(root: Path, subject: Subject, train: Responses) -> str:
    path = root / "truth" / f"subj{subject.number:02}.safetensors"
    if train.noise is None or not path.exists():
        return ""
    error = train.noise.ceiling(3) - load_file(path)["noise_ceiling"]
    return f"; noise ceilings {error.mean():+.3f} ± {error.std():.3f} from those planted"


if __name__ == "__main__":
    main()
