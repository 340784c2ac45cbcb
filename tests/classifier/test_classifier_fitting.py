"""The steps of a fit that no attribute shows: what is held out, what tells data apart."""

from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from tqdm import tqdm  # noqa: E402

from optuna_s2e.classifier._defaults import (  # noqa: E402
    auto_network,
    table_network,
    training_config,
)
from optuna_s2e.classifier._fitting import Fitting  # noqa: E402
from optuna_s2e.coteaching import TrainingConfig  # noqa: E402

X, Y = torch.randn(101, 3), np.array([0] * 60 + [1] * 40 + [2])


@pytest.fixture
def fitting():
    return Fitting(
        train=(X, Y), validation=None, n_classes=3, network=table_network, n_epochs=2,
        n_estimate=2, config=training_config("table", 101, None, None), device="cpu", seed=0,
        bar=tqdm(disable=True),
    )  # fmt: skip


def test_each_class_is_held_out_in_its_share_and_a_single_sample_is_not(fitting):
    (inside, y), (outside, y_out) = fitting._hold_out(0.2)
    assert np.bincount(y_out).tolist() == [12, 8]
    assert np.bincount(y).tolist() == [48, 32, 1]
    together = torch.cat([inside, outside])
    assert sorted(map(tuple, together.tolist())) == sorted(map(tuple, X.tolist()))


def test_fingerprints_tell_data_apart(fitting):
    other = [
        replace(fitting, train=(X + 1e-6, Y)),
        replace(fitting, train=(X, np.roll(Y, 1))),
        replace(fitting, train=(X.reshape(101, 3, 1), Y)),
        replace(fitting, validation=(X, Y)),
    ]
    prints = {each.fingerprint() for each in (fitting, *other)}
    assert len(prints) == 5
    assert replace(fitting, train=(X.clone(), Y.copy())).fingerprint() == fitting.fingerprint()


@pytest.mark.parametrize(("n", "size"), [(20, 8), (400, 8), (1000, 16), (10_000, 128), (1, 8)])
def test_mini_batches_are_about_a_fiftieth_of_the_data(n, size):
    config = training_config("table", n, None, None)
    assert (config.batch_size, config.learning_rate) == (size, 2e-3)
    assert training_config("cnn2", n, 5, None) == TrainingConfig(batch_size=5)


def test_networks_for_kinds_of_inputs():
    assert auto_network("table", (9,)) == "table"
    assert auto_network("images", (3, 32, 32)) == "cnn2"
    assert auto_network("images", (1, 8, 8)) == "table"
