"""Profiles on disk: one JSON file for each model, device, thread count and host, so that a restarted worker does not measure again."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from pathlib import Path

import msgspec

from schemas.profile import PROFILE_VERSION, Profile

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Profile).decode


def encode_profile(profile: Profile) -> bytes:
    """Readable JSON, as `headrace profile` writes it."""
    return msgspec.json.format(_encode(profile), indent=2) + b"\n"


def decode_profile(data: bytes) -> Profile:
    """Raises msgspec.DecodeError (ValidationError) for anything else."""
    return _decode(data)


class ProfileStore:
    """A folder of profiles."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def get(self, variant: str, sha256: str, *, device: str, threads: int, host: str) -> Profile | None:
        """The stored profile under this variant's key; None where there is none that this version can use (it is then measured again)."""
        try:
            profile = _decode(self._file(sha256, device, threads, host).read_bytes())
        except (FileNotFoundError, PermissionError, msgspec.DecodeError, UnicodeDecodeError):
            return None
        if profile.version > PROFILE_VERSION or not profile.batches:
            return None
        if (profile.sha256, profile.device, profile.threads, profile.host) != (sha256, device, threads, host):
            return None
        return msgspec.structs.replace(profile, variant=variant)

    def put(self, profile: Profile) -> Path:
        """Store a profile in place of an older one, whole or not at all."""
        target = self._file(profile.sha256, profile.device, profile.threads, profile.host)
        self._folder.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=".putting-", dir=self._folder)
        try:
            with os.fdopen(descriptor, "wb") as handle:
                handle.write(encode_profile(profile))
                # Workers under another account of this host may use it, too.
                os.fchmod(handle.fileno(), 0o644)
            Path(name).replace(target)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                Path(name).unlink()
            raise
        return target

    def _file(self, sha256: str, device: str, threads: int, host: str) -> Path:
        # Hashed: device and host names hold characters that file names must not.
        place = hashlib.sha256(f"{sha256}\n{device}\n{threads}\n{host}".encode()).hexdigest()
        return self._folder / f"{place[:32]}.json"
