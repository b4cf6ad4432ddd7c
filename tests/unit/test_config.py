"""Settings read strictly, files whole or absent, folders that never mix two runs, seeds that never collide by accident."""

import dataclasses
import errno
import os

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from mindtuner import config, runtime
from mindtuner.config import Config, SimulateConfig, as_dict, load_config
from mindtuner.errors import UserError
from mindtuner.files import atomic_path, read_json, write_json, write_text
from mindtuner.model.prior import TIMESTEPS

# ---- config


@pytest.mark.parametrize("name", ["demo", "quick"])
def test_carried_configs_read_and_fit_the_towers(name):
    found = load_config(name)
    assert isinstance(found, Config)
    assert (found.model.tokens, found.model.width, found.model.text_width) == (16, 128, 384)
    assert (found.model.latent_channels, found.model.latent_side) == (8, 16)
    assert (found.model.feature_positions, found.model.feature_width) == (16, 112)
    assert TIMESTEPS % found.decode.prior_steps == 0
    assert 1 <= found.target_subject <= found.simulate.subjects and found.tuning_sessions <= found.simulate.sessions


def test_paper_size_is_the_papers():
    found = load_config("paper")
    model = found.model
    assert (model.backbone, model.hidden, model.blocks, model.backbone_dropout) == ("residual", 4096, 4, 0.15)
    assert (model.tokens, model.width, model.text_width) == (256, 1664, 1280)
    assert (model.prior_depth, model.prior_heads, model.prior_head_dim) == (6, 32, 52)
    assert (model.lowlevel_channels, model.lowlevel_side) == ((128, 64, 32), 7)
    assert (model.latent_channels, model.latent_side, model.feature_positions, model.feature_width) == (4, 28, 49, 512)
    assert (found.fingerprint.rank, found.fingerprint.alpha, found.fingerprint.skip_head) == (8, 8.0, False)
    for phase in (found.pretrain, found.tune):
        assert (phase.lr, phase.weight_decay, phase.ridge_weight_decay, phase.epochs) == (3e-4, 1e-2, 1e-2, 150)
        assert phase.warmup * 150 == pytest.approx(2) and phase.mixco_share * 3 == pytest.approx(1)
        weights = (phase.prior_weight, phase.clip_weight, phase.lowlevel_weight, phase.softcont_weight, phase.skip_weight)
        assert weights == (30, 1, 0.5, 0.1, 1.5) and phase.regression_weight == 0
    assert found.pivot.temperature == 0.006
    assert (found.decode.prior_steps, found.decode.guidance) == (20, 5.0)
    assert round(25 * found.decode.refine_start) == found.decode.refine_steps == 12


def config_with(found, at, value, path):
    """Write ``found`` with another value at the keys ``at``."""
    raw = as_dict(found)
    inner = raw
    for key in at[:-1]:
        inner = inner[key]
    inner[at[-1]] = value
    path.write_text(yaml.safe_dump(raw))
    return path


@pytest.mark.parametrize(
    "at, value, message",
    [
        (("model", "latent_side"), 30, "model.latent_side is 30; expected 28 or 56"),
        (("model", "lowlevel_side"), 6, "model.latent_side is 28; expected 24 or 48"),
        (("model", "feature_positions"), 50, r"model.feature_positions is 50; expected lowlevel_side ** 2 = 49"),
        (("model", "lowlevel_channels"), [129, 64, 32], "model.lowlevel_channels is (129, 64, 32); expected positive widths"),
        (("model", "lowlevel_channels"), [], "model.lowlevel_channels is (); expected positive widths"),
        (("model", "hidden"), 0, "model.hidden is 0; expected at least 1"),
        (("model", "width"), 2, "model.width is 2; expected at least 4"),
        (("model", "backbone_dropout"), 1.0, "model.backbone_dropout is 1.0; expected 0 to 0.99"),
        (("model", "backbone"), "linear", "model.backbone is 'linear'; expected residual or affine"),
        (("model", "backbone"), "affine", "model.blocks is 4; expected 0 with the affine backbone"),
        (("model", "blocks"), 0, "model.blocks is 0; expected at least 1"),
        (("fingerprint", "rank"), 0, "fingerprint.rank is 0; expected at least 1"),
        (("fingerprint", "new_blocks"), -1, "fingerprint.new_blocks is -1; expected at least 0"),
        (("fingerprint",), {"skip": False, "skip_head": True}, "fingerprint.skip_head is True; expected false"),
        (("tune", "lr"), float("nan"), "tune.lr is nan; expected at least 0"),
        (("tune", "batch_per_subject"), 0, "tune.batch_per_subject is 0; expected at least 1"),
        (("pretrain", "warmup"), 2, "pretrain.warmup is 2; expected 0 to 1"),
        (("pivot", "temperature"), 0, "pivot.temperature is 0; expected at least 1e-06"),
        (("decode", "prior_steps"), 30, "decode.prior_steps is 30; expected a divisor of the prior's 100 timesteps"),
        (("target_subject",), 0, "target_subject is 0; expected at least 1"),
        (("tuning_sessions",), 0, "tuning_sessions is 0; expected at least 1"),
    ],
)
def test_sizes_that_cannot_be_are_named_with_their_file(tmp_path, at, value, message):
    path = config_with(load_config("paper"), at, value, tmp_path / "wrong.yaml")
    with pytest.raises(UserError) as error:
        load_config(path)
    assert str(error.value).startswith(f"{path}: {message}") and "\n" not in str(error.value)


