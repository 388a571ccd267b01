"""The allowed values of RESPONSE_HEADER and RESPONSE_HEADER_WHEN."""

import re

CONDITIONS = {
    "status-200": range(200, 201),
    "success": range(200, 300),
    "always": range(100, 600),
    "never": range(0),
}

# RFC 9110: they frame the message or belong to the connection (6.6.1, 7.6.1, 8.6), say
# what this one body is (8.3 to 8.8, 14.4), or are for one client (10.2.2, RFC 6265).
SERVER_MANAGED_HEADERS = {
    *("connection", "content-length", "date", "keep-alive", "proxy-connection", "te"),
    *("trailer", "transfer-encoding", "upgrade", "content-encoding", "content-range"),
    *("content-location", "content-type", "etag", "last-modified"),
    *("location", "set-cookie", "x-request-id"),
}
# RFC 9110, sections 5.6.2 and 5.5, without the obsolete non-ASCII values.
HEADER = r"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([!-~]([ \t!-~]*[!-~])?)[ \t]*"


def parse_header(text: str) -> tuple[str, str]:
    """Split "Name: value"; the ValueError says what is allowed."""
    if not (found := re.fullmatch(HEADER, text)):
        raise ValueError("use 'Name: value', a token and visible ASCII (RFC 9110)")
    if found[1].lower() in SERVER_MANAGED_HEADERS:
        raise ValueError("the server itself sets this header, or one view does")
    return found[1], found[2]
