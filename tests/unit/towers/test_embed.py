"""Caches made by several processes, killed anywhere; 16-bit caches and training from them; and the verb."""

import dataclasses
import fcntl
import multiprocessing
import os
import signal

import numpy as np
import pytest
import torch
from accelerate import PartialState
from children import free_port
from hypothesis import given
from hypothesis import strategies as st
from linear_world import QUICK, same, weights, world
from stand_ins import Lengths

from mindtuner.data import HalfRows, build_cache, open_cache
from mindtuner.data.cache.build import Part
from mindtuner.errors import UserError
from mindtuner.files import read_json, write_json
from mindtuner.formats import load
from mindtuner.processes import Processes, processes
from mindtuner.towers.embed import compact_towers
from mindtuner.towers.tower import Tower
from mindtuner.training import Targets, pretrain

COUNT, BATCH = 23, 3
FORK = multiprocessing.get_context("fork")


class Stimuli:
    """All that a cache asks of stimuli."""

    hash = "these stimuli"
    images = None

    def __len__(self):
        return COUNT


def compute(ids):
    """Features that, like the last bit of a real tower's, depend on which stimuli make up a batch."""
    rows = np.random.default_rng(0).standard_normal((COUNT, 4, 5))
    return rows[ids] + 1e-3 * rows[ids].mean(0)


def build(folder, compute=compute, dtype="float32", identity=("tower", 1), batch=BATCH):
    return build_cache(
        folder, "tokens", (4, 5), dtype, {"is": identity}, Stimuli(), compute, batch, "tokens", inputs=lambda ids: ids
    )


