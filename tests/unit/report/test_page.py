"""The report's numbers, files and errors. What a browser makes of it is in test_report_browser.py."""

import re

import numpy as np
import pytest
from report_run import (
    PICTURES,
    RANKS,
    SEEN,
    STAGES,
    TESTS,
    TWO_WAY,
    add_held_out,
    add_pools,
    edit,
    make_run,
    several,
    strip,
    unpaint,
    write_per_image,
)
from safetensors.numpy import save_file

from mindtuner.cli import main
from mindtuner.errors import UserError
from mindtuner.evaluation.results import load_run
from mindtuner.evaluation.said import said_scores
from mindtuner.report import page as page_module
from mindtuner.report import plots, runs, tables, write_report
from mindtuner.report.contact_sheet import contact_sheet
from mindtuner.report.gallery import gallery

PLENTY = 10**8  # bytes


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    return write_report(make_run(tmp_path_factory.mktemp("report") / "run"))


def test_it_says_what_is_simulated(page, tmp_path):
    assert "The brains and the scenes on this page are simulated." in page.read_text(encoding="utf-8")
    run = make_run(tmp_path / "run")
    edit(run / "results.json", "setting", "simulated_scenes", value=False)
    edit(run / "results.json", "setting", "stimuli_note", value="The generator was <not> made for these.")
    html = write_report(run).read_text(encoding="utf-8")
    assert "The brains on this page are simulated." in html
    assert "scenes on this page are simulated" not in html
    assert "was &lt;not&gt; made" in html
    other = make_run(tmp_path / "other", subject=2)
    edit(other / "results.json", "setting", "simulated_brains", value=False)
    html = write_report(run, other, out=tmp_path / "both.html").read_text(encoding="utf-8")
    assert "1 of the 2 runs on this page are of simulated brains" in html and "cannot be compared" in html


def test_each_picture_is_embedded_once(page):
    text = page.read_text(encoding="utf-8")
    written = re.findall(r"data:image/webp;base64,([A-Za-z0-9+/=]+)", text)
    stored = re.findall(r'"(UklGR[A-Za-z0-9+/=]+)"', text)  # RIFF, in the blocks
    assert len(written) == PICTURES * 4 + 1
    assert len(written + stored) == len({*written, *stored}) == PICTURES * (1 + 3 + 3 + 1) + 1


def test_without_script_the_main_gallery_stands_in_the_html(page):
    body = re.search(r"<noscript>.*</noscript>", page.read_text(encoding="utf-8"), re.DOTALL)[0]
    assert body.count("<img ") == PICTURES * 4
    assert body.count('class="hit"') == sum(rank > 0 for rank in RANKS["mindtuner"])
    places = [(int(x), int(y)) for x, y in re.findall(r"--x:(\d+);--y:(\d+)", body)]
    strips = [strip(truth, rank) for truth, rank in zip(SEEN, RANKS["mindtuner"], strict=True)]
    assert [20 * y + x for x, y in places] == list(np.ravel(strips))  # the sheet has 20 thumbnails a row


def test_differences_in_words(page):
    (pair,) = tables.paired(load_run(page.parent).results["paired"])
    image, brain, text = pair["lines"][:3]
    assert image["words"] == "MindTuner is ahead of Ridge only" and "+7.0 points" in image["numbers"]
    assert brain["words"] == "Ridge only is ahead of MindTuner" and "p < 0.001" in brain["numbers"]
    assert page.read_text(encoding="utf-8").count('<div class="clear">') == 2
    assert text["words"] == "no clear difference" and "\N{MINUS SIGN}2.0 to +6.0" in text["numbers"]


def test_nobody_is_ahead_by_an_interval_that_the_test_does_not_bear_out():
    entry = {"mean": 0.05, "ci": [0.001, 0.1]}
    for p, words in ((0.084, "no clear difference"), (0.04, "MindTuner is ahead of Ridge only")):
        [pair] = tables.paired({"mindtuner_minus_ridge_only": {"retrieval": {"image": {**entry, "p": p}}}})
        assert pair["lines"][0]["words"] == words and pair["lines"][0]["is_clear"] == (p < 0.05)


