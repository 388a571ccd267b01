"""Log lines in three formats, written by a separate thread.

No client can start a line or add a field: unprintable characters are escaped, and only
the formatter writes a newline or, before the fields of `text`, a tab.
"""

import structlog

from onloop.logging.formatter import Formatter, bind_fields, log_fields
from onloop.logging.queue import QueueHandler, dropped_lines, never_blocks, start, stop

__all__ = ["Formatter", "QueueHandler", "bind_fields", "configure_structlog"]
__all__ += ["dropped_lines", "log_fields", "never_blocks", "start", "stop"]


def configure_structlog() -> None:
    """Let structlog's loggers write through those of the standard library."""
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.stdlib.PositionalArgumentsFormatter(),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
