import copy
import json

import numpy as np
import pytest
import torch

from mindtuner.errors import UserError
from mindtuner.evaluation import results as module
from mindtuner.evaluation.held_out import held_out_scores
from mindtuner.evaluation.results import (
    build_results,
    from_uint8,
    load_log,
    load_run,
    log_to,
    per_image_scores,
    rounded,
    save_run,
    to_uint8,
)
from mindtuner.evaluation.schema import validate_per_image, validate_results
from mindtuner.evaluation.scores.networks import Network
from mindtuner.evaluation.scores.pictures import pixcorr
from mindtuner.evaluation.scoring import Truth, score_methods

N, P, SIDE = 9, 6, 12


class Pixels(torch.nn.Module):
    def forward(self, images):
        return {"two_way": images.flatten(1)[:, ::7]}


PIXELS = Network("pixels", "some pixels", SIDE, (0.0,) * 3, (1.0,) * 3, {"two_way": "pixels"}, Pixels, "none")


def score_method(name, predicted, truth, seed):
    return score_methods({name: predicted}, truth, seed)[name]


@pytest.fixture(scope="module")
def truth():
    rng = np.random.default_rng(0)
    return Truth(rng.normal(size=(N, 2, 4)), rng.normal(size=(N, 5)), rng.random((P, 3, SIDE, SIDE)), [PIXELS])


def prediction(truth, noise, stages=("lowlevel", "reconstructed", "corrected"), seed=1):
    rng = np.random.default_rng(seed)

    def mixed(x):
        return (1 - noise) * x + noise * rng.random(x.shape)

    return {
        "retrieval_tokens": truth.tokens + noise * rng.normal(size=truth.tokens.shape),
        "text": truth.text + noise * rng.normal(size=truth.text.shape),
        "stages": {stage: mixed(truth.pictures) for stage in stages},
    }


@pytest.fixture(scope="module")
def scores(truth):
    return {
        "shuffled_brain": score_method("shuffled_brain", prediction(truth, 1.0), truth, seed=0),
        "nearest_training_image": score_method(
            "nearest_training_image", prediction(truth, 0.6, ("corrected",)), truth, seed=0
        ),
        "mindtuner": score_method("mindtuner", prediction(truth, 0.3), truth, seed=0),
    }


@pytest.fixture
def results(scores):
    return build_results({"simulated": True, "steps": 12}, scores, {"tune": 1.23456789}, 512.5, seed=0)


def run_files(truth):
    rng = np.random.default_rng(2)
    pictures = {
        "seen": to_uint8(truth.pictures),
        "thumbnails": rng.integers(0, 256, (N, 3, 8, 8), dtype=np.uint8),
        "mindtuner/corrected": to_uint8(truth.pictures[::-1]),
    }
    words = {
        "picture_index": list(range(P)),
        "seen_captions": ["a"] * P,
        "all_captions": ["a"] * N,
        "methods": {"mindtuner": {"retrieved_caption": ["b"] * P, "top5": [[0, 1, 2, 3, 8]] * P}},
    }
    per_image = {
        "images": np.arange(N) + 40,
        "shown": np.arange(P),
        "texts": np.arange(N),
        "mindtuner/reconstruction/two_way": np.linspace(0, 1, P, dtype=np.float32),
    }
    return pictures, words, per_image


def test_a_perfect_method_scores_one_everywhere(truth):
    perfect = score_method("mindtuner", prediction(truth, 0.0), truth, seed=0).summary
    assert perfect["retrieval"] == {"image": 1.0, "brain": 1.0, "text": 1.0}
    for stage in perfect["stages"].values():
        assert stage == pytest.approx({"pixcorr": 1.0, "ssim": 1.0, "two_way": 1.0})
    assert perfect["ci95"]["retrieval"]["image"] == [1.0, 1.0]


