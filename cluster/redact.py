"""Texts without the secrets that a URL may hold, for messages, events and whatever else is kept or shown."""

import re

_USERS = (
    re.compile(r"(?<=http://)\S*@|(?<=https://)\S*@"),  # to the last @, as a password may hold a slash
    re.compile(r"(?<=://)[^\s/?#'\"<>]*@"),
    re.compile(r"[^\s/?#'\"<>:@*]+:(?!//)[^\s'\"<>@]+@"),  # where the scheme was forgotten
)
_SIGNED = re.compile(
    r"((?:X-Amz-(?:Signature|Credential|Security-Token)|Signature|AWSAccessKeyId)=)[^\s&'\"<>]+", re.IGNORECASE
)


def redacted(text: str) -> str:
    """`text` with `***` for the user and password of every URL, and for the signature of every signed one."""
    for user in _USERS:
        text = user.sub("***@", text)
    return _SIGNED.sub(r"\1***", text)
