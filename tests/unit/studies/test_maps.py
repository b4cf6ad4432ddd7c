"""Where a fingerprint lives: shares against brute-force integrated gradients, planted routes, and the verb."""

import csv
import dataclasses
import json
import shutil
import sys

import nibabel
import numpy as np
import pytest
import torch
from commands import refused
from kills import names
from networks import V, network_with
from safetensors.numpy import load_file, save_file
from scipy.spatial import ConvexHull
from scipy.stats import kstest, spearmanr
from torch.autograd.functional import jacobian

from mindtuner.claims import LIST
from mindtuner.cli import main
from mindtuner.errors import UserError
from mindtuner.formats import load, write
from mindtuner.model import BrainNetwork
from mindtuner.model.lora import LoRALinear
from mindtuner.simulation.cortex import make_sheet, smooth_fields
from mindtuner.studies import maps
from mindtuner.studies.map_figure import on_meshes, read_surface
from mindtuner.studies.maps import by_itself, gains_of, maps_of, recovery, regions, surrogates
from mindtuner.studies.routes import ROUTES, shares, weights
from mindtuner.training import save_fingerprint, save_network

IMAGES, TRIALS = 12, 24


@pytest.fixture(scope="module")
def brains():
    rng = np.random.default_rng(0)
    images = np.repeat(np.arange(IMAGES), TRIALS // IMAGES) * 3
    voxels = rng.standard_normal((TRIALS, V)).astype(np.float32)
    rois = {"early": np.arange(V) < 12, "higher": np.arange(V) >= 12, "all": np.ones(V, bool)}
    return voxels, images, voxels.mean(0) * 0.3, rois


def by_brute_force(network, voxels, images, reference, nodes=400):
    """Of each voxel its part of the decoded variance, by gradients of the whole network with respect to the voxels, at many
    points of the line: no routes, no closed forms."""
    group = np.unique(images, return_inverse=True)[1]
    x, start = torch.from_numpy(voxels).double(), torch.from_numpy(reference).double()
    network = network.double()
    said = network(x, "1").retrieval_tokens.flatten(1).detach()
    mean = torch.stack([said[torch.from_numpy(group == k)].mean(0) for k in range(IMAGES)])
    direction = mean - mean.mean(0)
    wanted = (direction / direction.square().sum())[torch.from_numpy(group)] / (TRIALS // IMAGES)
    total = torch.zeros_like(x)
    for k in range(nodes):
        at = (start + (k + 0.5) / nodes * (x - start)).requires_grad_()
        (network(at, "1").retrieval_tokens.flatten(1) * wanted).sum().backward()
        total += at.grad / nodes
    network.float()
    return (total * (x - start)).sum(0).numpy()


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"skip_head": True}, {"lora": False}, {"skip": False}, {"new_blocks": 1}], ids=str)
def test_routes_of_a_voxel_add_up_to_its_integrated_gradients(brains, options):
    voxels, images, reference, rois = brains
    network = network_with(**options)
    found = shares(network, "1", voxels, images, reference, rois, nodes=200)
    assert found.residual < 1e-3 and np.array_equal(found.images, np.unique(images))
    np.testing.assert_allclose(found.voxel.sum(0), by_brute_force(network, voxels, images, reference), atol=2e-3)
    for name, mask in rois.items():  # what images add is what voxels add
        np.testing.assert_allclose(found.by_roi[name].sum(0), found.voxel[:, mask].sum(1), atol=1e-5)
    silent = {"lora": "lora", "skip": "skip_linear"}
    for option, route in silent.items():
        size = np.abs(found.voxel[ROUTES.index(route)]).sum()
        assert size == 0 if options.get(option) is False else size > 0.01


def test_a_path_that_reads_some_voxels_alone_is_found_there_and_none_where_there_is_none(brains):
    voxels, images, reference, rois = brains
    planted = (np.arange(V) % 3 == 0).astype(float)  # in both regions
    network = network_with(lora=False)
    for path in network.skips:
        path.A.data *= torch.from_numpy(planted).float()
    drawn = maps_of(shares(network, "1", voxels, images, reference, rois))
    for name in ("skip_linear", "skip_nonlinear", "fingerprint"):
        assert (drawn[name][planted == 0] == 0).all() and (drawn[name][planted == 1] > 0).all()
    found = recovery(drawn["fingerprint"], planted, by_itself(rois), 0)["within"]
    assert found["spearman"] > 0.8 and found["p"] == 0.001 and found["null"][1] < found["spearman"]
    reading = weights(network, "1")[1]
    assert (reading[planted == 0] == 0).all() and (reading[planted == 1] > 0).all()

    silent = maps_of(shares(network_with(size=0.0), "1", voxels, images, reference, rois))
    assert not silent["fingerprint"].any() and silent["ridge"].any()