def test_table_shows_scores_beside_chance(page):
    results = load_run(page.parent).results
    (retrieval,), (pictures,) = (tables.tables(results, part) for part in ("retrieval", "reconstruction"))
    labels = [row["label"] for row in retrieval["rows"]]
    assert labels == ["MindTuner", "Ridge only", "Nearest training image", "Shuffled brain"]
    cell = retrieval["rows"][0]["cells"][0]
    assert (cell["value"], cell["ci"]) == ("62.0", "57.0 to 67.0")
    assert retrieval["columns"][0]["chance"] == "4.3"  # 1 of 23
    chances = {column["label"]: column["chance"] for column in pictures["columns"]}
    assert chances == {"Two-way": "50.0", "PixCorr": "0.020 to 0.050", "SSIM": "0.020 to 0.050"}
    assert [figure["value"] for figure in tables.headline(results)] == ["62.0", "20.7", "81.0"]
    assert tables.single_trials(results)["rows"][0]["cells"][0] == "31.0\N{NO-BREAK SPACE}%"


def test_what_is_said_stands_beside_chance():
    results = {"methods": {"mindtuner": {"words": {"captions": said_scores([["a cat"], ["a dog"]], [["a cat"]] * 2, 0)}}}}
    table = tables.said(results)
    [row] = table["rows"]
    assert row["heads"] == ["MindTuner", "Nearest caption"]
    cells = dict(zip(table["columns"], row["cells"], strict=True))
    assert cells["Things, F1"] == "0.50 [0.00, 1.00], chance 0.50"
    assert tables.said({"methods": {"mindtuner": {}}}) is None  # a run from before


def test_of_images_foreign_to_the_painter_its_pictures_are_no_headline(tmp_path):
    run = make_run(tmp_path / "run")
    assert "cannot paint such images" not in write_report(run).read_text(encoding="utf-8")
    edit(run / "results.json", "setting", "off_domain", value=True)
    scores = load_run(run).results["methods"]["mindtuner"]["reconstruction"]
    edit(run / "results.json", "methods", "mindtuner", "stages", "lowlevel", value={**scores, "two_way": 0.5625})
    results = load_run(run).results
    figures = tables.headline(results)
    nearest = results["methods"]["nearest_training_image"]["reconstruction"]["two_way"]
    assert [figure["value"] for figure in figures] == ["62.0", "20.7", "56.2", f"{100 * nearest:.1f}"]
    assert [figure["chance"] for figure in figures[2:]] == ["50.0", "50.0"]
    html = write_report(run).read_text(encoding="utf-8")
    assert "The painter cannot paint such images." in html and "identification of the low-level pictures" in html
    assert "identification of the pictures" not in html
    usual = make_run(tmp_path / "usual")
    assert contact_sheet(run, 2).height < contact_sheet(usual, 2).height  # without what was painted


def test_table_leaves_out_what_was_not_measured():
    results = {"setting": {}, "methods": {"prior_only": {"retrieval": {"image": None}}}, "chance": {}}
    assert tables.tables(results, "retrieval") == []
    assert tables.headline(results) == []


