"""Batches on a Ray cluster of several nodes, one of which dies. `make ray` installs Ray."""

import os
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.trial import FrozenTrial, Trial, TrialState

from optuna_s2e import RayExecutor, S2ESampler, generations, optimize_batch
from optuna_s2e._attributes import FAILURE_KEY
from optuna_s2e.analysis import Snapshot, verify

pytest.importorskip("ray", reason="`make ray` installs it")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # Ray's own warnings


@pytest.fixture
def cluster() -> Iterator[Any]:
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray
    from ray.cluster_utils import Cluster

    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    for _ in range(2):
        nodes.add_node(num_cpus=2)
    ray.init(address=nodes.address, log_to_driver=False)
    yield nodes
    ray.shutdown()
    nodes.shutdown()


def make_study() -> optuna.Study:
    return optuna.create_study(sampler=S2ESampler(population_size=6, seed=0))


def test_a_node_that_dies_in_the_middle_of_a_batch_changes_no_theta(cluster: Any) -> None:
    def objective(trial: Trial) -> float:  # local: it travels by value
        x = [trial.suggest_float(f"x{i}", 0, 1) for i in range(4)]
        time.sleep(0.5)
        trial.set_user_attr("node", os.environ.get("RAY_NODE_ID", "driver"))
        return float(sum((v - 0.3) ** 2 for v in x))

    study, calm = make_study(), make_study()
    victim = sorted(cluster.worker_nodes, key=lambda node: node.node_id)[0]
    killer = threading.Thread(
        target=cluster.remove_node, args=(victim,), kwargs={"allow_graceful": False}
    )

    def kill(study: optuna.Study, trial: FrozenTrial) -> None:
        told = study.get_trials(states=(TrialState.COMPLETE,))
        if len(told) == 7:  # five of its batch are on the nodes
            killer.start()

    optimize_batch(study, objective, 25, executor=RayExecutor(max_retries=0), callbacks=[kill])
    killer.join()
    optimize_batch(calm, objective, 25)
    lost = [t for t in study.trials if t.state == TrialState.FAIL]
    assert lost, "the node held no trial"
    assert all("NodeDied" in t.system_attrs[FAILURE_KEY]["reason"] for t in lost)
    assert len(study.trials) == 25 + len(lost)
    for a, b in zip(generations(study), generations(calm), strict=True):
        assert np.array_equal(a.theta, b.theta)
    assert verify(Snapshot.of(study)).sound