def test_lora_gain_is_the_change_of_the_derivative_over_the_derivative(brains):
    voxels, network = brains[0], network_with()
    rows, ridge = torch.from_numpy(voxels), network.ridges["1"].weight.detach()

    def through_ridge():
        """Derivative of each trial's tokens by its voxels, of the ridge's way alone: (trials, tokens, V)."""
        x0, skips = network.embed(rows, "1").detach(), [path(rows).detach() for path in network.skips]
        found = []
        for k in range(len(rows)):
            own = [skip[k, None] for skip in skips]
            found.append(jacobian(lambda x, own=own: network.decode_hidden(x[None], own).retrieval_tokens.flatten(), x0[k]))
        return torch.stack(found) @ ridge

    found = gains_of(network, "1", np.tile(voxels, (40, 1)), 0)  # 40 times as many directions
    with_lora = through_ridge()
    for part in network.modules():
        if isinstance(part, LoRALinear):
            part.scale = 0.0
    without = through_ridge()
    truth = (with_lora - without).square().sum((0, 1)) / without.square().sum((0, 1))
    np.testing.assert_allclose(found["lora_gain"], truth, rtol=0.1)
    again = gains_of(network_with(), "1", np.tile(voxels, (40, 1)), 0)
    np.testing.assert_array_equal(found["lora_gain"], again["lora_gain"])  # and LoRA was switched on again
    assert not gains_of(network_with(lora=False), "1", voxels, 0)["lora_gain"].any()
    assert not gains_of(network_with(skip=False), "1", voxels, 0)["skip_weights"].any()


def test_skip_weights_are_those_of_the_product():
    network = network_with()
    products = [path.scale * path.B @ path.A for path in network.skips]
    ridge, skip = weights(network, "1")
    np.testing.assert_allclose(skip, sum(p.square().sum(0) for p in products).sqrt().detach(), rtol=1e-4)
    np.testing.assert_allclose(ridge, network.ridges["1"].weight.detach().norm(dim=0), rtol=1e-6)


def test_recovery_of_known_maps():
    rng = np.random.default_rng(1)
    region = np.repeat([0, 1, 2], 200)
    planted = region + rng.standard_normal(600)
    noisy = planted + rng.standard_normal(600)
    true = recovery(noisy, planted, region, 0)
    assert true["between"]["spearman"] == pytest.approx(spearmanr(noisy, planted)[0])
    assert 0.5 < true["within"]["spearman"] < true["between"]["spearman"] and true["within"]["p"] == 0.001
    coarse = recovery(region + 0.01 * rng.standard_normal(600), planted, region, 0)  # knows regions, and no voxel
    assert coarse["between"]["spearman"] > 0.5 and coarse["between"]["p"] == pytest.approx(1 / 6)  # of 3! orders the best
    assert abs(coarse["within"]["spearman"]) < 0.15 and coarse["within"]["p"] > 0.05
    p = [recovery(rng.standard_normal(600), planted, region, seed)["within"]["p"] for seed in range(20)]
    assert 0.3 < np.mean(p) < 0.7 and min(p) > 0.002  # uniform
    many = np.repeat(np.arange(12), 50)
    level = rng.permutation(12)[many].astype(float)  # the same all over each region
    found = recovery(level + 0.1 * rng.standard_normal(600), level, many, 0)
    assert found["within"] is None and found["between"]["spearman"] > 0.9 and found["between"]["p"] == 0.001
    with pytest.raises(UserError, match="planted: is the same in all voxels"):
        recovery(planted, np.ones(600), region, 0)


@pytest.mark.slow
@pytest.mark.parametrize(("length", "other"), [(0.2, 0.6), (0.4, 0.4), (1.2, 0.8)])
def test_smooth_maps_that_know_nothing_of_each_other_have_a_uniform_p(monkeypatch, length, other):
    monkeypatch.setattr(maps, "PERMUTATIONS", 99)
    sheet, p, free = make_sheet(300, 1).position, [], []
    for seed in range(120):
        found = smooth_fields(sheet, 1, length, 2 * seed)[:, 0]
        planted = smooth_fields(sheet, 1, other, 2 * seed + 1)[:, 0]
        if seed % 2:  # as a patch
            planted = (planted > np.quantile(planted, 0.85)).astype(float)
        scored = recovery(found, planted, np.zeros(300, int), seed, sheet)
        p.append(scored["smooth"]["p"])
        free.append(scored["within"]["p"])
    assert kstest(p, "uniform").pvalue > 0.01 and np.mean(np.array(p) <= 0.05) <= 0.1
    assert np.mean(np.array(free) <= 0.05) > 0.2  # voxels that are permuted freely make a find of anything smooth