def test_further_scores_are_shown_by_label_and_by_image(tmp_path):
    run = make_run(tmp_path / "run")
    for name in ("alexnet2", "swav", "inception", "clip"):
        for at in (["reconstruction"], ["stages", "corrected"]):
            edit(run / "results.json", "methods", "ridge_only", *at, name, value=0.125)
        edit(run / "results.json", "methods", "ridge_only", "ci95", "reconstruction", name, value=[0.1, 0.2])
    edit(run / "results.json", "chance", "reconstruction", "swav", value={"ridge_only": 0.9})
    edit(run / "results.json", "setting", "scores", value={"not_scored": ["alexnet5"]})
    write_per_image(
        run,
        mindtuner__reconstruction__swav=[1, np.nan, 0.3, 0.4, 0.5, 0.6],
        mindtuner__retrieval__image=np.arange(TESTS) / TESTS,
        mindtuner__retrieval__text=np.arange(1, TESTS) / TESTS,
    )
    first, second = tables.tables(load_run(run).results, "reconstruction")  # 7 scores are 4 and 3
    assert [column["label"] for column in second["columns"]] == ["CLIP", "SwAV", "Two-way"]
    assert [column["lower"] for column in second["columns"]] == [False, True, False]
    assert [column["chance"] for column in second["columns"]] == ["50.0", "0.900", "50.0"]
    assert [row["cells"][0] and row["cells"][0]["value"] for row in second["rows"]] == [None, "12.5", None, None]
    assert [cell is None for cell in first["rows"][0]["cells"]] == [False, False, True, True]
    (told,) = shown = [runs.load(run)]
    held = gallery(shown, runs.labels(shown), PLENTY)
    assert list(held["scores"]) == ["reconstruction/two_way", "reconstruction/swav", "retrieval/image", "retrieval/text"]
    assert [score["lower"] for score in held["scores"].values()] == [False, True, False, False]
    scores = held["runs"][0]["methods"]["mindtuner"]["scores"]
    assert scores["reconstruction/two_way"] == pytest.approx(TWO_WAY, abs=1e-4)
    assert scores["reconstruction/swav"] == [1, None, 0.3, 0.4, 0.5, 0.6]
    assert scores["retrieval/image"] == [round(n / TESTS, 4) for n in SEEN]  # the position in the test list
    assert scores["retrieval/text"] == [round(n / TESTS, 4) if n else None for n in SEEN]  # image 0 has no text
    assert not held["written"]
    assert "Not scored, because what they need was not there: AlexNet(5)." in write_report(run).read_text(encoding="utf-8")


def test_what_is_recognised_in_the_seen_pictures_is_said(tmp_path):
    run = make_run(tmp_path / "run")
    assert tables.recognised(load_run(run).results) is None
    seen = {name: {"mean": mean, "ci95": [0, 1]} for name, mean in (("objects", 0.8125), ("places", 1.0))}
    words = {"objects": ["cat", "dog"], "colours": [], "places": ["beach"]}
    edit(run / "results.json", "objects", value={"training_images": 1500, "words": words, "seen": seen})
    told = tables.recognised(load_run(run).results)
    assert told == {
        "training": "1,500",
        "words": "3",
        "seen": "Objects 81.2\N{NO-BREAK SPACE}%, Places 100.0\N{NO-BREAK SPACE}%",
    }
    assert "The seen pictures themselves reach Objects 81.2" in write_report(run).read_text(encoding="utf-8")


def test_phrases_are_read_where_there_are_some(tmp_path):
    run = make_run(tmp_path / "run")
    caption = [f"mindtuner reads {n}" for n in SEEN]
    read = lambda: gallery(told := [runs.load(run)], runs.labels(told), PLENTY)["runs"][0]["methods"]["mindtuner"]["read"]
    assert read() == caption
    said = [[["a red bird", 0.62], ["on the beach", 0.9]], *([] for _ in SEEN[1:])]
    edit(run / "words.json", "methods", "mindtuner", "phrases", value=said)
    assert read() == ["a red bird (62%), on the beach (90%)", *["nothing that it is sure of"] * (PICTURES - 1)]
    edit(run / "words.json", "methods", "mindtuner", "phrases", value=said[1:])
    with pytest.raises(UserError, match=r"words\.json: methods\.mindtuner: phrases"):
        load_run(run)


