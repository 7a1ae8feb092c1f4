"""What PyTorch notes on a launch configuration is there when it was copied or pickled."""

import copy
import pickle
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("triton")

from triton.runtime import autotuner
from triton.runtime.autotuner import Config

from s3cache.integration.triton import configs


@pytest.fixture(autouse=True)
def hooked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Config, "__setstate__", Config.__setstate__)
    configs.install(autotuner)


@pytest.mark.parametrize("again", [copy.deepcopy, lambda config: pickle.loads(pickle.dumps(config))])
def test_where_coordinate_descent_ended_stays_marked(again: Callable[[Any], Any]) -> None:
    found, untried = Config({"XBLOCK": 128}, num_warps=8), Config({"XBLOCK": 64})
    found.found_by_coordesc = True
    assert again(found).found_by_coordesc
    assert again(found).all_kwargs() == found.all_kwargs()
    assert not hasattr(again(untried), "found_by_coordesc")


def test_a_state_that_is_not_understood_is_tritons_affair() -> None:
    config = SimpleNamespace()
    configs._setstate(lambda state: None, config, (None,), {})
    assert vars(config) == {}
