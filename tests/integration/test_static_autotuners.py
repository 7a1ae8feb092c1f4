"""A kernel that a graph brought along is looked up, and saved, where it would lie on this machine."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from torch._inductor.runtime import runtime_utils

from s3cache.integration.pytorch import static_autotuners

ELSEWHERE = "/home/somebody/inductor"


class AutotuneCache:
    local_cache = ("local", f"{ELSEWHERE}/ke/best.best_config")

    def save(self) -> None: ...


def test_what_it_knows_of_another_machine_is_of_this_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(static_autotuners, "active_client", object)
    monkeypatch.setattr(runtime_utils, "cache_dir", lambda: str(tmp_path))
    cache = AutotuneCache()
    tuned = SimpleNamespace(filename=f"{ELSEWHERE}/ke/kernel.py", save_cache_hook=cache.save)
    fixed = SimpleNamespace(filename=f"{ELSEWHERE}/fi/fixed.py", save_cache_hook=None)
    brought = [SimpleNamespace(kernel=tuned), SimpleNamespace(kernel=fixed)]
    assert static_autotuners._load_autotuners(list, None, (brought,), {}) == brought
    assert tuned.filename == str(tmp_path / "ke" / "kernel.py")
    assert fixed.filename == str(tmp_path / "fi" / "fixed.py")
    assert cache.local_cache == ("local", str(tmp_path / "ke" / "best.best_config"))