def test_a_config_survives_yaml(tmp_path):
    found = dataclasses.replace(load_config("quick"), seed=7, target_subject=2)
    path = tmp_path / "again.yaml"
    path.write_text(yaml.safe_dump(as_dict(found)))
    assert load_config(path) == found


def test_whole_numbers_serve_as_floats(tmp_path):
    raw = as_dict(load_config("quick"))
    raw["simulate"]["noise"] = 2
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(raw))
    noise = load_config(tmp_path / "c.yaml").simulate.noise
    assert noise == 2.0 and isinstance(noise, float)


@pytest.mark.parametrize(
    "at, value, message",
    [
        (("simulate", "subject"), 8, "unknown field simulate.subject"),
        (("colour",), 1, "unknown field colour"),
        (("simulate", "subjects"), 2.5, "simulate.subjects is 2.5; expected int"),
        (("simulate", "subjects"), True, "simulate.subjects is True; expected int"),
        (("simulate", "noise"), "much", "simulate.noise is 'much'; expected float"),
        (("fingerprint", "lora"), 1, "fingerprint.lora is 1; expected bool"),
        (("model", "lowlevel_channels"), 32, "model.lowlevel_channels is 32; expected a list"),
        (("model", "lowlevel_channels"), [32, "x"], "model.lowlevel_channels is 'x'; expected int"),
        (("model",), None, "model holds a NoneType; expected a mapping"),
        (("tune",), [1], "tune holds a list; expected a mapping"),
    ],
)
def test_a_wrong_field_is_named_with_its_file(tmp_path, at, value, message):
    path = config_with(load_config("quick"), at, value, tmp_path / "wrong.yaml")
    with pytest.raises(UserError) as error:
        load_config(path)
    assert message in str(error.value) and str(path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("section", ["fingerprint", "tune", "pivot", "decode"])
def test_a_missing_field_comes_from_the_base(tmp_path, section):
    quick, demo = load_config("quick"), load_config("demo")
    for field in dataclasses.fields(getattr(quick, section)):
        raw = as_dict(quick) | {"base": "demo"}
        del raw[section][field.name]
        (tmp_path / "c.yaml").write_text(yaml.safe_dump(raw))
        changed = {field.name: getattr(getattr(demo, section), field.name)}
        expected = dataclasses.replace(quick, **{section: dataclasses.replace(getattr(quick, section), **changed)})
        assert load_config(tmp_path / "c.yaml") == expected


def sections():
    return [(at, section) for at, section in vars(load_config("demo")).items() if dataclasses.is_dataclass(section)]


@pytest.mark.parametrize("at, section", sections())
def test_every_field_is_strict(at, section):
    """True is not 1, "3" is not 3, 1 is not true; a whole number serves where a float is wanted, and comes out as one."""
    demo = load_config("demo")
    for field in dataclasses.fields(section):
        value = getattr(section, field.name)
        wrong = [None, "3", b"3", [1.5], {"a": 1}]
        wrong += [1, 0.0] if isinstance(value, (bool, str)) else [True, False]
        wrong += [2.0, 2.5] if type(value) is int else []
        for other in wrong:
            with pytest.raises(UserError, match=rf"^config: {at}\.{field.name} .*; expected") as error:
                load_config(demo, **{at: {field.name: other}})
            assert "\n" not in str(error.value)
            with pytest.raises(ValueError, match=rf"^{field.name} "):
                dataclasses.replace(section, **{field.name: other})
        if type(value) is float and at != "simulate":  # which holds its knobs to narrower limits
            for other in (float("nan"), float("inf")):
                with pytest.raises(UserError, match=rf"{at}\.{field.name} is {other}; expected"):
                    load_config(demo, **{at: {field.name: other}})
            assert type(getattr(dataclasses.replace(section, **{field.name: 0.5}), field.name)) is float


def test_what_python_makes_is_checked_in_one_line_that_names_the_field():
    fit = load_config("demo").tune
    for make, message in (
        (lambda: dataclasses.replace(fit, epochs="3"), "epochs is '3'; expected float"),
        (lambda: dataclasses.replace(fit, lr=-1), "lr is -1; expected at least 0"),
        (lambda: dataclasses.replace(fit, warmup=2), "warmup is 2; expected 0 to 1"),
        (lambda: config.FingerprintConfig(True, True, False, -1, 0), "rank is 0; expected at least 1"),
        (lambda: config.FingerprintConfig(rang=3), "unknown field rang"),
        (lambda: config.PivotConfig(1, 2, 3), "missing field weight_decay"),
        (lambda: dataclasses.replace(load_config("demo"), seed=1.5), "seed is 1.5; expected int"),
        (lambda: dataclasses.replace(load_config("demo"), tune=None), "tune holds a NoneType; expected a mapping"),
    ):
        with pytest.raises(ValueError) as error:
            make()
        assert str(error.value) == message
    with pytest.raises(dataclasses.FrozenInstanceError):
        fit.epochs = 3


def test_configs_stay_dataclasses():
    import pickle

    found = load_config("demo")
    assert dataclasses.replace(found, seed=3).tune is found.tune
    assert pickle.loads(pickle.dumps(found)) == found and len({found, load_config("demo")}) == 1
    assert [field.name for field in dataclasses.fields(found)][0] == "simulate"
    assert type(dataclasses.asdict(found)["model"]["lowlevel_channels"]) is tuple


# ---- only what differs


@pytest.mark.parametrize("base", [None, "demo", "quick", "paper"])
def test_a_file_gives_only_what_differs_from_a_base(tmp_path, base):
    said = {"tune": {"epochs": 3}, "seed": 5} | ({} if base is None else {"base": base})
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(said))
    whole = load_config(base or "demo")
    expected = dataclasses.replace(whole, tune=dataclasses.replace(whole.tune, epochs=3.0), seed=5)
    assert load_config(tmp_path / "c.yaml") == load_config(said) == expected
    assert load_config(base or "demo", tune={"epochs": 3}, seed=5) == expected
    assert load_config(whole, tune=expected.tune, seed=5) == expected and load_config(whole) == whole