def test_a_smooth_map_is_found_again_beside_maps_as_smooth():
    sheet = make_sheet(300, 1).position
    planted = smooth_fields(sheet, 1, 0.3, 0)[:, 0]
    found = planted + 0.7 * np.random.default_rng(0).standard_normal(300)
    scored = recovery(found, planted, np.zeros(300, int), 0, sheet)["smooth"]
    assert scored["p"] < 0.01 and scored["null"][1] < scored["spearman"] == pytest.approx(spearmanr(found, planted)[0])
    drawn = surrogates(found, sheet, 200, 0)
    near = np.linalg.norm(sheet[:, None] - sheet, axis=2)
    for low, high in ((0.02, 0.15), (0.3, 0.5), (1, 2)):
        i, j = np.nonzero((near > low) & (near < high))
        wanted, got = np.corrcoef(found[i], found[j])[0, 1], np.mean([np.corrcoef(x[i], x[j])[0, 1] for x in drawn.T])
        assert got == pytest.approx(wanted, abs=0.12)


def test_intervals_hold_the_share_and_shrink_with_images(brains):
    voxels, images, reference, rois = brains
    found = shares(network_with(), "1", voxels, images, reference, rois)
    rows = regions(found, rois, 0)
    assert len(rows) == 12 and all(row["ci"][0] <= row["share"] <= row["ci"][1] for row in rows)
    whole = [row["share"] for row in rows if row["region"] == "all"]
    assert abs(sum(whole) - 1) == pytest.approx(found.residual, abs=1e-5)


def test_what_does_not_fit_is_refused(brains):
    voxels, images, reference, rois = brains
    with pytest.raises(ValueError, match=r"voxels: shape \(24, 30\); expected \(24, 29\)"):
        shares(network_with(), "1", voxels, images, reference[1:], rois)
    with pytest.raises(ValueError, match="images: 1; expected at least 2"):
        shares(network_with(), "1", voxels, np.zeros(TRIALS, int), reference, rois)


# ---- the verb


@pytest.fixture(scope="module")
def tuned(tmp_path_factory, simulated):
    """A tuned file that is not silent, of subject 1 of the simulated dataset, on a base that was never trained."""
    from mindtuner.config import load_config
    from mindtuner.formats import load

    folder, config = tmp_path_factory.mktemp("tuned"), load_config("quick", fingerprint={"skip": True})
    subject = load(simulated, [1]).subject(1).sessions(1)
    torch.manual_seed(0)
    base = BrainNetwork(config.model, {"subj02": 9})
    save_network(folder / "base.safetensors", base, {})
    base.add_fingerprint("subj01", subject.n_voxels, config.fingerprint)
    for name, parameter in base.named_parameters():
        if name.endswith(".B"):
            parameter.data.normal_(0, 0.1)
    save_fingerprint(
        folder / "fingerprint.safetensors",
        base,
        subject,
        config,
        {"method": "mindtuner", "simulated": True, "base_path": "base.safetensors"},
    )
    return folder, subject


