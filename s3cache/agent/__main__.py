"""The agent's process: `python -P -m s3cache.agent FOLDER ALIVE_FD`. Started by the client."""

import logging
import os
import signal
import sys
from pathlib import Path

from filelock import FileLock, Timeout

HANDOVER_SECONDS = 1.0
"""How long the last agent of the folder, which no longer listens, may take to be gone."""


def main() -> None:
    """Become the only agent of the folder, or leave it to the one there is."""
    folder, alive = Path(sys.argv[1]), int(sys.argv[2])
    # The thread that started it may have blocked them.
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    lock = FileLock(folder / "lock", timeout=HANDOVER_SECONDS)
    try:
        lock.acquire()
    except Timeout:
        return
    os.ftruncate(sys.stderr.fileno(), 0)
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s", level=logging.INFO)
    logging.getLogger("botocore").setLevel(logging.WARNING)
    logging.getLogger("aiobotocore").setLevel(logging.WARNING)
    import anyio

    from s3cache.agent.address import RUN_VARIABLE, TRACE_VARIABLE
    from s3cache.agent.protocol import Hello
    from s3cache.agent.server import serve
    from s3cache.settings import Settings

    # Paths in them are those of the process that started this one.
    settings = Settings.from_environment()
    # Bound by a relative path: the path of a Unix socket has 107 bytes at most.
    os.chdir(folder)
    report = str(settings.report) if settings.report else None
    first = Hello(os.environ[RUN_VARIABLE], settings.job, report, TRACE_VARIABLE in os.environ)
    try:
        anyio.run(serve, settings, first, alive)
    except Exception:
        logging.getLogger("s3cache.agent").exception("the agent failed")
        raise


main()
