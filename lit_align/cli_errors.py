"""Parsers that refuse a mistake in one message: the file, the key, what is wrong, and the nearest valid name."""

from __future__ import annotations

import sys
from typing import NoReturn

from jsonargparse import ArgumentParser


class ShortErrors(ArgumentParser):
    """A parser whose `error` prints one message and no usage."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Prints the message and exits with 2."""
        sys.stderr.write(f"error: {message}\n")
        self.exit(2)
        raise AssertionError("exit returned")


class CommandParser(ShortErrors):
    """The parser of a command that is a plain function."""
