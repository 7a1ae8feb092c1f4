"""How a process and its agent find each other.

<directory>/agents/<digest>/socket    where it listens
<directory>/agents/<digest>/lock      held as long as it lives
<directory>/agents/<digest>/log       what it has to say, from its start on
"""

import os
from collections.abc import Mapping
from pathlib import Path

from s3cache.agent import protocol
from s3cache.digest import digest_of
from s3cache.settings import Settings

RUN_VARIABLE = "_S3CACHE_RUN"
"""The environment variable that all processes of one run share: one report, one warning."""
TRACE_VARIABLE = "_S3CACHE_TRACE"
"""Set in a run whose events are kept: an agent that is started for it does so from its first request on."""


def agent_directory(settings: Settings, environ: Mapping[str, str] | None = None) -> Path:
    """Return the folder of the agent that serves this URL with these credentials and modes."""
    environ = os.environ if environ is None else environ
    # The folder may be shared by several machines.
    identity = [protocol.VERSION, os.uname().nodename, str(os.getuid())]
    identity += [settings.url, settings.mode.value, str(settings.disk_limit), *sorted(settings.exclude)]
    identity += [f"{name}={environ[name]}" for name in sorted(environ) if name.startswith("AWS_")]
    identity += [*sorted(key.id for key in settings.trusted_keys), repr(settings.signing_key)]
    identity += [str(settings.shared_group)]
    return settings.directory / "agents" / digest_of("\0".join(identity).encode())[:16]
