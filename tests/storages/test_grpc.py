"""The gRPC proxy: no server, and a server that is killed and started again."""

import socket
import sys
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from optuna_s2e import S2ESampler, generations, open_storage, replay
from optuna_s2e.storages import _grpc

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")


def test_address_without_a_server_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_grpc, "_TIMEOUT", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(ConnectionError, match=f"grpc://127.0.0.1:{port} cannot be opened: no ser"):
        open_storage(f"grpc://127.0.0.1:{port}")


def test_missing_client_names_the_install_command(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [n for n in sys.modules if n.startswith("optuna.storages._grpc")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "grpc", None)
    with pytest.raises(ImportError, match=r'pip install "optuna-s2e\[grpc\]"'):
        open_storage("grpc://127.0.0.1:1")


@pytest.mark.postgres
def test_proxy_that_is_killed_and_started_again_costs_nothing(grpc_proxy: Any) -> None:
    sampler = S2ESampler(population_size=4, estimator="natural", seed=0)
    study = optuna.create_study(storage=open_storage(grpc_proxy.url), sampler=sampler)

    def killing(trial: optuna.Trial) -> float:
        value = trial.suggest_float("x0", 0, 1) + trial.suggest_float("x1", 0, 1)
        if trial.number == 5:
            grpc_proxy.kill()
            grpc_proxy.start()
        return value

    study.optimize(killing, n_trials=9)
    assert [t.state for t in study.trials] == [TrialState.COMPLETE] * 9
    assert len({tuple(t.params.values()) for t in study.trials}) == 9
    told, computed = generations(study), replay(study)
    assert len(told) == 3
    for a, b in zip(told, computed, strict=True):
        assert (a.theta == b.theta).all()
    members = [n for g in told for n in g.members]
    assert sorted(members) == list(range(8))
