"""The choice by measurement, with trainers whose epochs take what they say, on the CPU."""

import json
import multiprocessing
import os
import time

import numpy as np
import pytest
import torch

from optuna_s2e.coteaching import NoisyData, TrainingConfig, make_network
from optuna_s2e.coteaching.backends import _choice as choice
from optuna_s2e.coteaching.backends import _fastest as fastest_module
from optuna_s2e.coteaching.backends._base import TrainingSetup
from optuna_s2e.coteaching.backends._choice import find_backend
from optuna_s2e.coteaching.backends._fastest import fastest
from optuna_s2e.coteaching.backends._fused_cnn import FusedCnnTrainer
from optuna_s2e.coteaching.backends._fused_cnn_unfolded import UnfoldedCnnTrainer
from optuna_s2e.coteaching.backends._fused_mlp_fixed import FixedMlpTrainer


class Quick(FixedMlpTrainer):
    made = 0
    seconds = 0.01  # of an epoch
    now = 0.0  # what the clock shows

    def __init__(self, *args, **kwargs):
        type(self).made += 1
        self.begins_in = 1.0  # takes as long as Slow's, and counts for nothing
        super().__init__(*args, **kwargs)

    def train_epoch(self, *args):
        Quick.now += self.seconds + self.begins_in
        self.begins_in = 0.0
        return super().train_epoch(*args)


class Slow(Quick):
    seconds = 0.1


class Hungry(Quick):
    def train_epoch(self, *args):
        raise torch.OutOfMemoryError("out of memory")


def _setup(batch_size=6, dtype="float32"):
    x, y = np.random.default_rng(0).random((10, 5), dtype=np.float32), np.arange(10) % 3
    data = NoisyData.from_arrays(x, y, x, y)
    return TrainingSetup(data, "mlp", TrainingConfig(batch_size, dtype=dtype), (x, y))


def _ask(one, two, **setup):
    probe = make_network("mlp", (5,), 3, seed=0)
    return fastest(_setup(**setup), probe, {"one": one, "two": two})


def _forget():
    """As in a new process."""
    fastest_module._chosen.clear()


@pytest.fixture(autouse=True)
def caches(request, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    if request.node.get_closest_marker("gpu") is None:  # keywords have the names of folders, too
        monkeypatch.setattr(fastest_module.time, "perf_counter", lambda: Quick.now)
    _forget()
    Quick.made = Slow.made = 0
    yield tmp_path / "optuna_s2e"
    _forget()


def test_samples_that_trials_leave_out_are_no_failure_of_the_measurement():
    setup = _setup()._replace(n_left_out=8)
    assert np.isfinite(fastest_module._seconds(setup, Quick))


def test_the_faster_one_is_taken_and_measured_once(caches):
    state = torch.get_rng_state()
    assert [_ask(Slow, Quick), _ask(Slow, Quick)] == ["two", "two"]
    assert (Quick.made, Slow.made) == (1, 1)
    assert torch.equal(torch.get_rng_state(), state)
    (file,) = caches.iterdir()
    written = json.loads(file.read_text())
    assert (written["fastest"], list(written["seconds"])) == ("two", ["one", "two"])
    seconds = [float(written["seconds"][name]) for name in ("one", "two")]
    assert seconds == pytest.approx([Slow.seconds, Quick.seconds])
    assert torch.__version__ in written["of"]


def test_what_was_measured_first_holds_in_later_processes():
    assert _ask(Slow, Quick) == "two"
    _forget()
    assert _ask(Quick, Slow) == "two"  # a later measurement would say "one"
    assert (Quick.made, Slow.made) == (1, 1)


def test_other_mini_batches_and_precisions_are_other_questions(caches):
    assert _ask(Slow, Quick) == "two"
    assert _ask(Quick, Slow, batch_size=5) == "one"
    assert _ask(Quick, Slow, dtype="float64") == "one"
    assert len(list(caches.iterdir())) == 3


def _ask_at_once(met, names, answers):
    ways = {"one": Slow, "two": Quick} if names == "slow first" else {"one": Quick, "two": Slow}
    met.wait(30)
    answers.put(fastest(_setup(), make_network("mlp", (5,), 3, seed=0), ways))


def test_processes_that_measure_at_once_agree(caches):
    context = multiprocessing.get_context("fork" if hasattr(os, "fork") else "spawn")
    met, answers = context.Barrier(2), context.Queue()
    both = [
        context.Process(target=_ask_at_once, args=(met, names, answers))
        for names in ("slow first", "quick first")
    ]
    for process in both:
        process.start()
    first, second = answers.get(timeout=60), answers.get(timeout=60)
    for process in both:
        process.join(30)
    assert first == second  # though each measured the other's opposite
    assert len(list(caches.iterdir())) == 1  # nothing half-written is left


@pytest.mark.parametrize("text", ["", "[]", '{"fastest": ["two"]}'])
def test_a_file_that_says_nothing_is_no_answer(caches, text):
    assert _ask(Slow, Quick) == "two"
    (file,) = caches.iterdir()
    file.write_text(text)
    _forget()
    assert _ask(Quick, Slow) == "one"
    assert file.read_text() == text


def test_without_a_folder_the_choice_holds_for_the_process(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert [_ask(Slow, Quick), _ask(Slow, Quick)] == ["two", "two"]
    assert Quick.made == 1
    _forget()
    assert _ask(Quick, Slow) == "one"


def test_what_fails_is_not_taken():
    assert _ask(Hungry, Slow) == "two"
    assert _ask(Hungry, Hungry, batch_size=5) == "one"


def _convolutions(n_channels, device, dtype="float32"):
    x, y = np.zeros((10, n_channels, 32, 32), np.float32), np.arange(10)
    data = NoisyData.from_arrays(x, y, x, y).to(device)
    return TrainingSetup(data, "cnn2", TrainingConfig(dtype=dtype), (data.x_val, data.y_val))


@pytest.mark.parametrize("answer", ["fused", "unfolded"])
def test_auto_takes_for_few_channels_what_was_measured(caches, monkeypatch, answer):
    """A device without memory stands for a GPU that was measured before."""
    monkeypatch.setattr(choice, "_MEASURED", ("meta",))
    caches.mkdir()
    setup, few = _convolutions(3, "meta"), {"fused": None, "unfolded": None}
    key = fastest_module._key(setup, make_network("cnn2", (3, 32, 32), 10, seed=0), few)
    fastest_module._chosen[key] = answer
    expected = {"fused": FusedCnnTrainer, "unfolded": UnfoldedCnnTrainer}[answer]
    found = find_backend("auto", setup, None)
    assert (found.trainer, found.name) == (expected, answer)
    assert find_backend("fused", setup, None).trainer is FusedCnnTrainer  # what has a name is it
    assert find_backend("unfolded", setup, None).trainer is UnfoldedCnnTrainer
    for network in ("cnn7", "cnn9"):  # many channels
        many = setup._replace(network=network)
        assert find_backend("auto", many, None).trainer is FusedCnnTrainer


def test_nothing_is_measured_for_a_cpu(caches):
    for device in ("cpu", "meta"):
        for name in ("auto", "fused"):
            find_backend(name, _convolutions(3, device), None)
    assert not caches.exists()
    assert not fastest_module._chosen


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device")
def test_a_measurement_on_cuda_takes_less_than_some_seconds(caches):
    find_backend("fused", _convolutions(3, "cuda"), None)
    started = time.monotonic()
    name = find_backend("auto", _convolutions(3, "cuda"), None).name
    assert time.monotonic() - started < 5
    (file,) = caches.iterdir()
    assert json.loads(file.read_text())["fastest"] == name