def test_captions_read_and_written_stand_apart(tmp_path):
    run = make_run(tmp_path / "run")
    for part, value in (("captions", 0.25), ("written", 0.5)):
        edit(run / "results.json", "methods", "mindtuner", part, value={"meteor": value})
        edit(run / "results.json", "methods", "mindtuner", "ci95", part, value={"meteor": [value - 0.125, value + 0.125]})
        edit(run / "results.json", "chance", part, value={"meteor": {"mindtuner": value / 5}})
    edit(run / "words.json", "methods", "mindtuner", "written_caption", value=[f"git writes {n} & more" for n in SEEN])
    write_per_image(run, mindtuner__captions__meteor=[0.1] * PICTURES, mindtuner__written__meteor=[0.2] * PICTURES)
    results = load_run(run).results
    for part, title, value, ci, chance in (
        ("captions", "Captions retrieved", "0.250", "0.125 to 0.375", "0.050"),
        ("written", "Captions written", "0.500", "0.375 to 0.625", "0.100"),
    ):
        (table,) = tables.tables(results, part)
        assert table["title"] == title and table["columns"][0]["chance"] == chance
        assert [(row["label"], row["cells"][0]["value"], row["cells"][0]["ci"]) for row in table["rows"]] == [
            ("MindTuner", value, ci)
        ]
    told = [runs.load(run)]
    held = gallery(told, runs.labels(told), PLENTY)
    assert held["scores"]["written/meteor"]["label"] == "METEOR of the caption written"
    assert held["runs"][0]["methods"]["ridge_only"]["written"] is None
    body = re.search(r"<noscript>.*</noscript>", write_report(run).read_text(encoding="utf-8"), re.DOTALL)[0]
    assert body.count('class="written">git writes ') == PICTURES and "git writes 21 &amp; more" in body


def test_ranks_and_smaller_pools_stand_beside_their_chance(tmp_path):
    assert tables.pool_tables(load_run(make_run(tmp_path / "plain")).results) == []
    run = add_pools(make_run(tmp_path / "run"))
    results = load_run(run).results
    image, brain, text = tables.pool_tables(results)
    assert [table["title"] for table in (image, brain, text)] == ["Image retrieval", "Brain retrieval", "Text retrieval"]
    assert [column["label"] for column in image["columns"]] == [
        f"Top-5 of {TESTS}",
        f"Median rank of {TESTS}",
        "Top-1 of 5",
        "Top-5 of 5",
        "Median rank of 5",
    ]
    assert [column["chance"] for column in image["columns"]] == ["21.7", "12.0", "20.0", "100.0", "3.0"]
    assert [column["lower"] for column in image["columns"]] == [False, True, False, False, True]
    assert [row["label"] for row in image["rows"]] == ["MindTuner", "Shuffled brain"]
    assert [(cell["value"], cell["ci"]) for cell in image["rows"][0]["cells"]] == [
        ("75.0", "62.5 to 87.5"),
        ("3.0", "2.9 to 3.1"),
        ("62.5", "50.0 to 75.0"),
        ("100.0", "87.5 to 112.5"),
        ("1.5", "1.4 to 1.6"),
    ]
    drawn = tables.subsets(results)
    assert drawn["columns"][0] == "Image: top-1 of 5" and drawn["count"] == 30
    assert drawn["rows"][0]["cells"][:3] == ["62.5 ± 6.2\N{NO-BREAK SPACE}%", "100.0 ± 6.2\N{NO-BREAK SPACE}%", "1.5 ± 0.1"]
    html = write_report(run).read_text(encoding="utf-8")
    assert "the mean over 30 random subsets" in html and "Median rank of 5" in html


def test_a_category_held_out_is_shown_apart(page, tmp_path):
    assert tables.held_out(load_run(page.parent).results) is None and "held out" not in page.read_text(encoding="utf-8")
    run = add_held_out(make_run(tmp_path / "run"))
    shown = tables.held_out(load_run(run).results)
    assert (shown["category"], shown["images"], shown["left_out"]) == ("red dog", 3, 41)
    assert [(group["label"], group["open"]) for group in shown["groups"]] == [("MindTuner", True), ("Shuffled brain", False)]
    image, pixcorr = shown["groups"][0]["rows"]
    assert (image["score"], image["unit"], image["chance"]) == ("Image retrieval", "%", "4.3")
    assert [(cell["value"], cell["ci"], cell["n"]) for cell in image["cells"]] == [
        ("25.0", "12.5 to 37.5", 3),
        ("62.5", "50.0 to 75.0", TESTS - 3),
    ]
    assert pixcorr["cells"][0] is None and pixcorr["cells"][1]["value"] == "0.500" and pixcorr["chance"] == "0.020"
    html = write_report(run).read_text(encoding="utf-8")
    assert "A category held out: red dog" in html and "fewer than two images" in html and "41 were left out" in html
    edit(run / "results.json", "held_out", "others", "mindtuner", "retrieval", "image", value={"mean": 1, "n": 3})
    with pytest.raises(UserError, match="held_out.others.mindtuner.retrieval.image: ci is 'missing'"):
        write_report(run)


