"""A run folder for the report's tests, made by hand: small, and everything that it says is known."""

import colorsys
import json

import numpy as np
from safetensors.numpy import save_file

PICTURES, TESTS = 6, 23  # more thumbnails than one row of the sheet holds
SEEN = [3, 0, 21, 7, 22, 11]  # where the pictures stand in the test list
# Rank of the seen image in each card's strip, by construction; 0 where it is not among the five.
RANKS = {"mindtuner": [1, 2, 0, 1, 5, 1], "ridge_only": [0, 1, 1, 0, 3, 0]}
STAGES = ("lowlevel", "reconstructed", "corrected")
TWO_WAY = [0.5, 0.1, 0.9, 0.3, 0.7, 0.2]
EVIL = '<script>window.broken = true</script> & a "quoted" </script></noscript> dog'


def scene(number, side=64, blur=0.0):
    """A coloured disc on a coloured ground: (3, side, side) uint8, different for every number."""
    y, x = np.mgrid[:side, :side] / side
    hue = number * 0.381966 % 1
    disc = (x - 0.3 - 0.4 * (number * 0.23 % 1)) ** 2 + (y - 0.5) ** 2 < 0.06
    ground, ink = (np.array(colorsys.hsv_to_rgb(h % 1, 0.55, v)) for h, v in ((hue, 0.9), (hue + 0.5, 0.6)))
    image = np.where(disc[None], ink[:, None, None], (ground[:, None, None] * (0.7 + 0.3 * y)))
    image = (1 - blur) * image + blur * image.mean((1, 2), keepdims=True)
    return (255 * image).round().astype(np.uint8)


def name_of(number):
    """The file name of a test image."""
    return f"discs & more/{number:02d}.png"


def strip(truth, rank):
    """Five positions with ``truth`` at ``rank``."""
    others = [position for position in range(TESTS) if position != truth][:5]
    return others if rank == 0 else [*others[: rank - 1], truth, *others[rank - 1 : 4]]


def make_run(folder, side=64, subject=1, sessions=1, seed=0, level=0.62):
    """``level`` is mindtuner's image retrieval; everything else follows from it. Pictures depend on ``level`` too, the seen
    ones do not."""
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {"seen": np.stack([scene(n, side) for n in SEEN]), "thumbnails": np.stack([scene(n, 16) for n in range(TESTS)])}
    for shift, method in enumerate(RANKS, start=1):
        for stage, blur in zip(STAGES, (0.8, 0.4, 0.1), strict=True):
            arrays[f"{method}/{stage}"] = np.stack([scene(n + 40 * shift + level, side, blur) for n in SEEN])
    arrays["nearest_training_image/corrected"] = np.stack([scene(n + 500 + level, side) for n in SEEN])
    save_file(arrays, folder / "pictures.safetensors")
    captions = [f"a disc number {n} on a bright ground" for n in range(TESTS)]
    captions[SEEN[0]] = EVIL
    words = {
        "picture_index": SEEN,
        "all_captions": captions,
        "seen_captions": [captions[n] for n in SEEN],
        "names": [name_of(n) for n in range(TESTS)],
        "methods": {
            m: {
                "retrieved_caption": [f"{m} reads {n}" for n in SEEN],
                "top5": [strip(t, r) for t, r in zip(SEEN, ranks, strict=True)],
            }
            for m, ranks in RANKS.items()
        },
    }
    (folder / "words.json").write_text(json.dumps(words))
    write_per_image(folder)

    def method(level):
        retrieval = {"image": level, "brain": 0.9 * level, "text": level / 3}
        scores = {"pixcorr": level / 2, "ssim": level / 3, "two_way": 0.5 + level / 2}
        return {
            "retrieval": retrieval,
            "reconstruction": scores,
            "picture": "corrected",
            "stages": {"corrected": scores},
            "single_trial_retrieval": {direction: value / 2 for direction, value in retrieval.items()},
            "ci95": {
                part: {key: [value - 0.05, value + 0.05] for key, value in values.items()}
                for part, values in (("retrieval", retrieval), ("reconstruction", scores))
            },
        }

    def difference(mean, p):
        return {"mean": mean, "ci": [mean - 0.04, mean + 0.04], "p": p}

    methods = {
        "mindtuner": method(level),
        "ridge_only": method(level - 0.07),
        "shuffled_brain": method(0.06),
        "nearest_training_image": method(0.3),
    }
    results = {
        "setting": {
            "simulated_brains": True,
            "simulated_scenes": True,
            "stimuli_note": "",
            "subject": subject,
            "sessions": sessions,
            "n_training_trials": 675 * sessions,
            "n_test_images": TESTS,
            "n_pictures": PICTURES,
            "prior_steps": 20,
            "generator_steps": 12,
            "refine_steps": 6,
            "seed": seed,
            "dtype": "float32",
            "versions": {"torch": "2.14.0"},
            "command": f"mindtuner demo <out> --seed {seed}",
        },
        "methods": methods,
        "chance": {
            "retrieval": {direction: 1 / TESTS for direction in ("image", "brain", "text")},
            "two_way": 0.5,
            "reconstruction": {
                score: {name: 0.02 + 0.01 * n for n, name in enumerate(methods)} for score in ("pixcorr", "ssim")
            },
        },
        "paired": {
            "mindtuner_minus_ridge_only": {
                "retrieval": {
                    "image": difference(0.07, 0.02),
                    "brain": difference(-0.05, 0.0004),
                    "text": difference(0.02, 0.41),
                },
                "reconstruction": {score: difference(0.001, 0.9) for score in ("pixcorr", "ssim", "two_way")},
            }
        },
        "timing_s": {"pretrain": 83.4, "total": 401.0},
        "peak_memory_mb": 3120.5,
    }
    (folder / "results.json").write_text(json.dumps(results))
    (folder / "config.yaml").write_text(f"simulate:\n  subjects: 8\n  seed: {seed}\nseed: {seed}\n")
    log = [
        {
            "stage": stage,
            "epoch": e,
            "step": 9 * e,
            "seconds": 1.0,
            "losses": {"prior": 20 * np.exp(-e / 4), "clip": 5 - e / 10},
        }
        for stage in ("pretrain", "mindtuner", "ridge_only")
        for e in range(12)
    ]
    (folder / "log.jsonl").write_text("\n".join(json.dumps(entry) for entry in log))
    return folder