def test_the_last_stage_is_the_picture_and_all_stages_are_scored(truth):
    guess = prediction(truth, 0.5, ("lowlevel", "reconstructed"))
    found = score_method("from_scratch", guess, truth, seed=0)
    assert found.summary["picture"] == "reconstructed" and list(found.summary["stages"]) == ["lowlevel", "reconstructed"]
    assert found.summary["reconstruction"] == found.summary["stages"]["reconstructed"]
    expected = pixcorr(guess["stages"]["lowlevel"], truth.pictures).mean()
    assert found.summary["stages"]["lowlevel"]["pixcorr"] == pytest.approx(expected)
    assert "single_trial_retrieval" not in found.summary


def test_single_trials_are_averaged_over_draws(truth):
    guess = prediction(truth, 0.2)
    # Reversed, only the middle one of the nine is right.
    reverse = {"retrieval_tokens": truth.tokens[::-1], "text": truth.text[::-1]}
    guess["single_trials"] = [{"retrieval_tokens": truth.tokens, "text": truth.text}, reverse]
    single = score_method("mindtuner", guess, truth, seed=0).summary["single_trial_retrieval"]
    assert single == pytest.approx(dict.fromkeys(("image", "brain", "text"), (1 + 1 / N) / 2))


def test_results_hold_what_was_scored(results, scores):
    assert list(results["methods"]) == ["mindtuner", "nearest_training_image", "shuffled_brain"]
    assert results["chance"]["retrieval"] == dict.fromkeys(("image", "brain", "text"), round(1 / N, 6))
    assert results["chance"]["two_way"] == 0.5
    assert set(results["chance"]["reconstruction"]["ssim"]) == set(scores)
    assert results["methods"]["nearest_training_image"]["picture"] == "corrected"
    assert set(results["paired"]) == {"mindtuner_minus_nearest_training_image", "mindtuner_minus_shuffled_brain"}
    for name in ("nearest_training_image", "shuffled_brain"):
        for part in ("retrieval", "reconstruction"):
            for key, entry in results["paired"][f"mindtuner_minus_{name}"][part].items():
                ours, other = results["methods"]["mindtuner"][part][key], results["methods"][name][part][key]
                assert entry["mean"] == pytest.approx(ours - other, abs=2e-6)
                assert entry["ci"][0] <= entry["mean"] <= entry["ci"][1]
    assert results["timing_s"] == {"tune": 1.234568}


def test_the_same_run_gives_the_same_file(results, scores, truth):
    settings = {"mindtuner": (0.3,), "shuffled_brain": (1.0,), "nearest_training_image": (0.6, ("corrected",))}
    again = {name: score_method(name, prediction(truth, *setting), truth, seed=0) for name, setting in settings.items()}
    second = build_results({"simulated": True, "steps": 12}, again, {"tune": 1.23456789}, 512.5, seed=0)
    assert json.dumps(second) == json.dumps(results)


def test_rounding_reaches_every_leaf():
    value = {"a": np.float32(0.123456789), "b": [np.int64(3), (1e-9, -1e-9)], "c": True, "d": None, 5: "x"}
    expected = '{"a": 0.123457, "b": [3, [0.0, 0.0]], "c": true, "d": null, "5": "x"}'
    assert json.dumps(rounded(value)) == expected
    with pytest.raises(UserError, match="results.json > losses > clip is nan; expected a finite number"):
        rounded({"losses": {"clip": float("nan")}})
    with pytest.raises(UserError, match="holds a object; expected JSON values"):
        rounded([object()])


def test_a_run_comes_back_as_it_was_saved(tmp_path, results, truth):
    pictures, words, per_image = run_files(truth)
    log = log_to(tmp_path)
    log({"stage": "pretrain", "epoch": 0, "step": 9, "losses": {"clip": np.float32(1.5)}, "seconds": 0.1})
    log({"stage": "tune:mindtuner", "epoch": 1, "step": 4, "losses": {}, "seconds": 0.2})
    save_run(tmp_path, results, pictures, words, per_image)
    run = load_run(tmp_path)
    assert run.results == results and run.words == words
    assert [entry["stage"] for entry in run.log] == ["pretrain", "tune:mindtuner"]
    for name, array in pictures.items():
        np.testing.assert_array_equal(run.pictures[name], array)
    for name, array in per_image.items():
        np.testing.assert_array_equal(run.per_image[name], array)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "log.jsonl",
        "per_image.safetensors",
        "pictures.safetensors",
        "results.json",
        "words.json",
    ]


