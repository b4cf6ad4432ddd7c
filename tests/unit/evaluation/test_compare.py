"""Comparing runs: the numbers against scipy and by hand, the pairing, and what is refused."""

import copy
import json

import numpy as np
import pytest
from scipy import stats

from mindtuner.cli import main
from mindtuner.errors import UserError
from mindtuner.evaluation.compare import compare, comparison_text
from mindtuner.evaluation.results import Run, rounded, save_run
from mindtuner.files import read_json

N, P = 12, 6
DIRECTIONS, PICTURES = ("image", "brain", "text"), ("pixcorr", "ssim", "two_way")


def run_of(seed=0, subject=1, methods=("mindtuner", "ridge_only"), shift=0.0, scores=PICTURES, noise=1.0):
    """A whole run in memory. Values depend on the method, the seed and the subject; images are as hard in all of them."""
    hard = np.random.default_rng(99).normal(size=N)
    per_image = {"images": np.arange(N) * 3, "shown": np.arange(0, N, 2), "texts": np.arange(1, N)}
    counts = {
        ("retrieval", "image"): N,
        ("retrieval", "brain"): N,
        ("retrieval", "text"): N - 1,
        **{("reconstruction", score): P for score in scores},
    }
    for at, method in enumerate(methods):
        rng = np.random.default_rng([seed, subject, at])
        for (part, score), count in counts.items():
            value = 0.5 + 0.1 * hard[:count] + 0.05 * noise * rng.normal(size=count) + shift
            per_image[f"{method}/{part}/{score}"] = value.clip(0, 1).astype(np.float32)
    summary = {
        "retrieval": dict.fromkeys(DIRECTIONS, 0.5),
        "reconstruction": dict.fromkeys(PICTURES, 0.5),
        "picture": "corrected",
        "stages": {"corrected": dict.fromkeys(PICTURES, 0.5)},
        "ci95": {"retrieval": dict.fromkeys(DIRECTIONS, [0.4, 0.6]), "reconstruction": dict.fromkeys(PICTURES, [0.4, 0.6])},
    }
    chance = {
        "retrieval": dict.fromkeys(DIRECTIONS, 1 / N),
        "two_way": 0.5,
        "reconstruction": {score: dict.fromkeys(methods, 0.1) for score in ("pixcorr", "ssim")},
    }
    setting = {"stimuli_hash": "5eed" * 16, "subject": subject, "seed": seed, "sessions": 1, "simulated_brains": True}
    results = {
        "setting": setting,
        "methods": {method: copy.deepcopy(summary) for method in methods},
        "chance": chance,
        "paired": {},
        "timing_s": {},
        "peak_memory_mb": 1.0,
    }
    pictures = {"seen": np.zeros((P, 3, 8, 8), np.uint8), "thumbnails": np.zeros((N, 3, 4, 4), np.uint8)}
    words = {"picture_index": list(range(0, N, 2)), "seen_captions": ["a"] * P, "all_captions": ["a"] * N, "methods": {}}
    return Run(results, pictures, words, per_image, [])


def on_disk(folder, run):
    save_run(folder, run.results, run.pictures, run.words, run.per_image)
    (folder / "log.jsonl").write_text("")
    return folder


def row_of(found, score):
    return next(row for row in found["scores"] if row["score"] == score)


# ---- the numbers


def test_one_pair_is_the_paired_difference_of_each_score():
    a, b = run_of(seed=0), run_of(seed=1, shift=-0.05)
    found = compare({"a": a}, {"b": b})
    assert [(row["part"], row["score"]) for row in found["scores"]] == [
        *(("retrieval", d) for d in DIRECTIONS),
        *(("reconstruction", s) for s in PICTURES),
    ]
    for row in found["scores"]:
        key = f"mindtuner/{row['part']}/{row['score']}"
        x, y = (run.per_image[key].astype(np.float64) for run in (a, b))
        exact = stats.permutation_test(
            (x, y), lambda x, y, axis: (x - y).mean(axis), permutation_type="samples", vectorized=True, n_resamples=np.inf
        )
        assert row["difference"] == pytest.approx((x - y).mean())
        assert row["p"] == pytest.approx(exact.pvalue, abs=1e-12 if len(x) <= 12 else 0.02)  # 2 ** 12 flips are gone through
        assert row["ci"][0] < row["difference"] < row["ci"][1] and row["n"] == len(x)
        assert (row["a"]["mean"], row["b"]["mean"]) == pytest.approx((x.mean(), y.mean()))
        assert row["a"]["ci"][0] <= row["a"]["mean"] <= row["a"]["ci"][1]
        assert row["sd_seeds"] is row["sd_subjects"] is None


