"""The job's side: synchronous, without threads or an event loop, so forks and exits are safe.

A hit is read from the disk tier. What is not there is asked of the agent, with a bounded wait. A put
is a file in the spool. Nothing here raises into the job.
"""

import atexit
import functools
import logging
import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress

from s3cache import keys, names
from s3cache.agent import protocol
from s3cache.agent.address import RUN_VARIABLE, agent_directory
from s3cache.agent.connection import Connection
from s3cache.errors import DiskTierError, S3CacheError, SettingsError
from s3cache.local import LocalEntries
from s3cache.machine import Machine, platform_tag
from s3cache.manifest import MAX_SLOTS, Entry, Manifest, Result
from s3cache.namespaces import is_pinned
from s3cache.pinned import Pinned
from s3cache.settings import Mode, Settings
from s3cache.spool import Put, Spool
from s3cache.tier import open_tier
from s3cache.view import View

logger = logging.getLogger(__name__)

PATIENCE_SECONDS = 3.0
"""How long a process waits in all for an agent or a bucket that gives it nothing; a result renews it."""
PROMPT_SECONDS = 0.1
"""What an answer that has no result takes longer eats into the patience; a faster one gives some back."""
COOLDOWN_SECONDS = 2.5
"""How long nothing is asked once the patience is used up; twice as long with each wait in vain."""
PROBE_SECONDS = 0.1
"""How long an agent then has to say what is there: the rest it fetches while nobody waits."""
REVIVED_SECONDS = 0.5
"""The patience with a bucket that gave, while nobody waited, what it was asked for."""
_EXIT_SECONDS = 1.0
_TELLING_SECONDS = 0.2
_CAUSE_SECONDS = 0.3
"""How long an agent that did not answer may take, when the process ends, to say why."""

machine = Machine()
"""The facts that requirements are held against; hooks add what they know."""


