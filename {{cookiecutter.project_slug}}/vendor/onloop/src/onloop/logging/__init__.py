"""Log lines in three formats, written by a thread of their own.

Nothing that a client sent can start a line or add a field: what is not printable is
escaped, and only the formatter writes a newline or, before the fields of `text`, a tab.
"""

from onloop.logging.formatter import Formatter
from onloop.logging.queue import QueueHandler, never_blocks, start, stop

__all__ = ["Formatter", "QueueHandler", "never_blocks", "start", "stop"]