def test_a_base_may_be_a_file_beside_it_that_has_a_base_itself(tmp_path):
    (tmp_path / "lab").mkdir()
    (tmp_path / "lab" / "first.yaml").write_text("base: quick\ntune: {epochs: 3, lr: 0.1}\n")
    (tmp_path / "second.yaml").write_text("base: lab/first.yaml\ntune: {lr: 0.2}\n")
    found = load_config(tmp_path / "second.yaml")
    assert (found.tune.epochs, found.tune.lr, found.model) == (3.0, 0.2, load_config("quick").model)
    assert load_config({"base": str(tmp_path / "second.yaml"), "seed": 2}) == dataclasses.replace(found, seed=2)


@pytest.mark.parametrize(
    "text, message",
    [
        ("base: demos", "base is 'demos': not found; expected one of demo, paper, paper_size, quick or a .yaml file"),
        ("base: 3", "base is 3; expected the name of a config or a .yaml file"),
        ("base: [demo]", "base is ['demo']; expected the name of a config or a .yaml file"),
        ("tune: {epoch: 3}", "unknown field tune.epoch; did you mean tune.epochs?"),
        ("tunes: {}", "unknown field tunes; did you mean tune?"),
        ("batch_per_subjects: 3", "unknown field batch_per_subjects; did you mean pretrain.batch_per_subject?"),
        ("tune: {target_subjects: 3}", "unknown field tune.target_subjects; did you mean target_subject?"),
        ("pivot: {1: 3}", "unknown field pivot.1; expected one of epochs, batch, lr, weight_decay, temperature"),
        ("tune:", "tune holds a NoneType; expected a mapping"),
        ("pretrain: {similar_voxels: 3}", "pretrain.similar_voxels is 3; expected 0: tuning alone has it"),
        ("pretrain: {start: closed_form, train_ridge: false}", "pretrain.train_ridge is False; expected true: tuning alone"),
    ],
)
def test_what_differs_is_refused_by_file_and_field(tmp_path, text, message):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as error:
        load_config(path)
    assert str(error.value).startswith(f"{path}: {message}") and "\n" not in str(error.value)