def test_scores_of_single_images_average_to_those_of_the_run(results, scores):
    arrays = per_image_scores(scores, range(40, 40 + N), range(P), range(N))
    validate_per_image(arrays, {"seen": np.empty(P), "thumbnails": np.empty(N)}, "per_image")
    for method, own in results["methods"].items():
        for part in ("retrieval", "reconstruction"):
            for score, mean in own[part].items():
                assert arrays[f"{method}/{part}/{score}"].mean() == pytest.approx(mean, abs=1e-5)


def test_results_are_written_last(tmp_path, results, truth, monkeypatch):
    """A run that is cut short never looks complete."""
    written = []
    monkeypatch.setattr(module, "write_json", lambda path, value: written.append(path.name))
    save_run(tmp_path, results, *run_files(truth))
    assert written[-1] == "results.json" and (tmp_path / "pictures.safetensors").exists()


def test_uint8_pictures_come_back_to_the_nearest_step():
    x = np.random.default_rng(3).random((2, 3, 5, 5))
    assert np.abs(from_uint8(to_uint8(x)) - x).max() <= 0.5 / 255 + 1e-6
    every = np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16).repeat(3, 1)
    np.testing.assert_array_equal(to_uint8(from_uint8(every)), every)


@pytest.mark.parametrize(
    "break_it, message",
    [
        (lambda r: r.pop("chance"), "chance is 'missing'"),
        (lambda r: r["methods"]["mindtuner"]["retrieval"].pop("text"), "mindtuner.retrieval: text is 'missing'"),
        (lambda r: r["methods"]["mindtuner"]["retrieval"].update(text=1.2), "text is 1.2; expected 0 to 1"),
        (lambda r: r["methods"]["mindtuner"].update(picture="sketch"), "picture is 'sketch'"),
        (lambda r: r["methods"]["mindtuner"]["ci95"]["retrieval"].update(image=[0.4, 0.2]), r"image is \[0.4, 0.2\]"),
        (lambda r: r["methods"]["mindtuner"]["stages"].update(final={}), "final is unknown; expected one of lowlevel"),
        (lambda r: r["methods"].update(other={}), "methods.other is unknown"),
        (lambda r: r["chance"]["reconstruction"]["ssim"].pop("mindtuner"), "mindtuner is 'missing'"),
        (lambda r: r["paired"]["mindtuner_minus_shuffled_brain"]["retrieval"]["image"].pop("p"), "p is 'missing'"),
        (lambda r: r.update(peak_memory_mb=True), "peak_memory_mb is True"),
    ],
)
def test_broken_results_are_refused_by_field(results, break_it, message):
    broken = copy.deepcopy(results)
    break_it(broken)
    with pytest.raises(UserError, match=message):
        validate_results(broken, "run/results.json")


@pytest.mark.parametrize(
    "break_it, message",
    [
        (lambda p, w, i: i.pop("images"), "images is missing"),
        (lambda p, w, i: i.update(shown=i["shown"][1:]), r"shown is int64 \(5,\); expected 6 int64"),
        (lambda p, w, i: i.update({"other/retrieval/image": np.zeros(N, np.float32)}), "other/retrieval/image is unknown"),
        (
            lambda p, w, i: i.update({"mindtuner/retrieval/image": np.zeros(P, np.float32)}),
            r"mindtuner/retrieval/image is float32 \(6,\); expected 9 float32",
        ),
        (lambda p, w, i: p.pop("seen"), "seen is missing"),
        (lambda p, w, i: p.update(seen=p["seen"].astype(np.float32)), "seen is float32"),
        (lambda p, w, i: p.update({"mindtuner/corrected": p["seen"][:2]}), "expected that of seen"),
        (lambda p, w, i: p.update({"mindtuner/sketch": p["seen"]}), "mindtuner/sketch is unknown"),
        (lambda p, w, i: w.pop("all_captions"), "all_captions is 'missing'; expected a list"),
        (lambda p, w, i: w["seen_captions"].pop(), "seen_captions has 5 entries; expected a list of 6"),
        (lambda p, w, i: w.update(picture_index=[0, 1, 2, 3, 4, 9]), "picture_index holds 9; expected positions 0 to 8"),
        (lambda p, w, i: w["methods"]["mindtuner"].update(top5=[[0, 1]] * P), "expected lists of 5 positions"),
    ],
)
def test_broken_pictures_and_words_are_never_written(tmp_path, results, truth, break_it, message):
    pictures, words, per_image = copy.deepcopy(run_files(truth))
    break_it(pictures, words, per_image)
    with pytest.raises(UserError, match=message):
        save_run(tmp_path, results, pictures, words, per_image)
    assert not any(tmp_path.iterdir())