def test_published_numbers_stand_apart(page, tmp_path):
    html = page.read_text(encoding="utf-8")
    section = html[html.index('<section id="published"') :]
    groups = re.findall(r"<tbody>.*?</tbody>", section[: section.index("</section>")], re.DOTALL)
    assert ["MindEye2 (ICML 2024)" in group for group in groups] == [True, False]
    assert ["<td>simulated</td>" in group for group in groups] == [False, True] and "0.310" in groups[1]
    assert "<td>simulated</td>" not in groups[0]


def test_measured_runs_of_other_data_have_no_published_numbers(tmp_path):
    run = make_run(tmp_path / "run")
    edit(run / "results.json", "setting", "simulated_brains", value=False)
    edit(run / "results.json", "setting", "dataset", value="92 photographs")
    html = write_report(run).read_text(encoding="utf-8")
    assert "MindEye2" not in html and 'id="published"' not in html and 'href="#published"' not in html
    edit(run / "results.json", "setting", "dataset", value="NSD")
    assert "MindEye2" in write_report(run).read_text(encoding="utf-8")


def test_regions(tmp_path):
    run = make_run(tmp_path / "run")
    assert "by region" not in write_report(run).read_text(encoding="utf-8")
    block = {"V1": {"correlation": 0.2, "ci": [0.1, 0.3], "seen": 0.4, "ceiling": 0.5}, "FFA": {"correlation": -0.1}}
    edit(run / "results.json", "methods", "ridge_only", "brain", value=block)
    edit(run / "results.json", "methods", "mindtuner", "brain", value=block)
    first, second = tables.regions(load_run(run).results)
    assert (first["label"], second["label"]) == ("MindTuner", "Ridge only")
    assert first["limits"] == ["\N{MINUS SIGN}0.1", "0.5"]
    v1, ffa = first["rows"]
    assert (v1["correlation"], v1["ci"], v1["seen"], v1["ceiling"]) == ("0.200", "0.100 to 0.300", "0.400", "0.500")
    assert (ffa["correlation"], ffa["ci"], ffa["seen"]) == ("\N{MINUS SIGN}0.100", None, None)
    # -0.1 to 0.5 lie at 2 % to 98 %, so a tenth is 16 %.
    assert 'class="bar" x1="18.00%" x2="50.00%"' in v1["plot"] and 'class="ceiling" x1="98.00%"' in v1["plot"]
    assert 'class="ring" cx="82.00%"' in v1["plot"] and 'class="whisker" x1="34.00%" x2="66.00%"' in v1["plot"]
    assert "Brain correlation by region" in write_report(run).read_text(encoding="utf-8")


def test_plots_put_numbers_in_their_place():
    assert plots.axis([0.31, 0.62]) == (0.0, pytest.approx(0.65))
    low, high = plots.axis([-0.02, 0.4])
    assert low <= -0.02 and high >= 0.4
    svg = plots.interval(0.5, (0.25, 0.75), 0.0, (0.0, 1.0), dots=[1.0])
    assert 'cx="50.00%"' in svg and 'x1="26.00%" x2="74.00%"' in svg and 'class="chance" x1="2.00%"' in svg
    assert 'class="each" cx="98.00%"' in svg
    svg, logarithmic = plots.curve([[(0, 100.0), (1, 10.0), (2, 1.0)], [(1, 10.0)]])
    # On a logarithmic axis two equal ratios are two equal steps, and both runs share it.
    first, second = re.findall(r'points="([^"]*)"', svg)
    heights = [float(point.split(",")[1]) for point in first.split()]
    assert logarithmic and heights[1] - heights[0] == pytest.approx(heights[2] - heights[1])
    assert second == first.split()[1]
    assert not plots.curve([[(0, 2.0), (1, 1.0)]])[1]
    plots.curve([[(3, 0.0)]])
    svg = plots.growth(
        {"mindtuner": [(1, 0.25, 0.0, 0.5), (3, 0.5, 0.5, 0.5), (5, 0.75, 0.5, 1.0)]},
        0.25,
        [1, 3, 5],
        (0, 1),
        ("0 %", "100 %"),
    )
    points = [tuple(map(float, point.split(","))) for point in re.search(r'points="([^"]*)"', svg)[1].split()]
    assert np.allclose(np.diff(points, axis=0)[0], np.diff(points, axis=0)[1], atol=0.11)  # a straight line, to rounding
    assert f'y1="{points[0][1]:.1f}"' in re.search(r'<line class="chance"[^>]*>', svg)[0]  # the first score is at chance


