"""Folders that one run owns: what `force` may delete, what goes on after a kill, and one process at a time."""

import json
import os
import shutil
import subprocess
import sys
import textwrap

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kills import names, torn

from mindtuner import claims, temporary
from mindtuner.claims import LIST, LOCK, claim_folder, empty, finish, goes_on, releasing, remove
from mindtuner.errors import UserError
from mindtuner.files import atomic_path, filled, write_text


def run(folder, *files, settings="a", kind="run", force=False, over=False):
    """A run that writes these files."""
    with releasing():
        left = claim_folder(folder, settings, kind, force)
        for name in files:
            write_text(folder / name, name)
        if over:
            finish(folder)
    return left


def everything(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_new_folder_is_claimed_and_left_as_it_was_where_nothing_is_written(tmp_path):
    assert not run(tmp_path / "a" / "b")
    assert not list((tmp_path / "a" / "b").iterdir())


def test_a_run_goes_on_where_settings_are_the_same(tmp_path):
    assert not run(tmp_path, "x")
    assert run(tmp_path, "y") and names(tmp_path) == {"x", "y"}
    with pytest.raises(UserError, match="holds another run; expected an empty folder"):
        run(tmp_path, settings="b")
    assert names(tmp_path) == {"x", "y"}
    assert not run(tmp_path, "z", settings="b", force=True) and names(tmp_path) == {"z"}


def test_settings_that_stand_in_the_folder_count(tmp_path):
    run(tmp_path, "config.yaml", settings="config.yaml")  # whose contents are its name
    assert goes_on(tmp_path, "config.yaml")
    (tmp_path / "config.yaml").write_text("edited")
    with pytest.raises(UserError, match="holds another run"):
        goes_on(tmp_path, "config.yaml")
    assert goes_on(tmp_path, "edited")


def test_a_run_that_is_over_is_refused(tmp_path):
    run(tmp_path, "x", over=True)
    with pytest.raises(UserError, match="holds another run"):
        run(tmp_path)
    assert not run(tmp_path, force=True)


@pytest.mark.parametrize("foreign", ["thesis.tex", ".git", "src/main.c", "config.yaml.bak", "data/betas.npy", "cache/a.bin"])
def test_force_deletes_nothing_that_was_not_written_by_the_run(tmp_path, foreign):
    run(tmp_path, "config.yaml", "data/x", "pictures/a.png", settings="config.yaml")
    (tmp_path / foreign).parent.mkdir(exist_ok=True)
    (tmp_path / foreign).write_text("mine")
    before = everything(tmp_path)
    with pytest.raises(UserError, match=rf"holds {foreign}, which is not on the list of what its run wrote"):
        run(tmp_path, settings="b", force=True)
    assert everything(tmp_path) == before
    assert run(tmp_path, settings="config.yaml")  # going on touches nothing of it


@pytest.mark.parametrize("force", [False, True])
def test_a_folder_without_a_list_is_refused(tmp_path, force):
    """A run of an earlier version, or a dataset: the names alone say nothing."""
    for name in ("config.yaml", "results.json", "betas_all_subj01_fp32_renorm.hdf5", "wds/subj01/train/0.tar"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("measured")
    before = everything(tmp_path)
    with pytest.raises(
        UserError, match="empty it by hand, or choose another" if force else "holds another run, or other files"
    ):
        run(tmp_path, force=force)
    assert everything(tmp_path) == before


@pytest.mark.parametrize("kinds", [("run", "simulate"), ("convert nsd", "run"), ("convert nsd", "simulate")])
def test_one_kind_of_folder_is_never_replaced_by_another(tmp_path, kinds):
    run(tmp_path, "betas.npy", kind=kinds[0])
    with pytest.raises(UserError, match=f"holds what mindtuner {kinds[0]} wrote"):
        run(tmp_path, kind=kinds[1], force=True)
    assert names(tmp_path) == {"betas.npy"}


def test_a_link_in_a_run_is_not_followed(tmp_path):
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "a.png").write_text("mine")
    run(tmp_path / "run", "pictures/a.png")
    shutil.rmtree(tmp_path / "run" / "pictures")
    (tmp_path / "run" / "pictures").symlink_to(tmp_path / "kept")
    with pytest.raises(UserError, match="holds pictures, which is not on the list"):
        run(tmp_path / "run", settings="b", force=True)
    assert (tmp_path / "kept" / "a.png").read_text() == "mine"


def test_a_list_cannot_name_what_lies_outside(tmp_path):
    (tmp_path / "mine").write_text("mine")
    run(tmp_path / "run", "x")
    with open(tmp_path / "run" / LIST, "a") as file:
        for entry in ({"files": "../mine"}, {"files": str(tmp_path / "mine")}, {"folders": ".."}, {"folders": str(tmp_path)}):
            file.write(json.dumps(entry) + "\n")
    assert run(tmp_path / "run", "y")
    assert not run(tmp_path / "run", settings="b", force=True)
    assert (tmp_path / "mine").read_text() == "mine"


def test_a_run_may_be_a_link(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "disk")
    run(tmp_path / "run", "x")
    assert run(tmp_path / "run", "y")
    assert not run(tmp_path / "run", "z", settings="b", force=True)
    assert (tmp_path / "run").is_symlink() and names(tmp_path / "disk") == {"z"}
    (tmp_path / "nowhere").symlink_to(tmp_path / "missing")
    for force in (False, True):
        with pytest.raises(UserError, match="nowhere: is a link to nothing; expected a folder"):
            run(tmp_path / "nowhere", force=force)


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "file").write_text("x")
    for force in (False, True):
        with pytest.raises(UserError, match="is a file; expected a folder"):
            run(tmp_path / "file", force=force)
    with pytest.raises(UserError, match="cannot be written"):
        run(tmp_path / "file" / "inside")


