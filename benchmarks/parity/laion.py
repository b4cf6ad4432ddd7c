"""Do we read LAION-fMRI as its own package does?

    python benchmarks/parity/laion.py                 compare with the stored answers
    python benchmarks/parity/laion.py --peer CLONE    ask the package and write its answers anew; compare all its splits

CLONE is a checkout of ViCCo-Group/LAION-fMRI. It is asked about a small folder in its layout that the tests write by hand:
the betas, regions and noise ceilings within the mask, the trials' labels, and which trials train and test by splits of the
same form as its own. Its own 72 split files are read by both. None of its files is kept.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[2]
ANSWERS = ROOT / "tests" / "fixtures" / "laion" / "answers.json"
sys.path.append(str(ROOT / "tests" / "helpers"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", type=Path, metavar="CLONE")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = write_small(Path(folder) / "laion")
        if options.peer:
            from mindtuner.files import write_json

            write_json(ANSWERS, {"commit": commit_of(options.peer), "answers": theirs(root, options.peer)})
            print(f"splits of the package: {equal_splits(options.peer)} of 72 equal")
        stored, found = read_answers(), ours(root, Path(folder) / "out")
        same = [key for key in stored["answers"] if found.get(key) == stored["answers"][key]]
        print(f"ViCCo-Group/LAION-fMRI {stored['commit'][:7]}: {len(same)} of {len(stored['answers'])} answers equal")


def write_small(root: Path) -> Path:
    """The folder that both are asked about."""
    from laion_files import make_laion, write_splits

    make_laion(root)
    write_splits(root / "splits")
    return root


def read_answers() -> dict:
    """What the package said, and its commit."""
    return json.loads(ANSWERS.read_text(encoding="utf-8"))


def digest(array: np.ndarray) -> str:
    """Of an array's shape and its float32 numbers."""
    return f"{array.shape} " + hashlib.sha256(np.ascontiguousarray(array, "<f4").tobytes()).hexdigest()


def sides(train, test) -> str:
    """A letter a trial: r it trains, e it tests, - neither."""
    return "".join("r" if a else "e" if b else "-" for a, b in zip(train, test, strict=True))


def commit_of(clone: Path) -> str:
    """The commit of a checkout."""
    return subprocess.run(
        ["git", "-C", clone, "rev-parse", "HEAD"], capture_output=True, text=True, check=True
    ).stdout.strip()


# theirs


def theirs(root: Path, clone: Path) -> dict[str, str]:
    """The package's answers."""
    from laion_files import SESSIONS, SPLITS

    sys.path.insert(0, str(clone))
    os.environ["XDG_CONFIG_HOME"] = str(root.parent / "config")
    from laion_fmri import splits
    from laion_fmri.config import dataset_initialize
    from laion_fmri.subject import load_subject

    dataset_initialize(str(root))
    splits._data_dir = lambda: root / "splits"
    found = {}
    for number, sessions in SESSIONS.items():
        subject, labels = load_subject(f"sub-{number:02d}"), []
        for session in sessions:
            key = f"sub-{number:02d} ses-{session:02d}"
            table = subject.get_trial_info(f"ses-{session:02d}").sort_values("beta_index")
            found[f"{key} betas"] = digest(subject.get_betas(f"ses-{session:02d}"))
            found[f"{key} labels"] = " ".join(table["label"])
            labels += list(table["label"])
        for name in ("V1", "FFA-1"):
            found[f"sub-{number:02d} {name}"] = digest(subject.get_roi_mask(name))
        found[f"sub-{number:02d} noise ceiling"] = digest(subject.get_noise_ceiling(desc="NoiseceilingAllrep"))
        for pool, name in SPLITS:
            if pool in ("shared", f"sub-{number:02d}"):
                masks = splits.get_split_masks(np.array(labels), name, pool=pool)
                found[f"sub-{number:02d} {pool}/{name}"] = sides(*masks)
    return found


def equal_splits(clone: Path) -> int:
    """How many of the package's own splits both read alike."""
    import importlib

    from laion_fmri import splits

    from mindtuner.formats.laion.splits import NAMES, find_split, read_split

    splits = importlib.reload(splits)
    assert sorted(NAMES) == sorted(splits.list_splits())
    equal = 0
    for pool in splits.list_pools():
        for name in splits.list_splits():
            place = clone if pool != "shared" else clone / "laion_fmri/splits/data/shared"
            split = read_split(find_split(place, name, pool))
            train, test = splits.get_train_test_ids(name, pool)
            equal += split.train == set(train) and split.test == set(test) and len(split.test) == len(test)
    return equal


# ours


def ours(root: Path, out: Path) -> dict[str, str]:
    """Our answers to the same questions, by ``convert_laion`` where it decides and by its readers elsewhere."""
    from laion_files import SESSIONS, SPLITS

    from mindtuner.formats.laion import read as laion
    from mindtuner.formats.laion.convert import convert_laion
    from mindtuner.formats.laion.splits import find_split, read_split

    convert_laion(root, out, "tau")
    found = {}
    for number, sessions in SESSIONS.items():
        person = f"sub-{number:02d}"
        betas = np.load(out / "tau" / person / "betas.npy")
        mask, image = laion.read_mask(root, person)
        labels = []
        for place, session in enumerate(laion.find_sessions(root, person)):
            rows = betas[place * len(betas) // len(sessions) :][: len(betas) // len(sessions)]
            found[f"{person} {session.name} betas"] = digest(rows)
            own = [label for _, label in laion.read_trials(session, len(rows))]
            found[f"{person} {session.name} labels"] = " ".join(own)
            labels += own
        for name, region in laion.read_rois(root, person, image).items():
            found[f"{person} {name}"] = digest(region[mask])
        ceiling = laion.read_ceiling(laion.find_ceilings(root, person)[laion.ALL_REPEATS], mask, image)
        found[f"{person} noise ceiling"] = digest(ceiling)
        for pool, name in SPLITS:
            if pool in ("shared", person):
                split = read_split(find_split(root / "splits" / pool, name, person))
                found[f"{person} {pool}/{name}"] = sides(
                    *([split[label] == side for label in labels] for side in ("train", "test"))
                )
    return found


if __name__ == "__main__":
    main()
