"""Artifact types of somebody else's: stored when they are recorded, restored before their first use."""

import pytest

from tests.integration.conftest import NewBucket
from tests.integration.machines import Bucket

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
SAVE = f"""
    for key, value in {SAVED}.items():
        cache.save(key, value)
    report()
"""
LOOK = "\n    report(**cache.entries)\n"
COMPILE = """
    torch.compile(lambda x: x + 1, backend="eager")(torch.ones(2))
"""


OFF = {"TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1"}


@pytest.fixture(scope="module")
def recorded(new_bucket: NewBucket) -> Bucket:
    """A bucket that one machine has recorded into."""
    bucket = new_bucket()
    bucket.new_machine().run(READY + SAVE)
    return bucket


def test_restored_when_the_type_is_registered(recorded: Bucket) -> None:
    assert recorded.new_machine().run(READY + LOOK) == SAVED


def test_restored_when_compiling_starts_if_it_was_registered_too_early(recorded: Bucket) -> None:
    assert recorded.new_machine().run(LATE + COMPILE + LOOK) == SAVED


def test_only_what_is_looked_up_is_recorded_again(recorded: Bucket) -> None:
    before = recorded.manifests("artifact-")
    looked_up = """
    CacheArtifactManager.record_artifact("somebody's", "foo", cache.entries["foo"])
    report(recorded=torch.compiler.save_cache_artifacts()[1].artifacts)
    """
    assert recorded.new_machine().run(READY + looked_up) == {"recorded": {"somebody's": ["foo"]}}
    assert recorded.manifests("artifact-") == before
    assert len(before) == len(SAVED)


def test_values_of_one_key_are_restored_in_order(bucket: Bucket) -> None:
    save = "".join(f"    cache.save('key', 'value {n}')\n" for n in range(5))
    bucket.new_machine().run(READY + save + "    report()\n")
    assert bucket.new_machine().run(READY + LOOK) == {"key": "value 4"}


def test_nothing_is_restored_or_stored_with_all_caches_off(recorded: Bucket, bucket: Bucket) -> None:
    assert recorded.new_machine().run(READY + LOOK, **OFF) == {}
    bucket.new_machine().run(READY + SAVE, **OFF)
    assert bucket.manifests("") == []