def test_a_full_disk_is_named(tmp_path, monkeypatch):
    with releasing():
        claim_folder(tmp_path, "a")
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", lambda file, data: len(data) - 1)
            for act in (lambda: write_text(tmp_path / "x", "x"), lambda: finish(tmp_path)):
                with pytest.raises(UserError, match=f"{LIST}: cannot be written .No space left"):
                    act()
        write_text(tmp_path / "x", "x")
    assert run(tmp_path) and names(tmp_path) == {"x"}


def test_it_is_said_what_is_deleted(tmp_path, caplog):
    run(tmp_path, "config.yaml", "data/x", "data/y", settings="config.yaml")
    with caplog.at_level("INFO", "mindtuner"):
        run(tmp_path, settings="b", force=True)
    assert f"{tmp_path}: deleting an earlier run, 3 files, 0.0 MB: config.yaml, data" in caplog.text


def test_a_folder_claimed_within_a_run_is_the_runs(tmp_path):
    """As a demo's simulated data: deleted with the run, or by it; a folder of the same name that it did not claim is not."""

    def outer(force=False):
        with releasing():
            left = claim_folder(tmp_path, "a", force=force)
            run(tmp_path / "data", "betas", "masks", kind="simulate")
            write_text(tmp_path / "data" / "cache", "cache")  # after the inner claim has ended
            write_text(tmp_path / "base", "base")
            return left

    outer()
    assert outer() and names(tmp_path) == {"base", "data"}
    outer(force=True)
    with releasing():
        assert claim_folder(tmp_path, "a")
        remove(tmp_path / "data")
    assert names(tmp_path) == {"base"}
    (tmp_path / "data").mkdir()
    for name in ("betas", "masks"):
        (tmp_path / "data" / name).write_text("measured")
    with pytest.raises(UserError, match="holds data/betas, which is not on the list"):
        outer(force=True)
    shutil.rmtree(tmp_path / "data")
    run(tmp_path / "data", "betas", "masks", kind="convert nsd")  # another verb's, called by itself
    with pytest.raises(UserError, match="holds data/.mindtuner-run, which is not on the list"), releasing():
        claim_folder(tmp_path, "b", force=True)
    with releasing():
        assert claim_folder(tmp_path, "a")
        remove(tmp_path / "data")
    assert names(tmp_path / "data") == {"betas", "masks"}


def test_starting_over_deletes_only_what_the_run_wrote(tmp_path):
    run(tmp_path, "x", "y/z")
    (tmp_path / "mine").write_text("mine")
    with releasing():
        assert claim_folder(tmp_path, "a")
        empty(tmp_path)
        assert names(tmp_path) == {"mine", LOCK}


# ---- kills