def test_broken_folders_are_refused_by_file(tmp_path, results, truth):
    with pytest.raises(UserError, match="results.json: not found"):
        load_run(tmp_path)
    log_to(tmp_path)({"stage": "pretrain", "losses": {}})
    save_run(tmp_path, results, *run_files(truth))
    path = tmp_path / "pictures.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="pictures.safetensors: cannot be read"):
        load_run(tmp_path)
    path.write_bytes(whole)
    with (tmp_path / "log.jsonl").open("a") as log:
        log.write('{"stage": "tune')
    with pytest.raises(UserError, match="log.jsonl: line 2: not valid JSON"):
        load_run(tmp_path)
    (tmp_path / "log.jsonl").write_text("[1]\n")
    with pytest.raises(UserError, match="line 1 is not a log entry"):
        load_log(tmp_path)
    with pytest.raises(UserError, match="log.jsonl: cannot be written"):
        log_to(tmp_path / "absent")({"stage": "pretrain", "losses": {}})


def test_bad_predictions_are_refused_by_method_and_field(truth, scores):
    guess = prediction(truth, 0.1)
    for change, message in (
        ({"text": None}, "method mindtuner: text: missing"),
        ({"retrieval_tokens": truth.tokens[:3]}, "method mindtuner: predicted tokens"),
        ({"stages": {}}, r"method mindtuner: stages \[\]"),
        ({"stages": {"sketch": truth.pictures}}, r"mindtuner: stages \['sketch'\]"),
        ({"stages": {"corrected": truth.pictures[:2]}}, "that of the seen"),
    ):
        with pytest.raises(UserError, match=message):
            score_method("mindtuner", {**guess, **change}, truth, seed=0)
    with pytest.raises(UserError, match="unknown method other"):
        build_results({}, {"other": scores["mindtuner"]}, {}, 1.0, seed=0)
    with pytest.raises(UserError, match="no methods"):
        build_results({}, {}, {}, 1.0, seed=0)
    fewer = Truth(truth.tokens[:5], truth.text[:5], truth.pictures, [PIXELS])
    with pytest.raises(UserError, match="different numbers of images"):
        build_results(
            {},
            {
                "mindtuner": scores["mindtuner"],
                "ridge_only": score_method("ridge_only", prediction(fewer, 0.1), fewer, seed=0),
            },
            {},
            1.0,
            seed=0,
        )


