"""Whether PyTorch's caches are on in this process."""

from s3cache import client
from s3cache.client import Client


def active_client() -> Client | None:
    """Return this process's client; None without one, or when the user turned all caches off."""
    found = client.current()
    if found is None:
        return None
    import torch.compiler.config

    return None if torch.compiler.config.force_disable_caches else found