def test_it_is_antisymmetric():
    a, b = run_of(seed=0), run_of(seed=1)
    for row, back in zip(compare({"a": a}, {"b": b})["scores"], compare({"b": b}, {"a": a})["scores"], strict=True):
        assert (back["difference"], back["p"], back["p_holm"]) == (-row["difference"], row["p"], row["p_holm"])
        np.testing.assert_allclose(back["ci"], [-row["ci"][1], -row["ci"][0]])


def test_words_need_both_the_interval_and_the_adjusted_p():
    same = compare({"a": run_of(seed=0)}, {"b": run_of(seed=1)})
    assert {row["in_words"] for row in same["scores"]} == {"no clear difference"}
    far = compare({"a": run_of(seed=0, shift=-0.3)}, {"b": run_of(seed=1)})
    assert row_of(far, "image")["in_words"] == "B is higher" and row_of(far, "image")["p_holm"] <= 0.05
    six = row_of(far, "ssim")  # all six pictures are lower, but of 64 flips two look like that, and there are six scores
    assert six["ci"][1] < 0 and six["p"] == 2 / 2**6 and six["p_holm"] > 0.05
    assert six["in_words"] == "no clear difference"


def test_methods_of_one_run():
    run = run_of()
    found = compare({"a": run}, {"a": run}, "mindtuner", "ridge_only")
    expected = run.per_image["mindtuner/retrieval/brain"] - run.per_image["ridge_only/retrieval/brain"]
    assert row_of(found, "brain")["difference"] == pytest.approx(expected.mean(), abs=1e-7)


def test_seeds_are_paired_by_their_number_and_their_spread_is_told():
    a = {f"a{s}": run_of(seed=s) for s in (3, 1, 2)}
    b = {f"b{s}": run_of(seed=s, methods=("ridge_only", "mindtuner")) for s in (1, 2, 3)}
    row = row_of(compare(a, b), "image")
    each = [
        (a[f"a{s}"].per_image["mindtuner/retrieval/image"] - b[f"b{s}"].per_image["mindtuner/retrieval/image"]).mean()
        for s in (1, 2, 3)
    ]
    assert row["by_run"] == [pytest.approx(each, abs=1e-6)]
    assert row["difference"] == pytest.approx(np.mean(each), abs=1e-6)
    assert row["sd_seeds"] == pytest.approx(np.std(each, ddof=1), abs=1e-6) and row["sd_subjects"] is None
    assert not any("paired with" in note for note in compare(a, b)["notes"])
    b = {f"b{s}": run_of(seed=s, methods=("ridge_only", "mindtuner")) for s in (7, 8, 9)}
    assert "subject 1: seeds [1, 2, 3] are paired with [7, 8, 9], in this order" in compare(a, b)["notes"]


def test_subjects_weigh_alike_whatever_their_numbers_of_runs():
    runs = {(subject, s): run_of(seed=s, subject=subject) for subject, s in ((1, 0), (1, 1), (1, 2), (2, 0))}
    a = {f"a{key}": run for key, run in runs.items()}
    found = compare(a, a, "mindtuner", "ridge_only")
    row = row_of(found, "pixcorr")
    score = "reconstruction/pixcorr"
    each = {
        key: (run.per_image[f"mindtuner/{score}"] - run.per_image[f"ridge_only/{score}"]).mean() for key, run in runs.items()
    }
    first, second = np.mean([each[1, s] for s in range(3)]), each[2, 0]
    assert row["difference"] == pytest.approx((first + second) / 2, abs=1e-6)
    assert row["sd_subjects"] == pytest.approx(abs(first - second) / np.sqrt(2), abs=1e-6)
    assert row["sd_seeds"] == pytest.approx(np.std([each[1, s] for s in range(3)], ddof=1), abs=1e-6)
    assert (found["subjects"], found["runs_per_side"]) == ([1, 2], 4)


