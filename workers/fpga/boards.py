"""Which board a worker's `--device` means."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec

from schemas.errors import ConfigurationError

EMULATED = "emulated"
TWICE = "+twice"
_ADDRESS = re.compile(r"[0-9A-Za-z][0-9A-Za-z.:-]*")


class BoardChoice(msgspec.Struct, frozen=True, kw_only=True):
    """A board, and how far its results are trusted."""

    target: str
    """An address, `emulated`, or empty: the board that this runs on."""
    settings: bytes = b""
    """Of an emulated one: JSON of BoardSettings."""
    twice: bool = False
    """Each batch is computed twice and compared."""

    @property
    def folder_name(self) -> str:
        """For its files."""
        return (self.target or "here").replace(":", "_")


def read_choice(device: str | None) -> BoardChoice:
    """`ADDRESS`, `emulated`, `emulated:numpy`, `emulated:rtl`, `emulated:FILE.json`, or nothing; `+twice` behind it computes each batch twice.

    Raises ConfigurationError.
    """
    text = device or ""
    twice = text.endswith(TWICE)
    text = text.removesuffix(TWICE)
    kind, _, rest = text.partition(":")
    if kind == EMULATED:
        return BoardChoice(target=EMULATED, settings=_settings(rest), twice=twice)
    if text and not _ADDRESS.fullmatch(text):
        raise ConfigurationError(f"device {device!r} is no board: give its address, `emulated`, `emulated:rtl`, or nothing for the board here")
    return BoardChoice(target=text, twice=twice)


def _settings(stated: str) -> bytes:
    if not stated:
        return b""
    if not stated.endswith(".json"):
        return msgspec.json.encode({"fabric": stated})
    try:
        return Path(stated).read_bytes()
    except OSError as error:
        raise ConfigurationError(f"the settings of the emulated board, {stated}, cannot be read: {error.strerror}") from None