def unpaint(run):
    """The same run with ``decode.pictures`` of 0: retrieval, and captions of all test images."""
    results = json.loads((run / "results.json").read_text())
    for own in results["methods"].values():
        for name in ("reconstruction", "picture", "stages"):
            del own[name]
        del own["ci95"]["reconstruction"]
        own["captions"], own["ci95"]["captions"] = {"meteor": 0.25}, {"meteor": [0.2, 0.3]}
    results["chance"] = {"retrieval": results["chance"]["retrieval"], "captions": {"meteor": {"mindtuner": 0.1}}}
    for parts in results["paired"].values():
        del parts["reconstruction"]
    results["setting"] |= {"n_pictures": 0, "scores": {"not_scored": ["clip", "swav"]}}
    results["undefined"] = {}
    (run / "results.json").write_text(json.dumps(results))
    thumbnails = np.stack([scene(n, 16) for n in range(TESTS)])
    save_file({"seen": np.zeros((0, 3, 64, 64), np.uint8), "thumbnails": thumbnails}, run / "pictures.safetensors")
    words = json.loads((run / "words.json").read_text()) | {"picture_index": [], "seen_captions": []}
    words["methods"] = {m: {"top5": [], "retrieved_caption": [f"{m} reads {n}" for n in range(TESTS)]} for m in RANKS}
    (run / "words.json").write_text(json.dumps(words))
    save_file(
        {
            "images": np.arange(TESTS),
            "shown": np.arange(0),
            "texts": np.arange(1, TESTS),
            "mindtuner/retrieval/image": np.linspace(0, 1, TESTS, dtype=np.float32),
            "mindtuner/retrieval/text": np.linspace(0, 1, TESTS - 1, dtype=np.float32),
            "mindtuner/captions/meteor": np.linspace(0, 0.5, TESTS, dtype=np.float32),
        },
        run / "per_image.safetensors",
    )
    return run


def add_pools(run, pool=5):
    """Retrieval among all TESTS candidates and among ``pool``, for two methods, as ``evaluate --pool`` leaves it."""
    sizes = {TESTS: (0.5, 0.75, 3.0), pool: (0.625, 1.0, 1.5)}
    for method, worse in (("mindtuner", 0.0), ("shuffled_brain", 0.25)):
        entries = [
            {
                "pool": size,
                **{
                    name: value + (worse if name == "median_rank" else -worse)
                    for name, value in zip(("top1", "top5", "median_rank"), values, strict=True)
                },
            }
            for size, values in sizes.items()
        ]
        for entry in entries:
            entry["ci95"] = {name: [entry[name] - 0.125, entry[name] + 0.125] for name in ("top1", "top5", "median_rank")}
        entries[1]["subsets"] = {
            "count": 30,
            **{name: {"mean": entries[1][name], "sd": 0.0625} for name in ("top1", "top5", "median_rank")},
        }
        edit(
            run / "results.json",
            "methods",
            method,
            "retrieval_pools",
            value=dict.fromkeys(("image", "brain", "text"), entries),
        )
    chance = [{"pool": size, "top1": 1 / size, "top5": 5 / size, "median_rank": (size + 1) / 2} for size in sizes]
    edit(run / "results.json", "chance", "retrieval_pools", value=dict.fromkeys(("image", "brain", "text"), chance))
    return run


def add_held_out(run):
    """A category that three test images show, one of them painted: too few for the scores of pictures."""

    def entry(mean, n):
        return {"mean": mean, "ci": [mean - 0.125, mean + 0.125], "n": n}

    others = {"retrieval": {"image": entry(0.625, TESTS - 3)}, "reconstruction": {"pixcorr": entry(0.5, PICTURES - 1)}}
    edit(
        run / "results.json",
        "held_out",
        value={
            "category": "red dog",
            "left_out": 41,
            "images": [1, 4, 21],
            "of_category": {"mindtuner": {"retrieval": {"image": entry(0.25, 3)}}},
            "others": {"shuffled_brain": {"retrieval": {"image": entry(0.125, TESTS - 3)}}, "mindtuner": others},
        },
    )
    return run


def several(root):
    """Four runs: subject 1 with one session from two seeds, then with two sessions; subject 2 with one."""
    return [
        make_run(root / "a", level=0.6),
        make_run(root / "b", level=0.4, seed=1),
        make_run(root / "c", level=0.8, sessions=2),
        make_run(root / "d", level=0.3, subject=2),
    ]


def write_per_image(folder, **more):
    """per_image.safetensors with these scores of single images beside the usual ones."""
    save_file(
        {
            "images": np.arange(TESTS),
            "shown": np.array(SEEN),
            "texts": np.arange(1, TESTS),
            "mindtuner/reconstruction/two_way": np.array(TWO_WAY, np.float32),
        }
        | {name.replace("__", "/"): np.array(values, np.float32) for name, values in more.items()},
        folder / "per_image.safetensors",
    )


def edit(path, *keys, value):
    """Set one field of a JSON file."""
    tree = target = json.loads(path.read_text())
    for key in keys[:-1]:
        target = target[key]
    target[keys[-1]] = value
    path.write_text(json.dumps(tree))