class Client:
    """One process's cache. Made by `current()`; its methods never raise because of the cache."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._tier = open_tier(settings)
        prefixes = names.catalog_prefixes(settings.job, platform_tag())
        self._entries = LocalEntries(self._tier, prefixes, settings.keyring(), unsent=True)
        self._spool = Spool(settings.spool_directory, settings.disk_limit // 4, settings.access)
        self._agent = Connection(settings)
        self._patience = PATIENCE_SECONDS
        self._cooldown = COOLDOWN_SECONDS
        self._waiting_left = settings.deadline_seconds
        self._probe_at = 0.0
        self._owed: protocol.Lookup | None = None
        """What was last asked for without waiting, and was not there."""
        self._warned = False
        self._is_unanswered = False
        """Whether an agent did not answer, which has not been said: it may come to know why."""
        self._is_unexplained = False
        """Whether an agent had nothing in time; if it has not said why, it is about to know."""
        self._pid = os.getpid()
        self._hits: set[tuple[str, str, int]] = set()
        name = names.view_name(settings.job, self._agent.run)
        self._pinned = Pinned(self._tier, self._entries, name, self._ask) if settings.pin else None
        self._met: dict[tuple[tuple[str, str], ...], bool] = {}

    def variants(self, namespace: str, key: str, members: Collection[str] | None = None) -> Iterator[Entry]:
        """Yield every stored variant whose requirements this machine meets, in slot order.

        Without `members`, each comes with those that are not on demand.
        """
        if namespace in self.settings.exclude:
            return
        found = False
        for slot in range(MAX_SLOTS):
            if not self._sees(namespace, key, slot):
                continue
            started = time.perf_counter()
            manifest = self._entries.manifest(namespace, key, slot)
            if manifest is None:
                status = self._bring(namespace, key, slot, members)
                if status == "unusable":
                    continue
                manifest = self._entries.manifest(namespace, key, slot)
                if status != "ready" or manifest is None:
                    break
            entry = None
            if self._meets(manifest.requires):
                entry = self._entry(manifest, slot, members)
            if entry is not None:
                found = True
                opened = [member.name for member in manifest.wanted(members) if member.on_demand]
                # A variant whose guards did not hold is met again at the next look-up of its key.
                if opened or (namespace, key, slot) not in self._hits:
                    self._hits.add((namespace, key, slot))
                    seconds = time.perf_counter() - started
                    self._agent.say(protocol.Hit(namespace, key, slot, opened, seconds))
                self._say_quarantined()
                yield entry
        if not found:
            self._agent.say(protocol.Miss(namespace))
        self._say_quarantined()

    def get(self, namespace: str, key: str, members: Collection[str] | None = None) -> Entry | None:
        """Return the first variant whose requirements this machine meets, or None."""
        return next(self.variants(namespace, key, members), None)

    def put(
        self,
        namespace: str,
        key: str,
        members: Mapping[str, bytes],
        *,
        variant: str = "",
        requires: Mapping[str, str] | None = None,
        cost_seconds: float = 0.0,
        on_demand: Collection[str] = (),
    ) -> None:
        """Spool a result; the agent, or the next start on this machine, stores it."""
        if self.settings.refusal or namespace in self.settings.exclude:
            return
        started = time.perf_counter()
        try:
            is_new = self._spool.add(
                Put(
                    Result(
                        namespace=namespace,
                        key=key,
                        members=dict(members),
                        variant=variant,
                        requires=dict(requires or {}),
                        cost_seconds=cost_seconds,
                        on_demand=frozenset(on_demand),
                    ),
                    job=self.settings.job,
                    run=self._agent.run,
                )
            )
        except S3CacheError as error:
            self._warn(f"a result was not kept: {error}")
            return
        if not is_new:
            return
        self._agent.say(protocol.Spooled())
        self.start()
        self.waited("spool", time.perf_counter() - started)

    def use(self, namespace: str, key: str) -> None:
        """Note that a result was used that PyTorch or Triton found by themselves."""
        if namespace not in self.settings.exclude:
            self._agent.say(protocol.Use(namespace, key))

    def waited(self, what: str, seconds: float) -> None:
        """Note that the process spent time on something."""
        self._agent.say(protocol.Waited(what, seconds))

    def profile(self, namespace_prefix: str) -> list[tuple[str, str]]:
        """Return namespace and key of what this job's profile has in namespaces that begin so."""
        if namespace_prefix in self.settings.exclude:
            return []
        reply = self._ask(protocol.ProfileOf(namespace_prefix))
        return reply.keys if isinstance(reply, protocol.Profile) else []

    def agree(self, settle: Callable[[View], View], unknown: Collection[str] = ()) -> None:
        """See from now on what `settle`, which may raise, makes of what this process can use, if pinned.

        It is not to be found out yet whether a requirement of an `unknown` name holds.
        """
        if self._pinned:
            self._pinned.agree(
                settle, lambda requires: requires.keys().isdisjoint(unknown) and self._meets(requires)
            )

    def flush(self, seconds: float) -> protocol.Flushed | None:
        """Wait until all that was put is stored, at most `seconds`; None when no agent answers."""
        # One that is not up by now, or does not answer at once, has kept the job waiting long enough.
        starting = self._agent.starting_seconds
        self.start()
        answering = _EXIT_SECONDS if starting or self._agent.is_open else 0.0
        reply = self._request(protocol.Flush(0.0), starting + answering)
        if reply is not None:
            reply = self._request(protocol.Flush(seconds), seconds + _EXIT_SECONDS)
        return reply if isinstance(reply, protocol.Flushed) else None

    def progress(self) -> protocol.ProgressIs | None:
        """Return how far the prefetch of the job has come; None when no agent answers."""
        reply = self._request(protocol.ProgressOf(), self._agent.starting_seconds + _EXIT_SECONDS)
        return reply if isinstance(reply, protocol.ProgressIs) else None

    def trace(self) -> protocol.Events | None:
        """Return the events of the run; None when no agent answers."""
        reply = self._request(protocol.TraceOf(), _EXIT_SECONDS)
        return reply if isinstance(reply, protocol.Events) else None

    def start(self) -> None:
        """Connect to the agent, or start one, without waiting for it."""
        try:
            self._agent.start()
        except (OSError, RuntimeError, DiskTierError) as error:
            self._warn(f"the agent cannot be started: {error}")

    def _sees(self, namespace: str, key: str, slot: int) -> bool:
        """Return whether a slot is visible: in a pinned run, only what was when it started."""
        if self._pinned is None or not is_pinned(namespace):
            return True
        view = self._pinned.view()
        if view is None:
            self._warn(
                "the ranks have yet to agree on what they see, and until then they compile; "
                "call torch.distributed.init_process_group before what is compiled runs"
            )
            return False
        return view.sees(names.manifest_name(namespace, key, slot))

    def _meets(self, requires: Mapping[str, str]) -> bool:
        """Return whether all requirements hold here; in a pinned run, whether they did when first asked."""
        if self._pinned is None:
            return machine.meets(requires)
        # What the ranks have agreed on, one of them must not come to refuse.
        asked = tuple(sorted(requires.items()))
        if asked not in self._met:
            self._met[asked] = machine.meets(requires)
        return self._met[asked]

    def _entry(self, manifest: Manifest, slot: int, members: Collection[str] | None) -> Entry | None:
        if entry := self._entries.entry(manifest, slot, members):
            return entry
        place = manifest.namespace, manifest.key, slot, members
        # Another manifest of the slot may lead to what is here.
        entry = self._entries.find(*place)
        if entry is None and self._bring(*place) == "ready":
            entry = self._entries.find(*place)
        return entry

    def _bring(self, namespace: str, key: str, slot: int, members: Collection[str] | None) -> str:
        if self._patience == 0 and self._has_come():
            self._patience = REVIVED_SECONDS
        is_probe = self._patience == 0
        seconds = min(self._patience or PROBE_SECONDS, self._waiting_left)
        deadline = time.monotonic() + seconds - _TELLING_SECONDS
        named = None if members is None else list(members)
        lookup = protocol.Lookup(namespace, key, slot, named, deadline)
        reply = self._ask(lookup)
        self._entries.look_again()
        if not isinstance(reply, protocol.Found):
            return "unavailable"
        if is_probe and reply.status == "unavailable":
            self._owed = lookup
        return reply.status

    def _has_come(self) -> bool:
        """Return, once, whether the bucket has given what was last asked for without waiting."""
        if self._owed is None:
            return False
        namespace, key, slot = self._owed.namespace, self._owed.key, self._owed.slot
        # What was made here meanwhile, and the bucket did not take, says nothing of the bucket.
        is_unsent = self._tier.has(names.unsent_name(names.manifest_name(namespace, key, slot)))
        if is_unsent or not self._entries.find(namespace, key, slot, self._owed.members):
            return False
        self._owed = None
        return True

    def _ask(self, request: protocol.Request) -> protocol.Reply | None:
        """Return the agent's answer, or None; what got no answer eats into the patience."""
        if self._waiting_left <= 0:
            return None
        started = time.monotonic()
        is_probe = self._patience == 0
        if is_probe and started < self._probe_at:
            return None
        reply = self._request(request, min(self._patience or PROBE_SECONDS, self._waiting_left))
        waited = time.monotonic() - started
        self._waiting_left -= waited
        if self._waiting_left <= 0:
            self._warn(
                f"this process has waited for the bucket for {self.settings.deadline_seconds:g} s and goes "
                "on without it; S3CACHE_DEADLINE says how long it may"
            )
        self._spend(reply, waited, is_probe=is_probe)
        if reply is None:
            if self._is_unanswered:
                self._say_unanswered()
            self._is_unanswered = True
        self.waited("lookup", waited)
        return reply

    def _spend(self, reply: protocol.Reply | None, waited: float, *, is_probe: bool) -> None:
        """Take from the patience what an answer has cost, or renew it."""
        if isinstance(reply, protocol.ViewIs):
            # The agent gives what it can: how long a prefetch takes is bounded by the deadline alone.
            return
        status = reply.status if isinstance(reply, protocol.Found) else "absent"
        if status == "unavailable":
            self._is_unexplained = True
        if status == "ready":
            self._patience = PATIENCE_SECONDS
            self._cooldown = COOLDOWN_SECONDS
            self._is_unexplained = False
            return
        gained = 0.0 if reply is None or status == "unavailable" else PROMPT_SECONDS
        self._patience = min(self._patience + gained - waited, PATIENCE_SECONDS)
        if self._patience < _TELLING_SECONDS:
            self._patience = 0.0
            self._probe_at = time.monotonic() + self._cooldown
            # To be told at once that something is not there is no wait.
            if reply is None or not is_probe:
                self._cooldown *= 2

    def _say_quarantined(self) -> None:
        if quarantined := self._tier.take_quarantined():
            self._agent.say(protocol.Quarantined(quarantined))

    def _request(self, request: protocol.Request, seconds: float) -> protocol.Reply | None:
        reply = self._agent.request(request, seconds)
        if isinstance(reply, protocol.Found | protocol.ViewIs | protocol.Flushed) and reply.warning:
            self._warn(reply.warning)
        return reply

    def _say_unanswered(self) -> None:
        log = agent_directory(self.settings) / "log"
        last = ""
        with suppress(OSError, IndexError):
            last = f": {log.read_text(errors='replace').splitlines()[-1]}"
        self._warn(f"the cache did not answer in time and is left out; {log} may say why{last}")

    def _warn(self, text: str) -> None:
        if not self._warned:
            self._warned = True
            logger.warning("s3cache: %s", text)

    def _after_fork(self) -> None:
        self._hits.clear()
        self._agent.after_fork()

    def _at_exit(self) -> None:
        if os.getpid() != self._pid:
            return
        is_puzzled = self._is_unanswered and not self._warned
        patience = self._patience or PROBE_SECONDS
        if is_puzzled:
            patience = max(patience, _CAUSE_SECONDS)
        elif self._is_unexplained and not self._warned:
            patience = max(patience, _EXIT_SECONDS)
        seconds = patience if self.settings.report else min(patience, _EXIT_SECONDS)
        # For the report, and for what the job is yet to be told.
        reply = None
        if self._agent.is_open or self.settings.report or is_puzzled:
            self._agent.start_no_more()  # What was spooled waits for the next start.
            reply = self._request(protocol.Flush(0.0), seconds)
        if is_puzzled or (self._is_unexplained and reply is None):
            self._say_unanswered()


