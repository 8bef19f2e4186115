"""Texts without the secrets that a URL may hold, for messages, events and whatever else is kept or shown."""

import re

_USER = re.compile(r"(?<=://)[^\s/?#'\"<>]*@")
_SIGNED = re.compile(
    r"((?:X-Amz-(?:Signature|Credential|Security-Token)|Signature|AWSAccessKeyId)=)[^\s&'\"<>]+", re.IGNORECASE
)


def redacted(text: str) -> str:
    """`text` with `***` for the user and password of every URL, and for the signature of every signed one."""
    return _SIGNED.sub(r"\1***", _USER.sub("***@", text))