def test_a_config_that_builds_on_itself(tmp_path):
    (tmp_path / "c.yaml").write_text("base: c.yaml")
    with pytest.raises(UserError, match=r"c\.yaml: base is '.*c\.yaml', which builds on it in turn; expected another"):
        load_config(tmp_path / "c.yaml")
    (tmp_path / "a.yaml").write_text("base: b.yaml")
    (tmp_path / "b.yaml").write_text("base: a.yaml")
    with pytest.raises(UserError, match=r"b\.yaml: base is '.*a\.yaml', which builds on it in turn"):
        load_config(tmp_path / "a.yaml")


def test_a_whole_config_of_an_earlier_run_means_what_it_meant(tmp_path):
    """Fields that came later are at their default, which is what the run did, and not at the demo's."""
    raw = as_dict(load_config("quick"))
    for section, field in (
        ("tune", "start"),
        ("tune", "similar_voxels"),
        ("tune", "train_ridge"),
        ("tune", "cross_fitted"),
        ("decode", "neighbours"),
        ("decode", "corrections"),
    ):
        del raw[section][field]
    for with_simulate in (True, False):
        if not with_simulate:
            del raw["simulate"]
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(raw))
        found = load_config(tmp_path / "config.yaml")
        assert (found.tune.start, found.tune.similar_voxels) == ("random", 0) != (load_config("demo").tune.start, 0)
        assert (found.decode.neighbours, found.decode.corrections) == (0, 1)
        assert found.model == load_config("quick").model
    assert found.simulate == SimulateConfig()


def test_rivals_tune_as_the_method_does_or_by_a_section_of_their_own():
    paper, demo = load_config("paper"), load_config("demo")
    assert paper.ridge_only is None and paper.fitting("ridge_only") is paper.tune is paper.fitting("shuffled_brain")
    assert demo.fitting("ridge_only") is demo.ridge_only and demo.fitting("from_scratch") is demo.pretrain
    own = load_config(demo, full_finetune={"epochs": 5})
    assert own.fitting("full_finetune") == dataclasses.replace(demo.full_finetune, epochs=5) and own.tune == demo.tune
    assert load_config(demo, ridge_only=None).fitting("ridge_only") is not None
    swift = load_config({"base": "paper", "full_finetune": {"epochs": 5}, "tune": {"lr": 1e-3}})  # in whatever order
    assert swift.full_finetune == dataclasses.replace(swift.tune, epochs=5) and swift.tune.lr == 1e-3
    assert load_config(paper, ridge_only={"epochs": 5}).ridge_only == dataclasses.replace(paper.tune, epochs=5)
    for changes, message in (
        ({"tune": {"start": "random"}}, "tune.train_ridge is False; expected true with start: random"),
        ({"pretrain": {"cross_fitted": 0.5}}, "pretrain.cross_fitted is 0.5; expected 0: tuning alone has it"),
    ):
        with pytest.raises(UserError, match=message):
            load_config(demo, **changes)


def test_no_pictures_is_a_config():
    assert load_config({"decode": {"pictures": 0}}).decode.pictures == 0
    with pytest.raises(UserError, match="decode.pictures is -1; expected at least 0"):
        load_config({"decode": {"pictures": -1}})


@pytest.mark.parametrize("text", ["", "- 1\n", "a: [", "a: b: c", "\x00", "just words"])
def test_a_file_that_is_no_config_is_refused(tmp_path, text):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(UserError, match=r"c\.yaml") as error:
        load_config(tmp_path / "c.yaml")
    assert "\n" not in str(error.value)


def test_bytes_that_are_no_text_are_refused(tmp_path):
    (tmp_path / "c.yaml").write_bytes(b"\xff\xfe\x80")
    with pytest.raises(UserError, match=r"c\.yaml: not UTF-8 text"):
        load_config(tmp_path / "c.yaml")