def test_undefined_scores_are_left_out_and_counted():
    a, b = run_of(seed=0), run_of(seed=1)
    a.per_image["mindtuner/reconstruction/ssim"][2] = np.nan
    b.per_image["mindtuner/reconstruction/ssim"][3] = np.nan
    b.per_image["mindtuner/reconstruction/two_way"][1:] = np.nan
    found = compare({"a": a}, {"b": b})
    keep = [0, 1, 4, 5]
    difference = a.per_image["mindtuner/reconstruction/ssim"] - b.per_image["mindtuner/reconstruction/ssim"]
    row = row_of(found, "ssim")
    assert (row["n"], row["undefined"]) == (4, 2) and row["difference"] == pytest.approx(difference[keep].mean(), abs=1e-7)
    assert "two_way" not in [row["score"] for row in found["scores"]]
    assert any("Two-way: defined on fewer than 2" in note for note in found["notes"])
    assert "SSIM is undefined on 2 images" in comparison_text(found)


def test_any_score_of_the_files_is_compared_and_one_that_a_run_lacks_is_named():
    a, b = run_of(scores=(*PICTURES, "alexnet2", "swav")), run_of(seed=1, scores=(*PICTURES, "alexnet2"))
    found = compare({"a": a}, {"b": b})
    assert "alexnet2" in [row["score"] for row in found["scores"]]
    assert any("left out: SwAV (lower is better)" in note for note in found["notes"])


def test_the_images_of_a_category_or_the_others():
    a, b = run_of(seed=0), run_of(seed=1)
    for run in (a, b):  # of pictures too: their captions, and the brain that they predict
        for name in ("captions/rouge_1", "brain/V1"):
            run.per_image[f"mindtuner/{name}"] = np.random.default_rng(len(name)).random(P).astype(np.float32)
    held = [6, 9, 12, 18]  # ids; positions 2, 3, 4, 6, of which 2, 4, 6 are painted, as 1, 2 and 3
    b.results["held_out"] = {"category": "dog", "images": held}
    whole, of, others = (compare({"a": a}, {"b": b}, images=which) for which in ("all", "category", "others"))
    assert [row["score"] for row in whole["scores"]] == [*DIRECTIONS, *PICTURES, "rouge_1", "V1"]
    assert "ROUGE-1 of the caption" in comparison_text(of) and "V1 brain correlation" in comparison_text(of)
    for part, score, positions in (
        ("retrieval", "image", [2, 3, 4, 6]),
        ("retrieval", "text", [1, 2, 3, 5]),
        ("reconstruction", "pixcorr", [1, 2, 3]),
        ("captions", "rouge_1", [1, 2, 3]),
        ("brain", "V1", [1, 2, 3]),
    ):
        key = f"mindtuner/{part}/{score}"
        difference = a.per_image[key].astype(float) - b.per_image[key]
        rest = np.setdiff1d(np.arange(len(difference)), positions)
        assert row_of(of, score)["difference"] == pytest.approx(difference[positions].mean())
        assert row_of(others, score)["difference"] == pytest.approx(difference[rest].mean())
        assert row_of(of, score)["n"] + row_of(others, score)["n"] == row_of(whole, score)["n"]
    assert (of["test_set"]["images"], of["test_set"]["pictures"]) == (4, 3)
    assert "those of the category held out" in comparison_text(of)


# ---- refused


def changed(run, **fields):
    run = copy.deepcopy(run)
    for field, value in fields.items():
        if field in run.per_image:
            run.per_image[field] = value
        else:
            run.results["setting"][field] = value
    return run


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"stimuli_hash": "0ther" * 13}, r"b/results.json: setting.stimuli_hash is 0ther0ther0t…; expected 5eed5eed5eed…"),
        ({"stimuli_hash": None}, "b/results.json: setting.stimuli_hash is missing"),
        ({"images": np.arange(N)}, "b/per_image.safetensors: images holds 12 test images; expected the same 12 as in a"),
        ({"shown": np.arange(P)}, "b/per_image.safetensors: shown holds 6 painted images"),
        ({"texts": np.arange(N)}, "b/per_image.safetensors: texts holds 12 images with a caption; expected the same 11"),
    ],
)
def test_other_test_sets_are_refused(fields, named):
    with pytest.raises(UserError, match=named):
        compare({"a": run_of()}, {"b": changed(run_of(seed=1), **fields)})