@functools.cache
def current() -> Client | None:
    """Return this process's client; None when no bucket is set, or what is set cannot be used."""
    if not os.environ.get("S3CACHE_URL") or os.environ.get("S3CACHE_MODE") == Mode.OFF.value:
        return None
    try:
        settings = Settings.from_environment()
        # Children, and the agent, are of the same job and use the same folder, wherever they start.
        os.environ.setdefault("S3CACHE_JOB", settings.job)
        os.environ["S3CACHE_DIR"] = os.fspath(settings.directory)
        if settings.report:
            os.environ["S3CACHE_REPORT"] = os.fspath(settings.report)
        if settings.trusted_keys:
            os.environ["S3CACHE_TRUSTED_KEYS"] = keys.inline(settings.trusted_keys)
        is_first_of_run = RUN_VARIABLE not in os.environ
        client = Client(settings)
    except (SettingsError, DiskTierError) as error:
        logger.warning("s3cache is off: %s", error)
        # Children need not find that out, and say it, for themselves.
        os.environ["S3CACHE_MODE"] = Mode.OFF.value
        return None
    if is_first_of_run:
        _say_whom_it_trusts(settings)
    os.register_at_fork(after_in_child=client._after_fork)
    atexit.register(client._at_exit)
    return client


def _say_whom_it_trusts(settings: Settings) -> None:
    if not settings.trusted_keys:
        logger.warning(
            "s3cache: nothing is signed: whoever can write %s runs code on this machine; "
            "`s3cache keys new` makes a key, and S3CACHE_TRUSTED_KEYS names those that are trusted",
            settings.url,
        )
    elif settings.refusal and settings.mode is Mode.READ_WRITE:
        logger.warning("s3cache: nothing is stored: %s", settings.refusal)
