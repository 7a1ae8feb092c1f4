"""What fuzzers have found, tried again: each decoder returns or raises Corrupt, within its bounds."""

import random
import time
import tracemalloc

import pytest

from tests.fuzzing.mutation import changed
from tests.fuzzing.targets import INPUT_BYTES, PEAK_BYTES, SECONDS, TARGETS, attempt, corpus

CHANGES = 50
"""So often each of the inputs is changed at random, always in the same way."""


@pytest.mark.parametrize("target", sorted(TARGETS))
def test_what_was_ever_of_interest_is_decoded_or_corrupt(target: str) -> None:
    assert corpus(target)
    for name, data in corpus(target).items():
        tracemalloc.start()
        started = time.process_time()
        try:
            attempt(target, data)
            assert tracemalloc.get_traced_memory()[1] <= PEAK_BYTES, name
            assert time.process_time() - started <= SECONDS, name
        finally:
            tracemalloc.stop()


@pytest.mark.parametrize("target", sorted(TARGETS))
def test_what_is_damaged_is_decoded_or_corrupt(target: str) -> None:
    chance = random.Random(target)
    tracemalloc.start()
    try:
        for data in list(corpus(target).values())[:20]:
            for _ in range(CHANGES):
                attempt(target, changed(data, chance, INPUT_BYTES))
        assert tracemalloc.get_traced_memory()[1] <= PEAK_BYTES
    finally:
        tracemalloc.stop()
