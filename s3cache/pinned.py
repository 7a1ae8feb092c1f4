"""What a process of a pinned run sees: decided once on its machine, or once among the ranks of several.

What is written down first stays, so whoever has waited in vain can decide, for all, that nothing is seen.
"""

import os
from collections.abc import Callable, Mapping
from contextlib import suppress

from s3cache import names, view
from s3cache.agent import protocol
from s3cache.errors import DiskTierError
from s3cache.local import LocalEntries
from s3cache.tier import DiskTier
from s3cache.view import View

VIEW_VARIABLE = "_S3CACHE_VIEW"
"""Names, in the disk tier, what the ranks have agreed on, for the processes that a rank starts."""

Ask = Callable[[protocol.Request], protocol.Reply | None]


class Pinned:
    """The view of this process; that of its machine is written down under `name`.

    `ask` returns the agent's answer, or None after a bounded wait.
    """

    def __init__(self, tier: DiskTier, entries: LocalEntries, name: str, ask: Ask) -> None:
        self._tier = tier
        self._entries = entries
        self._name = name
        self._ask = ask
        self._view: View | None = None

    def view(self) -> View | None:
        """Return what this process sees; None while the ranks of several machines have yet to agree."""
        if self._view is None:
            if agreed := os.environ.get(VIEW_VARIABLE):
                self._see(self._written_down(agreed))
            elif not are_on_several_machines(_number("WORLD_SIZE")):
                self._see(self._on_this_machine())
        return self._view

    def agree(self, settle: Callable[[View], View], meets: Callable[[Mapping[str, str]], bool]) -> None:
        """See from now on what `settle` makes of what this process can use of its machine's view.

        If it raises, or `meets`, which says whether what a result requires holds here, nothing is seen.
        """
        mine = self.view()
        if mine is None:
            mine = self._on_this_machine()
        # What is found out of this machine now may be in the cache.
        self._see(mine)
        try:
            usable = View.of(each for each in self._entries.references() if meets(each.manifest.requires))
        finally:
            self._view = View()
        agreed = settle(mine & usable)
        data = view.encode(agreed)
        name = names.agreed_view_name(data)
        self._ask(protocol.Agreed(data))
        self._write_down(name, data)
        os.environ[VIEW_VARIABLE] = name
        self._see(agreed)

    def _see(self, seen: View) -> None:
        self._view = seen
        # What came since this process started may be in it.
        self._entries.look_again()

    def _on_this_machine(self) -> View:
        # One that is damaged is none: the agent may know it still.
        data = self._tier.read(self._name)
        while data is None:
            reply = self._ask(protocol.ViewOf())
            decided = reply.view if isinstance(reply, protocol.ViewIs) else view.encode(View())
            if decided is not None:
                data = self._write_down(self._name, decided)
        return view.decode(data)

    def _written_down(self, name: str) -> View:
        return view.decode(self._tier.read(name) or b"")

    def _write_down(self, name: str, data: bytes) -> bytes:
        """Write a view down, if it can be, and return the one that holds: the first one stays."""
        try:
            return self._tier.write_first(name, data)
        except DiskTierError:
            return data


def are_on_several_machines(ranks: int) -> bool:
    """Return whether so many ranks are more than torchrun says there are on this machine."""
    return ranks > _number("LOCAL_WORLD_SIZE")


def _number(variable: str) -> int:
    with suppress(ValueError):
        return int(os.environ.get(variable, ""))
    return 1
