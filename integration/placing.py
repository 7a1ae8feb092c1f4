"""Files that PyTorch, or the NVIDIA driver, is to find where it looks for them."""

import os
import tempfile
from contextlib import suppress
from pathlib import Path


def place(path: Path, content: bytes, mode: int) -> None:
    """Write a file that appears whole, or not at all, even if others do the same.

    Raises OSError when it cannot be written.
    """
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".", delete=False) as file:
        try:
            file.write(content)
            os.fchmod(file.fileno(), mode)
            file.close()
            Path(file.name).rename(path)
        except BaseException:
            with suppress(OSError):
                Path(file.name).unlink()
            raise