def test_what_cannot_be_paired_is_refused():
    a, b = run_of(), run_of(seed=1)
    with pytest.raises(UserError, match="b/per_image.safetensors: method full_finetune is missing; expected one"):
        compare({"a": run_of(methods=("full_finetune",))}, {"b": b}, "full_finetune")
    with pytest.raises(UserError, match="a: mindtuner stands on both sides"):
        compare({"a": a}, {"a": a})
    with pytest.raises(UserError, match="b3/results.json: setting.subject is 2, of which A has 0 and B 1 runs"):
        compare({"a1": a, "a2": b}, {"b1": a, "b2": b, "b3": run_of(subject=2)})
    with pytest.raises(UserError, match="a/results.json: held_out is missing"):
        compare({"a": a}, {"b": b}, images="category")
    a.results["held_out"], b.results["held_out"] = ({"category": c, "images": [0]} for c in ("dog", "cat"))
    with pytest.raises(UserError, match="b/results.json: held_out.category is 'cat'; expected 'dog'"):
        compare({"a": a}, {"b": b}, images="others")


# ---- the verb


def test_the_verb_prints_a_table_and_writes_the_numbers(tmp_path, capsys):
    a, b = on_disk(tmp_path / "a", run_of(seed=0)), on_disk(tmp_path / "b", changed(run_of(seed=1, shift=-0.3), sessions=2))
    out = tmp_path / "deep" / "found.json"
    assert main(["compare", str(a), str(b), "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert main(["compare", str(a), str(b), "--out", str(out)]) == 0  # again, the same
    assert capsys.readouterr().out == printed
    found = read_json(out)
    assert found == json.loads(json.dumps(found)) and [p.name for p in out.parent.iterdir()] == ["found.json"]
    lines = printed.splitlines()
    assert lines[0] == f"A  mindtuner of {a}" and "12 test images, 6 painted; subject 1, 1 run a side" in printed
    image = row_of(found, "image")
    line = next(line for line in lines if line.startswith("Image retrieval"))
    assert line.endswith("A is higher") and f"{image['difference']:+.3f}" in line and f"{image['p_holm']:.4f}" in line
    assert "Holm's method over the 6 scores" in printed and "Note: setting.sessions is 1 in A and 2 in B." in printed
    assert len({line.index("[") for line in lines if line.startswith(("Image r", "Brain r", "PixCorr"))}) == 1  # aligned


def test_the_verb_takes_sides_of_several_runs(tmp_path, capsys):
    sides = [
        [str(on_disk(tmp_path / f"{name}{s}", run_of(seed=s, subject=1 + s, shift=shift))) for s in (0, 1, 2)]
        for name, shift in (("a", 0.0), ("b", -0.2))
    ]
    assert main(["compare", *sides[0], "--to", *sides[1], "--method", "ridge_only"]) == 0
    printed = capsys.readouterr().out
    assert "sd of subjects" in printed and "subjects 1, 2, 3, 3 runs a side" in printed
    assert "images, subjects, and runs within subjects resampled" in printed
    assert main(["compare", sides[0][0], "--method-b", "ridge_only"]) == 0
    assert f"B  ridge_only of {sides[0][0]}" in capsys.readouterr().out


def test_the_verb_needs_no_names_of_methods(tmp_path, capsys):
    """Two runs by the method that decodes, also where that is another; one run by all its methods."""
    both, plain = run_of(), run_of(methods=("ridge_only", "nearest_training_image"), seed=1)
    a, b, out = on_disk(tmp_path / "a", both), on_disk(tmp_path / "b", plain), tmp_path / "found.json"
    assert main(["compare", str(a), str(b), "--out", str(out)]) == 0
    assert read_json(out)["scores"] == rounded(compare({"a": both}, {"b": plain}, "mindtuner", "ridge_only"))["scores"]
    assert capsys.readouterr().out.startswith(f"A  mindtuner of {a}\nB  ridge_only of {b}\n")
    three = run_of(methods=("mindtuner", "ridge_only", "shuffled_brain"))
    c = on_disk(tmp_path / "c", three)
    capsys.readouterr()
    assert main(["compare", str(c), "--out", str(out)]) == 0
    printed, found = capsys.readouterr().out, read_json(out)["comparisons"]
    assert [one["b"]["method"] for one in found] == ["ridge_only", "shuffled_brain"]
    assert [one["scores"] for one in found] == [
        rounded(compare({"c": three}, {"c": three}, "mindtuner", other))["scores"]
        for other in ("ridge_only", "shuffled_brain")
    ]
    assert printed.count(f"A  mindtuner of {c}") == 2
    assert main(["compare", str(c), "--method", "ridge_only", "--method-b", "shuffled_brain"]) == 0
    assert capsys.readouterr().out.startswith(f"A  ridge_only of {c}\nB  shuffled_brain of {c}\n")


def test_the_verb_shows_published_numbers(tmp_path, capsys):
    run = on_disk(tmp_path / "a", run_of())
    assert main(["compare", "--published", str(run), "--out", str(tmp_path / "table.json")]) == 0
    printed = capsys.readouterr().out
    assert printed.count("simulated") == 1 and "MindTuner (AAAI 2025)" in printed
    assert read_json(tmp_path / "table.json")["rows"][-1]["cells"][f"image_retrieval_of_{N}"]["value"] == 0.5


def test_the_verb_refuses_in_one_line(tmp_path, capsys):
    a, b = on_disk(tmp_path / "a", run_of(seed=0)), on_disk(tmp_path / "b", run_of(seed=1))
    stopped = tmp_path / "stopped"
    stopped.mkdir()
    (stopped / "config.yaml").write_text("# mindtuner demo\n")
    for words, named in (
        ([on_disk(tmp_path / "alone", run_of(methods=("ridge_only",)))], "alone: has no method but ridge_only"),
        ([a, b, a], "RUN: 3 given; expected one or two"),
        ([], "RUN: 0 given"),
        (["--to", a], "none stands before --to"),
        ([a, a, "--to", b], "given twice"),
        ([a, stopped], "results.json: not found; expected a run that mindtuner demo or evaluate finished"),
        ([a, b, "--method", "from_scratch"], "method from_scratch is missing"),
        ([a, b, "--out", a / "found.json"], "lies in a run"),
        ([a, "--published", "--to", b], "expected RUNs alone"),
        (["--published", a, "--method", "from_scratch"], "methods.from_scratch is missing"),
    ):
        assert main(["compare", *map(str, words)]) == 2
        error = capsys.readouterr().err
        assert error.startswith("mindtuner: ") and error.count("\n") == 1 and named in error, error


# ---- runs that painted nothing


def unpainted(**about):
    run = run_of(scores=(), **about)
    for own in run.results["methods"].values():
        for name in ("reconstruction", "picture", "stages"):
            del own[name]
        del own["ci95"]["reconstruction"]
    run.results["chance"] = {"retrieval": run.results["chance"]["retrieval"]}
    run.per_image["shown"] = np.arange(0)
    for method in run.results["methods"]:
        run.per_image[f"{method}/captions/meteor"] = np.linspace(0.1, 0.9 - 0.1 * about.get("seed", 0), N).astype(np.float32)
    return run


def test_runs_that_painted_nothing_are_compared_by_retrieval_and_captions():
    a, b = unpainted(), unpainted(seed=1)
    found = compare({"a": a}, {"b": b})
    scores = [(row["part"], row["score"]) for row in found["scores"]]
    assert scores == [*(("retrieval", d) for d in DIRECTIONS), ("captions", "meteor")]
    assert (found["test_set"]["images"], found["test_set"]["pictures"]) == (N, 0) and row_of(found, "meteor")["n"] == N
    assert f"{N} test images, 0 painted" in comparison_text(found)
    of_category = copy.deepcopy(a)
    of_category.results["held_out"] = {"category": "dog", "images": [0, 3, 6]}
    assert row_of(compare({"a": of_category}, {"b": b}, images="category"), "meteor")["n"] == 3


def test_with_a_run_that_painted_only_what_needs_no_picture_is_compared():
    a, b = unpainted(), run_of(seed=1)
    for method in b.results["methods"]:
        b.per_image[f"{method}/captions/meteor"] = np.linspace(0, 1, P).astype(np.float32)  # of the painted images alone
    for sides in (({"a": a}, {"b": b}), ({"b": b}, {"a": a})):
        found = compare(*sides)
        assert [row["score"] for row in found["scores"]] == list(DIRECTIONS) and found["test_set"]["pictures"] == 0
        assert any("left out: PixCorr" in note and "METEOR" in note for note in found["notes"])
    other = run_of(seed=2)
    other.per_image["shown"] = np.arange(1, N, 2)
    with pytest.raises(UserError, match="c/per_image.safetensors: shown holds 6 painted images; expected the same 6 as in b"):
        compare({"a": a, "b": b}, {"c": other, "d": unpainted(seed=3)})