def child(folder, rank, count, port, dtype, kill_at):
    """One process of a launch. Exits with 0, with 2 on a UserError, or dies at its ``kill_at``-th batch."""
    os.environ.update(
        RANK=str(rank),
        WORLD_SIZE=str(count),
        LOCAL_RANK=str(rank),
        LOCAL_WORLD_SIZE=str(count),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    torch.cuda.is_available = lambda: False  # a forked process may not use one
    processes.cache_clear()
    seen = []

    def noted(ids):
        if len(seen) == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        seen.append(ids[0] // BATCH)
        with open(folder / f"computed by {rank} of {count}", "a") as file:
            file.write(f"{ids[0] // BATCH}\n")
        return compute(ids)

    try:
        built = build(folder / "cache", noted, dtype)
        assert len(built) == COUNT
    except UserError as error:
        (folder / f"error of {rank}").write_text(str(error))
        os._exit(2)
    os._exit(0)


def launch(folder, count, dtype="float32", kill=None):
    """Exit codes of ``count`` processes; ``kill``: {rank: batch at which it dies}."""
    folder.mkdir(exist_ok=True)
    port = free_port()
    group = [
        FORK.Process(target=child, args=(folder, rank, count, port, dtype, (kill or {}).get(rank))) for rank in range(count)
    ]
    for process in group:
        process.start()
    for process in group:
        process.join(60)
    return [process.exitcode for process in group]


def computed(folder, count):
    """Batches that each process of a launch of ``count`` computed."""
    files = (folder / f"computed by {rank} of {count}" for rank in range(count))
    return [list(map(int, file.read_text().split())) if file.exists() else [] for file in files]


@given(st.integers(0, 50), st.integers(1, 9))
def test_shares_are_contiguous_even_and_make_up_the_whole(items, count):
    shares = [Processes(index, count).share(items) for index in range(count)]
    assert [item for share in shares for item in share] == list(range(items))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize("count, dtype", [(2, "float32"), (3, "bfloat16")])
def test_processes_together_write_the_bytes_of_one(tmp_path, count, dtype):
    build(tmp_path / "alone", dtype=dtype)
    assert launch(tmp_path, count, dtype) == [0] * count
    for name in ("tokens.bin", "tokens.json"):
        assert (tmp_path / "cache" / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == ["tokens.bin", "tokens.json"]
    parts = computed(tmp_path, count)
    assert sum(parts, []) == list(range(8)) and all(parts)  # each its own contiguous part


@pytest.mark.slow
@pytest.mark.parametrize("killed, again", [(0, 1), (1, 2), (1, 3)])
def test_a_launch_of_which_one_is_killed_leaves_nothing_whole_and_goes_on(tmp_path, killed, again):
    whole = np.asarray(build(tmp_path / "alone"))
    codes = launch(tmp_path, 2, kill={killed: 1})
    assert codes[killed] == -signal.SIGKILL and codes[1 - killed] == 2
    assert "another process of this launch has ended early" in (tmp_path / f"error of {1 - killed}").read_text()
    assert not (tmp_path / "cache" / "tokens.json").exists()
    with pytest.raises(UserError, match="tokens.json: not found"):
        open_cache(tmp_path / "cache", "tokens", {"is": ("tower", 1)}, Stimuli.hash)
    first = sum(computed(tmp_path, 2), [])
    assert 5 <= len(first) < 8  # one batch of the killed one, all of the other's
    for file in tmp_path.glob("computed*"):
        file.unlink()
    if again == 1:
        seen = []
        build(tmp_path / "cache", lambda ids: seen.append(ids[0] // BATCH) or compute(ids))
        second = [seen]
    else:
        assert launch(tmp_path, again) == [0] * again
        second = computed(tmp_path, again)
    assert sorted(first + sum(second, [])) == list(range(8))  # nothing twice, nothing left out
    np.testing.assert_array_equal(build(tmp_path / "cache"), whole)


@pytest.mark.parametrize("act", [1, 2, 3, 4, 5, 6])
def test_killed_at_any_step_of_preparing_and_sealing(tmp_path, act):
    """The process dies before, or (odd) right after, the first, second or third file of ``NAME`` comes to its place."""

    def dying():
        replace, calls = os.replace, []

        def counted(*args):
            calls.append(args)
            if len(calls) == (act + 1) // 2:
                if act % 2:
                    replace(*args)
                os.kill(os.getpid(), signal.SIGKILL)
            replace(*args)

        os.replace = counted
        build(tmp_path)

    process = FORK.Process(target=dying)
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert (tmp_path / "tokens.json").exists() == (act == 5)  # after the seal itself, the third
    seen = []
    built = build(tmp_path, lambda ids: seen.append(ids) or compute(ids))
    assert len(seen) == (8 if act in (1, 2) else 0)
    np.testing.assert_array_equal(built, build(tmp_path / "alone"))


def test_one_launch_at_a_time(tmp_path):
    with open(tmp_path / "tokens.part.lock", "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="tokens.part.bin: is being written by another process"):
            build(tmp_path)
    build(tmp_path)


def test_a_part_with_other_batches_begins_anew(tmp_path):
    def stop(ids):
        if ids[0] >= 12:
            raise KeyboardInterrupt
        return compute(ids)

    with pytest.raises(KeyboardInterrupt):
        build(tmp_path, stop)
    np.testing.assert_array_equal(build(tmp_path, batch=4), build(tmp_path / "alone", batch=4))


def test_a_process_alone_says_what_it_misses(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("RANK", "MASTER_ADDR", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(PartialState, "_shared_state", {})  # which is left half made, and other tests' children would inherit
    processes.cache_clear()
    with pytest.raises(UserError, match="WORLD_SIZE: is 2, but .*expected accelerate launch"):
        processes()
    processes.cache_clear()


# ---- 16 bits


def rounded(values):
    """float32 -> the 16 bits of bfloat16, to nearest and ties to even, by integers."""
    bits = np.asarray(values, np.float32).view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def test_bfloat16_is_stored_as_its_bits_and_read_exactly(tmp_path):
    values = np.float32(compute(np.arange(COUNT)) * np.logspace(-30, 30, COUNT)[:, None, None])
    values[0, 0, :2] = 1 + 2**-8, 1 + 3 * 2**-8  # ties
    cache = build(tmp_path, lambda ids: values[ids], "bfloat16")
    np.testing.assert_array_equal(np.fromfile(tmp_path / "tokens.bin", np.uint16).reshape(values.shape), rounded(values))
    assert read_json(tmp_path / "tokens.json")["dtype"] == "bfloat16" and cache.shape == (COUNT, 4, 5)
    expected = (rounded(values).astype(np.uint32) << 16).view(np.float32)
    ids = np.array([7, 2, 22, 7, 0])
    assert cache.rows(ids).dtype == torch.bfloat16 and np.array_equal(cache.rows(ids).float().numpy(), expected[ids])
    for index in (ids, slice(3, 20, 4), 5, -1, np.arange(COUNT) % 2 == 0, np.array([[1, 2], [3, 1]]), []):
        np.testing.assert_array_equal(
            cache[index],
            expected[np.array(index, int) if index == [] else index] if isinstance(index, list) else expected[index],
        )
    tensors = build(tmp_path / "tensors", lambda ids: torch.from_numpy(values[ids]).bfloat16(), "bfloat16")
    np.testing.assert_array_equal(tensors[:], expected)


def test_float16_is_read_row_by_row_too(tmp_path):
    cache = build(tmp_path, dtype="float16")
    expected = np.fromfile(tmp_path / "tokens.bin", np.float16).reshape(COUNT, 4, 5)
    assert isinstance(cache, HalfRows) and cache.rows([3, 1]).dtype == torch.float16
    np.testing.assert_array_equal(cache[[3, 1]], np.float32(expected[[3, 1]]))


def test_bad_rows_of_16_bits_are_refused(tmp_path):
    cache = build(tmp_path, dtype="bfloat16")
    with pytest.raises(IndexError):
        cache.rows([COUNT])
    with pytest.raises(UserError, match="tokens.json: dtype is 'bfloat16'; expected 'float16'"):
        build(tmp_path, dtype="float16")
    with pytest.raises(UserError, match="features of stimulus 4 are not finite in bfloat16"):
        build(tmp_path / "huge", lambda ids: np.where(ids[:, None, None] == 4, 3.4e38, 1.0) * np.ones((4, 5)), "bfloat16")
    with open(tmp_path / "tokens.bin", "r+b") as file:
        file.truncate(40 * 5 + 3)
    assert cache.rows([4]).shape == (1, 4, 5)
    with pytest.raises(UserError, match="tokens.bin: ends within row 5; expected 23 rows"):
        cache.rows([1, 5])
    with pytest.raises(UserError, match="tokens.bin: missing or not whole"):
        build(tmp_path, dtype="bfloat16")
    write_json(tmp_path / "tokens.json", read_json(tmp_path / "tokens.json") | {"dtype": "float12"})
    with pytest.raises(UserError, match="tokens.json: dtype is 'float12'"):
        open_cache(tmp_path, "tokens", {"is": ("tower", 1)}, Stimuli.hash)


def test_training_from_bfloat16_is_training_from_the_numbers_it_holds(tmp_path):
    dataset, targets = world(0, 2)

    def halved(name):
        array = getattr(targets, name)
        return build_cache(
            tmp_path,
            name,
            array.shape[1:],
            "bfloat16",
            {},
            dataset.stimuli,
            lambda ids: array[ids],
            64,
            name,
            inputs=lambda ids: ids,
        )

    cached = Targets(*(halved(field.name) for field in dataclasses.fields(Targets)))
    widened = Targets(*(getattr(cached, field.name)[:] for field in dataclasses.fields(Targets)))
    assert isinstance(cached.tokens, HalfRows) and isinstance(widened.tokens, np.ndarray)
    assert cached.rows("tokens", np.array([1, 0])).dtype == torch.float32
    short = dataclasses.replace(QUICK, pretrain=dataclasses.replace(QUICK.pretrain, epochs=0.2))
    a, b = (weights(pretrain(dataset, which, short, seed=1)) for which in (cached, widened))
    assert same(a, b)


# ---- towers


def test_a_tower_is_five_things(tmp_path):
    tower = Tower("mine", {"encoder": "mine"}, (4, 5), "bfloat16", compute, BATCH)
    assert tower.size(tmp_path, Stimuli()) == (COUNT * 40, COUNT * 40)
    built = tower.build(tmp_path, Stimuli())
    assert tower.size(tmp_path, Stimuli()) == (COUNT * 40, 0)
    np.testing.assert_array_equal(
        built[:],
        torch.from_numpy(np.concatenate([compute(np.arange(k, min(k + BATCH, COUNT))) for k in range(0, COUNT, BATCH)]))
        .bfloat16()
        .float(),
    )
    with pytest.raises(UserError, match="mine.json: identity.encoder is 'mine'; expected 'other'"):
        dataclasses.replace(tower, identity={"encoder": "other"}).size(tmp_path, Stimuli())


def test_an_image_without_a_caption_has_the_text_0(simulated, tmp_path):
    stimuli = load(simulated).stimuli
    stimuli.captions = list(stimuli.captions)
    expected = np.array([np.mean([len(caption) for caption in group]) for group in stimuli.captions])
    stimuli.captions[2], expected[2] = (), 0
    [_, text] = compact_towers(stimuli, tmp_path, None, Lengths(), None)
    np.testing.assert_allclose(text.build(tmp_path, stimuli), np.tile(expected[:, None], 384), rtol=1e-6)


def test_room_that_a_part_has_already_is_not_asked_for_again(tmp_path):
    def stop(ids):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(tmp_path, stop)
    header = read_json(tmp_path / "tokens.part.json")["header"]
    assert Part(tmp_path, "tokens", header, BATCH).bytes_to_write() == 0
    assert Part(tmp_path / "new", "tokens", header, BATCH).bytes_to_write() == COUNT * 80
