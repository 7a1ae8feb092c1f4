"""What results of Triton require of a machine. Its keys do not say all of it."""

import sysconfig
from functools import cache

from s3cache import client

EXTENSION = str(sysconfig.get_config_var("EXT_SUFFIX"))
"""As ".cpython-312-x86_64-linux-gnu.so": Python's ABI, and the architecture."""


@cache
def gpu() -> str:
    """Return the name of the GPU that is in use; empty where that is unknown.

    Triton's key says which architecture it is, which is the same for an H100 and an H200.
    """
    try:
        import torch

        return torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    except (ImportError, RuntimeError, AssertionError):
        return ""


client.machine.learn("gpu", gpu)
client.machine.learn("extension", lambda: EXTENSION)