def test_a_config_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match="config 'paper2': not found; expected one of demo, paper, paper_size, quick"):
        load_config("paper2")
    with pytest.raises(UserError, match=r"none\.yaml: not found"):
        load_config(tmp_path / "none.yaml")
    (tmp_path / "folder.yaml").mkdir()
    with pytest.raises(UserError, match=r"folder\.yaml: is a folder"):
        load_config(tmp_path / "folder.yaml")


def test_yaml_cannot_run_code(tmp_path):
    (tmp_path / "c.yaml").write_text("seed: !!python/object/apply:os.mkdir ['%s']\n" % (tmp_path / "made"))
    with pytest.raises(UserError, match="not valid YAML"):
        load_config(tmp_path / "c.yaml")
    assert not (tmp_path / "made").exists()


def test_defaults_of_the_simulator_pass_its_checks():
    from mindtuner.simulation.simulate import check_knobs

    for knobs in (SimulateConfig(), *(load_config(name).simulate for name in ("demo", "quick", "paper"))):
        check_knobs(knobs)
    assert config.SimulateConfig().shared_images >= 300


# ---- files


def test_a_file_appears_only_once_it_is_whole(tmp_path):
    path = tmp_path / "deep" / "er" / "file.txt"
    with atomic_path(path) as part:
        part.write_text("half")
        assert not path.exists() and part.parent == path.parent
    assert path.read_text() == "half" and list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("fault", [RuntimeError, KeyboardInterrupt, UserError])
def test_a_fault_leaves_the_old_file_and_no_trace(tmp_path, fault):
    path = tmp_path / "file.txt"
    write_text(path, "old")
    with pytest.raises(fault), atomic_path(path) as part:
        part.write_text("new")
        raise fault
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_one_line(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(UserError, match="file.txt: cannot be written .*No space left") as error:
        write_text(tmp_path / "file.txt", "x")
    assert "\n" not in str(error.value) and not list(tmp_path.iterdir())


def test_a_folder_that_is_a_file_is_one_line(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="cannot be written"):
        write_text(tmp_path / "file" / "inside.txt", "x")


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
        max_leaves=8,
    )
)
@settings(max_examples=40, deadline=None)
def test_json_comes_back(tmp_path_factory, value):
    path = tmp_path_factory.mktemp("json") / "v.json"
    write_json(path, {"value": value})
    assert read_json(path) == {"value": value}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_json_has_no_nan(tmp_path, value):
    with pytest.raises(ValueError):
        write_json(tmp_path / "v.json", {"value": value})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text, message", [(None, "not found"), ("{", "not valid JSON"), ("[1]", "holds a list")])
def test_json_that_is_none_is_named(tmp_path, text, message):
    if text is not None:
        (tmp_path / "v.json").write_text(text)
    with pytest.raises(UserError, match=rf"v\.json: {message}"):
        read_json(tmp_path / "v.json")


# ---- runtime


@given(st.integers(0, 10**7), st.text(max_size=20), st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_seeds_depend_on_every_name(seed, name, number):
    found = runtime.derive_seed(seed, name, number)
    assert found == runtime.derive_seed(seed, name, number) and 0 <= found < 2**32
    assert (
        len(
            {
                found,
                runtime.derive_seed(seed + 1, name, number),
                runtime.derive_seed(seed, name, number + 1),
                runtime.derive_seed(seed, name + "x", number),
            }
        )
        == 4
    )


def test_seed_everything_seeds_all_three():
    import random

    def draw():
        runtime.seed_everything(2**40 + 5)
        return random.random(), np.random.random(), torch.rand(1).item()

    assert draw() == draw()


def test_peak_memory_is_megabytes():
    before = runtime.peak_memory_mb()
    ballast = np.ones(30 * 2**20, np.uint8)
    assert 50 < before <= runtime.peak_memory_mb() < 64_000 and ballast[0] == 1


def test_measuring_the_number_format_moves_no_random_stream():
    """Else the first training of a process would differ from the second with the same seed."""
    runtime.fast_dtype.cache_clear()
    torch.manual_seed(3)
    runtime.fast_dtype()
    drawn = torch.rand(2)
    torch.manual_seed(3)
    assert torch.equal(torch.rand(2), drawn)


def test_the_number_format_is_measured_once():
    assert runtime.fast_dtype() in (torch.float32, torch.bfloat16)
    with runtime.autocast(torch.float32):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32
    with runtime.autocast(torch.bfloat16):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16
