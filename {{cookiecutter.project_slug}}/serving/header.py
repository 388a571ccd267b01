"""What RESPONSE_HEADER and RESPONSE_HEADER_WHEN may say."""

import re

CONDITIONS = {
    "status-200": range(200, 201),
    "success": range(200, 300),
    "always": range(100, 600),
    "never": range(0),
}

# RFC 9110, sections 5.6.2 and 5.5, without the obsolete non-ASCII values.
HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
HEADER_VALUE = re.compile(r"[!-~]([ \t!-~]*[!-~])?")
# RFC 9110: they frame the message or belong to the connection (6.6.1, 7.6.1, 8.6), say
# what this one body is (8.3 to 8.8, 14.4), or are for one client (10.2.2, RFC 6265).
SERVER_MANAGED_HEADERS = {
    *("connection", "content-length", "date", "keep-alive", "proxy-connection", "te"),
    *("trailer", "transfer-encoding", "upgrade", "content-encoding", "content-range"),
    *("content-location", "content-type", "etag", "last-modified"),
    *("location", "set-cookie", "x-request-id"),
}


def parse_header(text: str) -> tuple[str, str]:
    """Split "Name: value" (RFC 9110); raise ValueError that says what is allowed."""
    name, colon, value = text.partition(":")
    value = value.strip(" \t")
    if not colon:
        raise ValueError("it must be 'Name: value', with a colon")
    if not HEADER_NAME.fullmatch(name):
        raise ValueError(
            "the name may hold letters, digits and !#$%&'*+-.^_`|~ only (RFC 9110)"
        )
    if name.lower() in SERVER_MANAGED_HEADERS:
        raise ValueError("the server itself sets this header, or one view does")
    if not HEADER_VALUE.fullmatch(value):
        raise ValueError("the value must be visible ASCII on one line, not empty")
    return name, value