def test_flat_images_are_left_out_or_counted_and_named(truth):
    """A flat original has no PixCorr under any method; a flat picture counts 0, so that painting nothing earns nothing."""
    pictures = np.array(truth.pictures)
    pictures[2] = 0.5
    flat = Truth(truth.tokens, truth.text, pictures, [PIXELS])
    guess, other = prediction(flat, 0.3), prediction(flat, 0.6, seed=4)
    guess["stages"]["corrected"][4] = 0.0
    scores = score_methods({"mindtuner": guess, "ridge_only": other}, flat, seed=0)
    found = build_results({}, scores, {}, 1.0, seed=0, shown=np.arange(P) + 70)
    assert found["undefined"] == {
        "pixcorr": {"left_out": {"count": 1, "images": [72]}, "counted_zero": {"mindtuner": {"count": 1, "images": [74]}}}
    }
    kept = [0, 1, 3, 4, 5]
    own = pixcorr(guess["stages"]["corrected"], pictures)
    assert np.isnan(own[2]) and own[4] == 0
    mean = found["methods"]["mindtuner"]["reconstruction"]["pixcorr"]
    assert mean == pytest.approx(own[kept].mean(), abs=1e-6)
    difference = found["paired"]["mindtuner_minus_ridge_only"]["reconstruction"]["pixcorr"]["mean"]
    assert difference == pytest.approx(mean - found["methods"]["ridge_only"]["reconstruction"]["pixcorr"], abs=2e-6)
    assert np.isnan(per_image_scores(scores, range(N), range(P), range(N))["mindtuner/reconstruction/pixcorr"][2])
    with pytest.raises(UserError, match="each has one value everywhere"):
        empty = Truth(truth.tokens, truth.text, np.full_like(pictures, 0.5), [PIXELS])
        score_methods({"mindtuner": prediction(empty, 0.3)}, empty, seed=0)


def test_scores_beyond_those_of_every_run_are_known_ones_in_their_range(results):
    more = copy.deepcopy(results)
    for own in more["methods"].values():
        for table in (own["reconstruction"], *own["stages"].values()):
            table["swav"] = 1.4
        own["ci95"]["reconstruction"]["swav"] = [1.3, 1.5]
    with pytest.raises(UserError, match="chance.reconstruction: swav is 'missing'"):
        validate_results(more)
    more["chance"]["reconstruction"]["swav"] = dict.fromkeys(more["methods"], 1.6)
    validate_results(more)
    more["methods"]["mindtuner"]["reconstruction"]["swav"] = 2.1
    with pytest.raises(UserError, match="reconstruction: swav is 2.1; expected 0 to 2"):
        validate_results(more)
    del more["methods"]["mindtuner"]["reconstruction"]["swav"]
    more["methods"]["mindtuner"]["reconstruction"]["lpips"] = 0.1
    with pytest.raises(UserError, match="methods.mindtuner.reconstruction: lpips is an unknown reconstruction score"):
        validate_results(more)


# ---- nothing painted


def unpainted(truth, noise, seed=1):
    """(what was seen, what a method predicts), without a picture."""
    nothing = Truth(truth.tokens, truth.text, np.empty((0, 3, SIDE, SIDE), np.uint8), [PIXELS])
    return nothing, prediction(truth, noise, seed=seed) | {"stages": {}}


def test_without_pictures_there_is_retrieval_and_no_block_of_pictures(truth, results, tmp_path):
    nothing, ours = unpainted(truth, 0.3)
    scores = score_methods({"mindtuner": ours, "shuffled_brain": unpainted(truth, 1.0)[1]}, nothing, seed=0)
    found = build_results({"simulated": True}, scores, {"tune": 1.0}, 512.5, seed=0, shown=[])
    own, painted = found["methods"]["mindtuner"], results["methods"]["mindtuner"]
    assert own == {
        "retrieval": painted["retrieval"],
        "retrieval_pools": painted["retrieval_pools"],
        "ci95": {"retrieval": painted["ci95"]["retrieval"]},
    }
    assert set(found["chance"]) == {"retrieval", "retrieval_pools"} and found["undefined"] == {}
    assert set(found["paired"]["mindtuner_minus_shuffled_brain"]) == {"retrieval"}
    assert list(found) == list(results)
    pictures = {
        "seen": np.empty((0, 3, SIDE, SIDE), np.uint8),
        "thumbnails": np.zeros((N, 3, 8, 8), np.uint8),
    }
    words = {
        "picture_index": [],
        "seen_captions": [],
        "all_captions": ["a"] * N,
        "methods": {"mindtuner": {"retrieved_caption": ["b"] * N, "top5": []}},
    }
    per_image = per_image_scores(scores, np.arange(N) + 40, [], np.arange(N))
    per_image["mindtuner/captions/meteor"] = np.linspace(0, 1, N, dtype=np.float32)
    assert not any("reconstruction" in name for name in per_image)
    log_to(tmp_path)({"stage": "pretrain", "losses": {}})
    save_run(tmp_path, found, pictures, words, per_image)
    run = load_run(tmp_path)
    assert run.results == found and run.words == words and run.pictures["seen"].shape == (0, 3, SIDE, SIDE)
    apart = held_out_scores(run.per_image, "dog", np.arange(N) < 4, 3, seed=0)
    means = [apart[side]["mindtuner"]["captions"]["meteor"] for side in ("of_category", "others")]
    assert [entry["n"] for entry in means] == [4, N - 4] and means[0]["mean"] == pytest.approx(
        np.linspace(0, 1, N)[:4].mean()
    )
    for change, message in (
        ({"mindtuner/captions/meteor": per_image["mindtuner/captions/meteor"][:2]}, "expected 9 float32"),
        ({"mindtuner/written/meteor": np.zeros(N, np.float32)}, "expected 0 float32"),
        ({"shown": np.arange(2)}, "expected 0 int64"),
    ):
        with pytest.raises(UserError, match=message):
            validate_per_image(per_image | change, pictures, "per_image")