def test_what_is_written_is_listed_first(tmp_path, monkeypatch):
    """A kill at any change of the disk: the same command goes on, and `force` deletes all there is."""

    class Killed(BaseException):
        pass

    def whole(folder, force=False):
        with releasing():
            claim_folder(folder, "a", force=force)
            write_text(folder / "config.yaml", "a")
            if not (folder / "stimuli").exists():
                with atomic_path(folder / "stimuli") as part:
                    part.mkdir()
                    (part / "1.png").write_text("1")
            with filled(folder, "card") as part:
                for name in ("card", "betas"):
                    (part / name).write_text(name)
            run(folder / "data", "x", kind="simulate")

    def dying_at(step):
        left = [step]

        def wrapped(real):
            def call(*words, **options):
                left[0] -= 1
                if left[0] < 0:
                    raise Killed
                return real(*words, **options)

            return call

        return wrapped

    for step in range(200):
        folder = tmp_path / str(step)
        with monkeypatch.context() as patch:
            # Nothing is tidied up by a process that is dead.
            dying = dying_at(step)
            for name in ("replace", "write", "mkdir", "unlink", "rename"):
                patch.setattr(os, name, dying(getattr(os, name)))
            try:
                whole(folder)
            except Killed:
                pass
            else:
                break
        claims._held.clear()
        if folder.exists():
            copied = shutil.copytree(folder, tmp_path / f"{step}-forced")
            with releasing():
                assert not claim_folder(copied, "b", force=True)
            assert not list(copied.iterdir())
        whole(folder)
        assert names(folder) == {"config.yaml", "stimuli", "card", "betas", "data"}, step
        assert names(folder / "data") == {"x"}
    assert step > 20


@given(st.integers(0, 400))
@settings(max_examples=60, deadline=None)
def test_a_list_that_a_kill_tore_lists_less(tmp_path_factory, size):
    folder = tmp_path_factory.mktemp("run")
    run(folder, "x", "y")
    whole = (folder / LIST).read_bytes()
    (folder / LIST).write_bytes(whole[:size])
    claim = claims._read(folder)
    listed = [] if claim is None else list(claim.files)
    assert listed == ["x", "y"][: len(listed)]
    if claim is not None:
        assert run(folder, "x", "y")
        assert list(claims._read(folder).files) == ["x", "y"]


def test_an_empty_list_begins_anew(tmp_path):
    (tmp_path / LIST).write_text('{"kind": "ru')
    assert not run(tmp_path, "x")
    assert run(tmp_path, "y")


@pytest.mark.parametrize("where", ["x", "pictures/a.png"])
def test_what_a_killed_process_was_writing_goes(tmp_path, where):
    run(tmp_path, "x", "pictures/b.png")
    left = torn(tmp_path / where)
    assert run(tmp_path) and not left.exists()
    left = torn(tmp_path / where)
    assert not run(tmp_path, settings="b", force=True) and not left.exists()


def test_what_a_living_process_is_writing_stays(tmp_path):
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        living = temporary.beside(tmp_path / "x", process.pid)
        living.write_text("half")
        write_text(tmp_path / "y", "y")
        assert living.exists()
        process.communicate(b"\n")
    temporary.sweep(tmp_path)
    assert not living.exists()


def test_a_process_with_the_number_of_a_dead_one_keeps_nothing(tmp_path):
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        left = temporary.beside(tmp_path / "x", process.pid)
        left.write_text("half")
        os.utime(left, (0, 0))
        temporary.sweep(tmp_path)
        assert not left.exists()
        process.communicate(b"\n")


def test_a_run_that_was_killed_at_its_very_end_keeps_no_lock(tmp_path):
    run(tmp_path, "x", over=True)
    (tmp_path / LOCK).touch()
    with pytest.raises(UserError, match="holds another run"):
        run(tmp_path)
    assert names(tmp_path) == {"x"}


def test_a_deletion_that_was_killed_goes_on(tmp_path, monkeypatch):
    run(tmp_path, "config.yaml", "x", settings="config.yaml", over=True)

    def killed(path):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(temporary, "end", killed)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, settings="b", force=True)
    assert not run(tmp_path, "y", settings="b") and names(tmp_path) == {"y"}


# ---- two processes

HOLD = """
import sys
from mindtuner.claims import claim_folder
claim_folder(sys.argv[1], "a")
print("held", flush=True)
input()
"""


def test_one_process_at_a_time_and_a_lock_dies_with_its_process(tmp_path):
    command = [sys.executable, "-c", textwrap.dedent(HOLD), str(tmp_path / "run")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"held\n"
        for force in (False, True):
            with pytest.raises(UserError, match="run: another process writes there; expected one at a time"):
                run(tmp_path / "run", force=force)
        process.kill()
    assert run(tmp_path / "run", "x") and names(tmp_path / "run") == {"x"}
