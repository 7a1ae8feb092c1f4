"""Somebody who writes the bucket, or the disk, without a trusted key: nothing of it is served."""

from pathlib import Path

import pytest

from tests.tampering import KINDS, run_all

pytestmark = pytest.mark.anyio
TRIALS = 10
"""Of each kind; benchmarks/faults/tampering.py has ten thousand in all."""


async def test_nothing_tampered_with_is_served(tmp_path: Path) -> None:
    assert await run_all(tmp_path, range(TRIALS * len(KINDS))) == []