def test_runs_are_grouped_by_all_but_their_seed(tmp_path):
    told = [runs.load(folder) for folder in several(tmp_path)]
    assert runs.labels(told) == [
        "Subject 1, 1 session, seed 0",
        "Subject 1, 1 session, seed 1",
        "Subject 1, 2 sessions, seed 0",
        "Subject 2, 1 session, seed 0",
    ]
    assert [[one.folder.name for one in group] for group in runs.groups(told)] == [["a", "b"], ["c"], ["d"]]
    table = runs.table(told, "mindtuner")
    image = [row["cells"][0] for row in table["rows"]]
    assert [cell["value"] for cell in image] == ["50.0", "80.0", "30.0", "40.0"]
    spread = 100 * np.std([0.6, 0.4], ddof=1), 100 * np.std([0.5, 0.3], ddof=1)
    assert [cell["ci"] for cell in image] == [f"± {spread[0]:.1f}", "75.0 to 85.0", "25.0 to 35.0", f"± {spread[1]:.1f}"]
    assert table["rows"][-1]["subject"] == "Mean of 2 subjects" and table["rows"][-1]["is_mean"]
    assert table["rows"][0]["said"] == ["1 session, 675 trials", "seeds 0, 1"]
    assert table["columns"][0]["chance"] == "4.3"


def test_runs_of_different_choices_stand_apart(tmp_path):
    same = [make_run(tmp_path / "a"), make_run(tmp_path / "b", seed=1), make_run(tmp_path / "again")]
    (same[1] / "config.yaml").write_text("simulate:\n  subjects: 8\n  seed: 5\ntune: {lr: 0.5}\n")
    told = [runs.load(folder) for folder in same]
    # A second run of seed 0 may differ in something that no file tells, and is no second seed.
    assert [[one.folder.name for one in group] for group in runs.groups(told)] == [["a"], ["b"], ["again"]]
    assert runs.differing(told) == ["tune lr"]
    assert runs.labels(told) == ["tune lr unset, seed 0, a", "tune lr 0.5, seed 1", "tune lr unset, seed 0, again"]


def test_scores_by_scanning_time(tmp_path):
    told = [runs.load(folder) for folder in several(tmp_path)]
    (figure,) = runs.efficiency(told)  # of subject 2 there is one amount only
    assert figure["title"] == "Subject 1"
    assert figure["plots"][0]["alt"] == (
        "Image of MindTuner: 50.0\N{NO-BREAK SPACE}% from 1 session, 80.0\N{NO-BREAK SPACE}% from 2 sessions"
    )
    assert [name for _, name, _ in figure["legend"]] == [
        "mindtuner",
        "ridge_only",
        "nearest_training_image",
        "shuffled_brain",
    ]
    assert runs.efficiency(told[:2]) == runs.efficiency(told[2:]) == []


