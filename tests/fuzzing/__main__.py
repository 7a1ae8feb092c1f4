"""Fuzzing of one decoder: python -m tests.fuzzing TARGET [what libFuzzer takes]. Needs atheris."""

import random
import sys

import atheris

with atheris.instrument_imports(include=["s3cache"], enable_loader_override=False):
    from tests.fuzzing.mutation import changed
    from tests.fuzzing.targets import attempt


def mutate(data: bytes, most: int, seed: int) -> bytes:
    """Return another input: every second one is changed in what it says, the others as libFuzzer does."""
    return changed(data, random.Random(seed), most) if seed % 2 else atheris.Mutate(data, most)


target = sys.argv.pop(1)
atheris.Setup(sys.argv, lambda data: attempt(target, data), custom_mutator=mutate)
atheris.Fuzz()
