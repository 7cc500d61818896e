"""Ctrl+C and SIGTERM: the first asks a loop to save and stop, a second one stops at once."""

from __future__ import annotations

import signal

from src.core.console import say


class Interrupts:
    """As a context manager; `asked` turns true on the first signal."""

    def __enter__(self) -> Interrupts:
        self.asked = False
        self.before = {s: signal.signal(s, self._ask) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, _) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        say("\n  stopping after this step (once more: at once)")
