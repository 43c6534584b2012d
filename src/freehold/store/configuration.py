"""What the processes' configurations have in common: one JSON file each, its paths relative to the file's directory.

A configuration is a frozen dataclass; its fields are the keys, and those without a default must be there. What is not
understood is refused by name, at the start.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, TypeVar

from freehold.protocol.errors import InvalidInput, MalformedMessage, NotFound, WrongPassphrase
from freehold.protocol.keys import Key
from freehold.protocol.typed import parse_json

PASSPHRASE_VARIABLE = "FREEHOLD_PASSPHRASE"

T = TypeVar("T")
Parse = Callable[[str, Any, Path], Any]  # (key, value, directory) to the field's value; InvalidInput by `wrong`


def read_configuration(path: Path) -> Mapping[str, Any]:
    """The JSON object at `path`. NotFound, InvalidInput."""
    try:
        value = parse_json(path.read_bytes())
    except FileNotFoundError:
        raise NotFound(f"there is no configuration at {path}") from None
    except MalformedMessage as error:
        raise InvalidInput(f"{path}: {error.message}") from None
    if not isinstance(value, dict):
        raise InvalidInput(f"{path} must hold a JSON object")
    return value


def parse_configuration(kind: Callable[..., T], value: Mapping[str, Any], directory: Path, parse: Parse) -> T:
    """A `kind` (a dataclass) of the object's entries; null counts as not given. InvalidInput naming the key that is
    unknown, missing or wrong."""
    known = {field.name: field for field in fields(kind)}  # type: ignore[arg-type]  # of a class, as it takes
    unknown = sorted(set(value) - set(known))
    if unknown:
        raise InvalidInput(f"the configuration has an unknown key {unknown[0]!r}")
    given = {name: parse(name, item, directory) for name, item in value.items() if item is not None}
    for name, field in known.items():
        if name not in given and field.default is MISSING and field.default_factory is MISSING:
            raise InvalidInput(f"the configuration lacks {name!r}")
    return kind(**given)


def wrong(name: str, item: Any) -> InvalidInput:
    """What to raise for a value that the key cannot have."""
    return InvalidInput(f"the configuration's {name!r} is not what it must be: {item!r}")


def read_passphrase(file: Path | None) -> str:
    """What stands in `file`, else in FREEHOLD_PASSPHRASE. InvalidInput where neither is given."""
    if file is not None:
        try:
            return file.read_text().rstrip("\r\n")
        except OSError as error:
            raise InvalidInput(f"the passphrase file cannot be read: {error.strerror}") from None
    if PASSPHRASE_VARIABLE in os.environ:
        return os.environ[PASSPHRASE_VARIABLE]
    raise InvalidInput("no passphrase", hint=f"Name a passphrase_file, or set {PASSPHRASE_VARIABLE}.")


def open_wallet(path: Path, passphrase: str) -> Key:
    """The key in a Web3 Secret Storage file. NotFound, InvalidInput, WrongPassphrase. Slow: scrypt."""
    from eth_keyfile.keyfile import decode_keyfile_json

    try:
        return Key(decode_keyfile_json(json.loads(path.read_text()), passphrase.encode()))
    except FileNotFoundError:
        raise NotFound(f"there is no wallet at {path}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if "MAC" in str(error):
            raise WrongPassphrase(f"the wallet {path.name} does not open with this passphrase") from None
        raise InvalidInput(f"{path} is no wallet: {error}") from None