def test_the_verb_writes_tables_maps_and_what_was_recovered(tuned, simulated, tmp_path, capsys):
    folder, subject = tuned
    out = tmp_path / "out"
    assert main(["fingerprint", str(folder), str(simulated), str(out)]) == 0
    told = capsys.readouterr().out
    results = json.loads((out / "results.json").read_text())
    assert sum(results["shares"].values()) == pytest.approx(1, abs=0.01) and results["residual"] < 0.01
    assert set(results["recovery"]) >= {"ridge", "lora", "fingerprint", "lora_gain"} and "by permuted regions" in told
    with (out / "voxels.csv").open(newline="") as file:
        voxels = list(csv.DictReader(file))
    assert len(voxels) == subject.n_voxels
    assert sum(float(row["ridge"]) for row in voxels) == pytest.approx(results["shares"]["ridge"], abs=1e-4)
    with (out / "regions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["region"] for row in rows} == set(subject.rois) and len(rows) == 4 * len(subject.rois)
    assert (out / "fingerprint.png").stat().st_size > 10_000
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    assert main(["fingerprint", str(folder), str(simulated), str(out), "--force"]) == 0
    after = {path.name: path.read_bytes() for path in out.iterdir()}
    assert {name for name in before if before[name] != after[name]} <= {
        LIST,
        "config.yaml",
        "results.json",
        "fingerprint.png",
    }


def test_a_mask_gives_a_volume_and_without_places_voxels_stand_by_region(tuned, simulated, tmp_path):
    folder, subject = tuned
    inside = np.zeros((9, 10, 11), bool)
    inside.ravel()[np.random.default_rng(0).permutation(inside.size)[: subject.n_voxels]] = True
    mask, out = tmp_path / "mask.nii.gz", tmp_path / "out"
    labels = np.where(inside, 5, 2).astype(np.int16)  # of two regions, one is the subject's
    labels[~inside & (np.arange(9)[:, None, None] > 4)] = -1
    nibabel.save(nibabel.Nifti1Image(labels, np.diag([2.0, 2, 2, 1])), mask)
    assert main(["fingerprint", str(folder), str(simulated), str(out), "--mask", str(mask), "--mask-values", "5"]) == 0
    volume = nibabel.load(out / "fingerprint.nii.gz")
    with (out / "voxels.csv").open(newline="") as file:
        told = [float(row["fingerprint"]) for row in csv.DictReader(file)]
    np.testing.assert_allclose(volume.get_fdata()[inside], told, atol=1e-5)
    assert not volume.get_fdata()[~inside].any() and np.array_equal(volume.affine, np.diag([2.0, 2, 2, 1]))

    real = tmp_path / "real"  # a dataset without a truth
    shutil.copytree(simulated, real, ignore=shutil.ignore_patterns("truth", "cache"))
    assert main(["fingerprint", str(folder), str(real), str(tmp_path / "flat")]) == 0
    assert json.loads((tmp_path / "flat" / "results.json").read_text())["recovery"] == {}
    assert (tmp_path / "flat" / "fingerprint.png").stat().st_size > 5_000


def test_the_datasets_own_mask_is_found_and_tables_need_nothing_that_draws(tuned, simulated, tmp_path, capsys, monkeypatch):
    folder, subject = tuned
    write(tmp_path / "lab", load(simulated, [1]), form="nifti")
    inside = nibabel.load(tmp_path / "lab" / "sub-01" / "mask.nii.gz").get_fdata() > 0
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["fingerprint", str(folder), str(tmp_path / "lab"), str(tmp_path / "out")]) == 0
    assert "No picture: package matplotlib: cannot be imported" in capsys.readouterr().out
    assert names(tmp_path / "out") == {
        "config.yaml",
        "inputs.json",
        "results.json",
        "voxels.csv",
        "regions.csv",
        "fingerprint.nii.gz",
    }
    with (tmp_path / "out" / "voxels.csv").open(newline="") as file:
        told = [float(row["fingerprint"]) for row in csv.DictReader(file)]
    assert len(told) == subject.n_voxels == inside.sum()
    np.testing.assert_allclose(nibabel.load(tmp_path / "out" / "fingerprint.nii.gz").get_fdata()[inside], told, atol=1e-5)


def sphere(path, vertices):
    """A GIFTI mesh of points on a sphere and the triangles of their hull."""
    points = np.random.default_rng(vertices).normal(size=(vertices, 3))
    points = (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32)
    arrays = [
        nibabel.gifti.GiftiDataArray(data, intent=f"NIFTI_INTENT_{kind}")
        for data, kind in ((points, "POINTSET"), (ConvexHull(points).simplices.astype(np.int32), "TRIANGLE"))
    ]
    nibabel.save(nibabel.gifti.GiftiImage(darrays=arrays), path)
    return path


