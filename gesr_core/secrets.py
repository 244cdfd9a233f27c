"""Keep keys and tokens out of what is logged. Runs anywhere; imports nothing of the project."""

from __future__ import annotations

import logging
import re
from typing import Final

_HIDDEN: Final = r"\1***"
_NAME: Final = (
    r"(?i:secret|passw(?:or)?d|token(?!s)|credential|(?:access|account|api)[._-]?key|signature|authorization|\bsig\b)"
    r"[\w.\-]*"
)
_SECRETS: Final = (
    # user:password@ of a URL, also where the password has a slash; a token alone before the @ of a web address
    (re.compile(r"(\w://)[^/\s:@'\"]*:[^\s@'\",]+(?=@)"), _HIDDEN),
    (re.compile(r"(https?://)[^/\s@'\"]+(?=@)"), _HIDDEN),
    # "name": "any value"
    (re.compile(rf"({_NAME}[\"']?\s*[=:]\s*([\"']))(?:(?!\2).)*(?=\2)"), _HIDDEN),
    # name=value, name: value, also within longer names and in a URL's query
    (re.compile(rf"({_NAME}[\"']?\s*[=:]\s*[\"']?(?:(?i:bearer|basic)\s+)?)[^\s\"',;&}}\])]+"), _HIDDEN),
    (re.compile(r"\b((?i:bearer)\s+)[\w.~+/\-]{8,}=*"), _HIDDEN),
    # what AWS calls its keys
    (re.compile(r"()\b(?:AKIA|ASIA)[A-Z0-9]{12,}\b"), _HIDDEN),
)


def masked(text: str) -> str:
    """Return a text without the values of keys, passwords and tokens in it."""
    for pattern, hidden in _SECRETS:
        text = pattern.sub(hidden, text)
    return text


class MaskingFormatter(logging.Formatter):
    """Formats records as ever, tracebacks too, without the secrets in them."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record's line."""
        return masked(super().format(record))
