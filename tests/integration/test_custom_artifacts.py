"""Artifact types of somebody else's: stored when they are recorded, restored before their first use."""

import pytest

from tests.integration.conftest import NewFleet
from tests.integration.starts import Fleet, Start

CACHE = """
    import torch
    from torch.compiler._cache import CacheArtifact, CacheArtifactFactory, CacheArtifactManager

    class Cache:
        def __init__(self):
            self.entries = {}

        def save(self, key, value):
            self.entries[key] = value
            CacheArtifactManager.record_artifact("somebody's", key, value)

    class SomebodysArtifact(CacheArtifact):
        def populate_cache(self):
            cache.entries[self.key] = self.content.decode()

        @staticmethod
        def type():
            return "somebody's"

        @staticmethod
        def encode(content):
            return content.encode()
"""
READY = CACHE + "\n    cache = Cache()\n    CacheArtifactFactory.register(SomebodysArtifact)\n"
LATE = CACHE + "\n    CacheArtifactFactory.register(SomebodysArtifact)\n    cache = Cache()\n"
SAVED = {"1": "foo", "2": "bar", "foo": "bar", "a key/with: anything": "é"}
REVISED = [f"value {number}" for number in range(5)]
FOUND = SAVED | {"revised": REVISED[-1]}
SAVE = f"""
    for key, value in {SAVED}.items():
        cache.save(key, value)
    for value in {REVISED}:
        cache.save("revised", value)
    report()
"""
USE = """
    found = dict(cache.entries)
    CacheArtifactManager.record_artifact("somebody's", "foo", found["foo"])
    report(found=found, recorded=torch.compiler.save_cache_artifacts()[1].artifacts)
"""
COMPILE = """
    torch.compile(lambda x: x + 1, backend="eager")(torch.ones(2))
    report(found=cache.entries)
"""
FIND_AND_SAVE = """
    found = dict(cache.entries)
    cache.save("new", "value")
    report(found=found)
"""


@pytest.fixture(scope="module")
def recorded(new_fleet: NewFleet) -> Fleet:
    """A fleet of which one machine has recorded."""
    fleet = new_fleet()
    fleet.recorder().run(READY + SAVE)
    return fleet


@pytest.fixture(scope="module")
def used(recorded: Fleet) -> Start:
    """A start that registered the type, and looked up one artifact."""
    return recorded.fresh().run(READY + USE)


def test_all_are_stored(recorded: Fleet) -> None:
    assert len(recorded.objects("manifests/artifact-")) == len(SAVED) + len(REVISED)


def test_restored_when_the_type_is_registered(used: Start) -> None:
    assert SAVED.items() <= used.facts["found"].items()


def test_values_of_one_key_are_restored_in_order(used: Start) -> None:
    assert used.facts["found"]["revised"] == REVISED[-1]


def test_restored_when_compiling_starts_if_it_was_registered_too_early(recorded: Fleet) -> None:
    assert recorded.fresh().run(LATE + COMPILE).facts["found"] == FOUND


def test_only_what_is_looked_up_is_recorded_again(used: Start) -> None:
    assert used.facts["recorded"] == {"somebody's": ["foo"]}
    assert used.count("puts") == 0


def test_nothing_is_restored_or_stored_with_all_caches_off(recorded: Fleet) -> None:
    stored = recorded.objects()
    start = recorded.fresh().run(READY + FIND_AND_SAVE, TORCHINDUCTOR_FORCE_DISABLE_CACHES="1")
    assert start.facts["found"] == {}
    assert recorded.objects() == stored