def test_pictures_are_there_as_a_whole_or_not_at_all(truth, scores, results):
    nothing, ours = unpainted(truth, 0.3)
    with pytest.raises(UserError, match=r"method mindtuner: stages \['corrected'\]: expected none"):
        score_methods({"mindtuner": ours | {"stages": {"corrected": truth.pictures}}}, nothing, seed=0)
    bare = score_methods({"ridge_only": ours}, nothing, seed=0)
    with pytest.raises(UserError, match=r"different numbers of images \[\(9, 0\), \(9, 6\)\]"):
        build_results({}, {"mindtuner": scores["mindtuner"], **bare}, {}, 1.0, seed=0)
    for name, message in (
        ("reconstruction", r"mindtuner\.reconstruction is 'missing'; expected it beside stages"),
        ("stages", r"mindtuner\.stages is 'missing'; expected it beside reconstruction"),
        ("picture", r"mindtuner\.picture is 'missing'; expected it beside reconstruction"),
    ):
        broken = copy.deepcopy(results)
        del broken["methods"]["mindtuner"][name]
        with pytest.raises(UserError, match=message):
            validate_results(broken)
    broken = copy.deepcopy(results)
    for name in ("reconstruction", "stages", "picture"):
        del broken["methods"]["mindtuner"][name]
    del broken["methods"]["mindtuner"]["ci95"]["reconstruction"]
    with pytest.raises(UserError, match=r"methods.mindtuner: reconstruction is 'missing'; expected a mapping, as of nearest"):
        validate_results(broken)
    for change, message in (
        (lambda r: r["chance"].pop("two_way"), "chance: two_way is 'missing'"),
        (lambda r: r["paired"]["mindtuner_minus_shuffled_brain"].pop("reconstruction"), "reconstruction is 'missing'"),
        (lambda r: r["methods"]["mindtuner"].update(picture=[]), r"picture is \[\]; expected one of lowlevel"),
    ):
        broken = copy.deepcopy(results)
        change(broken)
        with pytest.raises(UserError, match=message):
            validate_results(broken)


def test_smaller_pools_stand_beside_all_candidates(truth):
    small = Truth(truth.tokens, truth.text, truth.pictures, [PIXELS], pool=4)
    found = build_results({}, score_methods({"mindtuner": prediction(small, 0.9)}, small, 0), {}, 1.0, seed=0)
    for direction, entries in found["methods"]["mindtuner"]["retrieval_pools"].items():
        assert [entry["pool"] for entry in entries] == [N, 4] and entries[1]["subsets"]["count"] == 30
        assert entries[0]["top1"] == found["methods"]["mindtuner"]["retrieval"][direction]
        assert found["chance"]["retrieval_pools"][direction][1] == {"pool": 4, "top1": 0.25, "top5": 1.0, "median_rank": 2.5}
    found["methods"]["mindtuner"]["retrieval_pools"]["text"] = []
    with pytest.raises(UserError, match=r"retrieval_pools: text is \[\]; expected a list of pools"):
        validate_results(found)
