"""How many requests may be made again: so that a store in trouble does not get twice as many."""

SHARE = 0.1
AT_FIRST = 10.0


class Retries:
    """Allows AT_FIRST retries; one that was made is allowed again after 1 / SHARE requests."""

    def __init__(self) -> None:
        self._left = AT_FIRST

    def earn(self) -> None:
        """Note that a request is made."""
        self._left = min(self._left + SHARE, AT_FIRST)

    def take(self) -> bool:
        """Return whether a request may be made again, and count that it is."""
        if self._left < 1:
            return False
        self._left -= 1
        return True