def test_one_page_on_several_runs(tmp_path, capsys):
    folders = several(tmp_path)
    assert main(["report", *map(str, folders), "--out", str(tmp_path / "deep" / "all.html")]) == 0
    html = (tmp_path / "deep" / "all.html").read_text(encoding="utf-8")
    assert "report of 4 runs" in html and html.count('<optgroup label="Subject') == 2
    for seed in (0, 1):
        assert f"mindtuner demo &lt;out&gt; --seed {seed}" in html  # the exact commands
    assert not (folders[0] / "report.html").exists()
    seen = set(re.findall(r'<img src="data:image/webp;base64,([^"]+)" data-id="\d+" alt="Seen', html))
    stored = re.findall(r'"(UklGR[A-Za-z0-9+/=]+)"', html)
    assert len(seen) == PICTURES and not seen & set(stored)  # all runs share the seen pictures
    assert len(stored) == len(set(stored)) == 4 * PICTURES * 7 - PICTURES * 3
    capsys.readouterr()
    assert main(["report", str(folders[0])]) == 0
    assert capsys.readouterr().out.strip() == str(folders[0] / "report.html")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["a", "b"], "out: is not given, with 2 runs"),
        (["a", "a", "--out", "x.html"], "given twice"),
        (["a", "b", "--out", "a"], "is a folder"),
        (["nowhere"], "not found"),
        (["a/words.json"], "not a folder"),
        (["a", "unfinished", "--out", "x.html"], "no results.json"),
    ],
)
def test_bad_input_is_one_line(tmp_path, monkeypatch, capsys, arguments, named):
    make_run(tmp_path / "a")
    make_run(tmp_path / "b", seed=1)
    (make_run(tmp_path / "unfinished") / "results.json").unlink()
    monkeypatch.chdir(tmp_path)
    assert main(["report", *arguments]) == 2
    said = capsys.readouterr().err
    assert named in said and "expected" in said and said.count("\n") == 1
    assert not (tmp_path / "x.html").exists()