def test_meshes_give_a_map_of_each_hemisphere(tuned, simulated, tmp_path, capsys):
    folder, subject = tuned
    out, few = tmp_path / "out", subject.n_voxels // 3
    left, right = sphere(tmp_path / "l.surf.gii", few), sphere(tmp_path / "r.surf.gii", subject.n_voxels - few)
    assert main(["fingerprint", str(folder), str(simulated), str(out), "--surface", str(left), str(right)]) == 0
    halves = [nibabel.load(out / f"fingerprint.{side}.func.gii").agg_data() for side in ("left", "right")]
    with (out / "voxels.csv").open(newline="") as file:
        told = [float(row["fingerprint"]) for row in csv.DictReader(file)]
    assert len(halves[0]) == few
    np.testing.assert_allclose(np.concatenate(halves), told, atol=1e-5)
    assert (out / "fingerprint.png").stat().st_size > 50_000
    refused(
        capsys,
        ["fingerprint", folder, simulated, tmp_path / "a", "--surface", left, left],
        f"{left}: has {few} vertices",
        f"expected {subject.n_voxels} in all",
    )
    (tmp_path / "no.surf.gii").write_text("no mesh")
    refused(
        capsys,
        ["fingerprint", folder, simulated, tmp_path / "a", "--surface", left, tmp_path / "no.surf.gii"],
        "no.surf.gii: cannot be read",
        "expected a GIFTI surface mesh",
    )
    refused(
        capsys,
        ["fingerprint", folder, simulated, tmp_path / "a", "--surface", left, out / "fingerprint.left.func.gii"],
        "fingerprint.left.func.gii: holds no mesh; expected points and triangles",
    )
    with pytest.raises(UserError, match="expected 32492 each, the fsLR-32k meshes"):
        read_surface([left, right], np.arange(subject.n_voxels), subject.n_voxels)
    on_fslr = on_meshes(np.arange(3.0), ([(np.zeros((4, 3)), None)] * 2, np.array([1, 6, 4])))
    np.testing.assert_array_equal(on_fslr, [[np.nan, 0, np.nan, np.nan], [2, np.nan, 1, np.nan]])


def test_bad_input_is_one_line(tuned, simulated, tmp_path, capsys):
    folder, subject = tuned
    base = folder / "base.safetensors"
    refused(
        capsys, ["fingerprint", base, simulated, tmp_path / "a"], f"{base}: is a base; expected what mindtuner tune wrote"
    )
    (tmp_path / "mask.nii").write_bytes(b"no image")
    refused(
        capsys,
        ["fingerprint", folder, simulated, tmp_path / "a", "--mask", tmp_path / "mask.nii"],
        "mask.nii: cannot be read",
        "expected a NIfTI mask",
    )
    nibabel.save(nibabel.Nifti1Image(np.ones((2, 2, 2), np.uint8), np.eye(4)), tmp_path / "small.nii")
    refused(
        capsys,
        ["fingerprint", folder, simulated, tmp_path / "a", "--mask", tmp_path / "small.nii"],
        f"8 voxels above 0; expected three axes and {subject.n_voxels}, the subject's",
    )
    masked = ["fingerprint", folder, simulated, tmp_path / "a", "--mask", tmp_path / "small.nii"]
    refused(capsys, [*masked, "--mask-values", "2,3"], "and 0 voxels of [2.0, 3.0]; expected three axes")
    refused(capsys, [*masked, "--mask-values", "V1"], "--mask-values: is 'V1'; expected numbers such as 1,2")
    refused(capsys, [*masked[:4], "--mask-values", "1"], "--mask-values: says nothing without a mask; expected --mask")
    refused(capsys, ["fingerprint", folder, simulated, tmp_path / "a", "--truth", tmp_path], "subj01.safetensors: not found")
    planted = load_file(simulated / "truth" / "subj01.safetensors")
    save_file({"fingerprint_share": planted["fingerprint_share"][1:]}, tmp_path / "subj01.safetensors")
    refused(
        capsys,
        ["fingerprint", folder, simulated, tmp_path / "a", "--truth", tmp_path],
        f"fingerprint_share is ({subject.n_voxels - 1},); expected ({subject.n_voxels},)",
    )
    assert not (tmp_path / "a").exists()


def test_where_nothing_was_planted_no_map_is_scored(tuned, simulated, few_cutouts, tmp_path, capsys):
    from worlds import TINY as SMALL

    from mindtuner.simulation.simulate import simulate

    folder, _ = tuned
    without = tmp_path / "without"
    simulate(without, dataclasses.replace(SMALL, fingerprint=0.0))
    shutil.rmtree(without / "cache", ignore_errors=True)
    assert main(["fingerprint", str(folder), str(without), str(tmp_path / "a")]) == 0
    assert "nothing was planted that differs between voxels, so no map is scored" in capsys.readouterr().out
    assert json.loads((tmp_path / "a" / "results.json").read_text())["recovery"] == {}
    # beside the truth of the same sheet where something was planted, a network that was never tuned finds none of it
    assert main(["fingerprint", str(folder), str(without), str(tmp_path / "b"), "--truth", str(simulated / "truth")]) == 0
    found = json.loads((tmp_path / "b" / "results.json").read_text())["recovery"]["fingerprint"]
    assert found["between"]["p"] > 0.05 and found["within"] is None