def test_pictures_are_reduced_to_fit_and_the_page_says_so(tmp_path, monkeypatch):
    run = make_run(tmp_path / "run", side=128)
    rough = np.random.default_rng(0).integers(0, 40, (PICTURES, 3, 128, 128), np.uint8)  # costs bytes
    arrays = {name: array if name == "thumbnails" else array // 2 + rough for name, array in load_run(run).pictures.items()}
    save_file(arrays, run / "pictures.safetensors")
    full = write_report(run)
    whole = full.stat().st_size
    assert "are reduced to" not in full.read_text(encoding="utf-8")
    for limit in (whole // 2, whole * 3 // 10):
        monkeypatch.setattr(page_module, "LIMIT", limit)
        monkeypatch.setattr(page_module, "WRITTEN", 90_000)
        page = write_report(run, out=tmp_path / "small.html")
        assert page.stat().st_size <= limit
    assert re.search(r"its 48 pictures are reduced to \d+ pixels a side, from 128", page.read_text(encoding="utf-8"))
    monkeypatch.setattr(page_module, "LIMIT", 115_000)
    with pytest.raises(UserError, match="48 pictures do not fit .* expected fewer runs"):
        write_report(run, out=tmp_path / "none.html")
    assert not (tmp_path / "none.html").exists()


def test_contact_sheet(page):
    sheet = contact_sheet(page.parent, 3)
    cells = [np.asarray(sheet)[y * 166 + 60 : y * 166 + 100, -160 + 60 : -60].mean((0, 1)) for y in range(4)]
    pictures = load_run(page.parent).pictures
    for cell, name in zip(cells, ["seen", *(f"mindtuner/{stage}" for stage in STAGES)], strict=True):
        truth = pictures[name][5][:, 24:40, 24:40].mean((1, 2))  # the last of three evenly spaced out of six
        assert np.abs(cell - truth).max() < 12
    with pytest.raises(UserError, match="n is 9"):
        contact_sheet(page.parent, 9)
    with pytest.raises(UserError, match="prior_only"):
        contact_sheet(page.parent, 2, method="prior_only")


@pytest.mark.parametrize("name", ["config.yaml", "results.json", "pictures.safetensors", "words.json", "log.jsonl"])
def test_a_missing_file_is_named(tmp_path, name):
    run = make_run(tmp_path / "run")
    (run / name).unlink()
    with pytest.raises(UserError, match=name):
        write_report(run)
    assert not (run / "report.html").exists()


@pytest.mark.parametrize(
    ("name", "keys", "value", "named"),
    [
        ("words.json", ["methods", "mindtuner", "top5"], [[0, 1, 2, 3, TESTS]] * PICTURES, "top5"),
        ("results.json", ["setting"], {"subject": 1}, "setting.simulated_brains"),
    ],
)
def test_a_broken_field_is_named(tmp_path, name, keys, value, named):
    run = make_run(tmp_path / "run")
    edit(run / name, *keys, value=value)
    with pytest.raises(UserError, match=rf"{re.escape(name)}.*{re.escape(named)}.*expected") as error:
        write_report(run)
    assert "\n" not in str(error.value)


def test_other_broken_files_are_named(tmp_path):
    run = make_run(tmp_path / "run")
    (run / "log.jsonl").write_text('{"stage": "pretrain", "losses": {}}\n')
    with pytest.raises(UserError, match=r"log\.jsonl: entry 1 has no epoch"):
        write_report(run)
    for content, named in ((b"\xff\xfe\x00", "not UTF-8"), (b"a: [1\nb", "not valid YAML")):
        make_run(run)
        (run / "config.yaml").write_bytes(content)
        with pytest.raises(UserError, match=rf"config\.yaml: {named}") as error:
            write_report(run)
        assert "\n" not in str(error.value)
    make_run(run)
    arrays = load_run(run).pictures
    save_file({name: arrays[name] for name in ("seen", "thumbnails")}, run / "pictures.safetensors")
    with pytest.raises(UserError, match="no method has pictures"):
        write_report(run)


# ---- runs that painted nothing


def text_of(page):
    """The page's words, as a reader sees them."""
    html = re.sub(r"<(style|script|pre|template).*?</\1>", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    return " ".join(re.sub(r"<[^>]+>", " ", html).split())


def test_a_run_that_painted_nothing_has_scores_and_no_gallery(tmp_path):
    run = unpaint(make_run(tmp_path / "run"))
    html, words = write_report(run).read_text(encoding="utf-8"), text_of(run / "report.html")
    for absent in ('id="gallery"', "#gallery", "<script", "<dialog", "data:image/webp", 'id="store"', "None"):
        assert absent not in html
    assert 'href="#scores">Skip to the scores' in html
    assert "painted a picture" not in words and "looked up the image and found words." in words
    assert f"retrieval over all {TESTS}; no picture was painted." in words
    assert "62.0" in words and "of images found among" in words and "two-way" not in words.lower()
    assert "Captions retrieved" in words and "0.250" in words and "Not scored" not in words
    assert [table["title"] for table in tables.of_run(load_run(run).results)["tables"]] == ["Retrieval", "Captions retrieved"]
    assert "no pictures" in words  # beside what was published
    with pytest.raises(UserError, match="painted nothing; expected a run with decode.pictures of 1 or more"):
        contact_sheet(run, 1)


@pytest.mark.parametrize("unpainted_first", [True, False])
def test_beside_a_run_with_pictures_the_gallery_is_of_that_one(tmp_path, unpainted_first):
    one, other = unpaint(make_run(tmp_path / "one", subject=2)), make_run(tmp_path / "other")
    runs_ = [one, other] if unpainted_first else [other, one]
    page = write_report(*runs_, out=tmp_path / "both.html")
    html, words = page.read_text(encoding="utf-8"), text_of(page)
    assert 'id="gallery"' in html and html.count('<option value="0" selected>Subject 1') == 1 and 'value="1"' not in html
    assert f"picture scores over the {PICTURES} in the gallery." in words and "no picture was painted." in words
    assert len(re.findall(r"data:image/webp;base64,[A-Za-z0-9+/=]+", html)) == PICTURES * 4 + 1


def test_several_runs_that_painted_nothing(tmp_path):
    folders = [unpaint(make_run(tmp_path / name, sessions=n, level=0.3 * n)) for n, name in enumerate("ab", 1)]
    page = write_report(*folders, out=tmp_path / "both.html")
    assert "Scanning time" in text_of(page) and 'id="gallery"' not in page.read_text(encoding="utf-8")
