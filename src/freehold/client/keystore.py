"""Keys at rest: Web3 Secret Storage, version 3, as every Ethereum wallet reads it.

    derived    = scrypt(passphrase, salt, n, r=8, p=1)           32 bytes
    ciphertext = AES-128-CTR(derived[:16], iv) of the 32 secret bytes
    mac        = keccak(derived[16:] ‖ ciphertext)

Written here rather than taken from eth-account, whose import costs more than everything else that `freehold ls` does;
the tests hold both against each other. Invariant: a wrong passphrase is WrongPassphrase, told by the mac before
anything is decrypted.
"""

from __future__ import annotations

import hmac
import secrets
import uuid
from typing import Any

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from freehold.protocol.errors import InvalidInput, MalformedMessage, WrongPassphrase
from freehold.protocol.keys import Key
from freehold.protocol.typed import keccak

DEFAULT_COST = 1 << 18  # scrypt's n in geth's standard keystore: half a second and 256 MB
THROWAWAY_COST = 4096  # for keys that a local network makes for itself: not safe for anything of value
MAX_COST = 1 << 20  # a file may not ask for more than 1 GB

_R, _P = 8, 1


def seal_secret(secret: bytes, passphrase: str, cost: int = DEFAULT_COST) -> dict[str, Any]:
    """The keystore (JSON-ready) that holds 32 secret bytes; `cost` is scrypt's n, a power of two."""
    salt, iv = secrets.token_bytes(32), secrets.token_bytes(16)
    derived = _derive(passphrase, salt, cost, _R, _P)
    ciphertext = _stream(derived[:16], iv, secret)
    return {
        "version": 3,
        "id": str(uuid.uuid4()),
        "address": Key(secret).address.hex(),
        "crypto": {
            "cipher": "aes-128-ctr",
            "cipherparams": {"iv": iv.hex()},
            "ciphertext": ciphertext.hex(),
            "kdf": "scrypt",
            "kdfparams": {"dklen": 32, "n": cost, "r": _R, "p": _P, "salt": salt.hex()},
            "mac": keccak(derived[16:] + ciphertext).hex(),
        },
    }


def open_secret(keystore: dict[str, Any], passphrase: str) -> bytes:
    """The 32 secret bytes. WrongPassphrase, or MalformedMessage where it is no version 3 keystore with scrypt."""
    try:
        if keystore["version"] != 3:
            raise MalformedMessage(f"keystore version {keystore['version']} is not 3")
        crypto = keystore["crypto"]
        if crypto["kdf"] != "scrypt" or crypto["cipher"] != "aes-128-ctr":
            raise MalformedMessage(f"a keystore with {crypto['kdf']} and {crypto['cipher']}")
        parameters = crypto["kdfparams"]
        cost, r, p = int(parameters["n"]), int(parameters["r"]), int(parameters["p"])
        salt, mac = bytes.fromhex(parameters["salt"]), bytes.fromhex(crypto["mac"])
        ciphertext, iv = bytes.fromhex(crypto["ciphertext"]), bytes.fromhex(crypto["cipherparams"]["iv"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise MalformedMessage(f"not a keystore: {error}") from None
    derived = _derive(passphrase, salt, cost, r, p)
    if not hmac.compare_digest(keccak(derived[16:] + ciphertext), mac):
        raise WrongPassphrase(
            "the wallet does not open with this passphrase", hint="Nothing is lost: try the passphrase again."
        )
    return _stream(derived[:16], iv, ciphertext)


def _derive(passphrase: str, salt: bytes, cost: int, r: int, p: int) -> bytes:
    if not 2 <= cost <= MAX_COST or cost & (cost - 1) or not (0 < r <= 16 and 0 < p <= 16):
        raise InvalidInput(f"scrypt with n={cost}, r={r}, p={p} is out of range")
    return Scrypt(salt, 32, cost, r, p).derive(passphrase.encode())


def _stream(key: bytes, iv: bytes, data: bytes) -> bytes:
    return Cipher(algorithms.AES(key), modes.CTR(iv)).encryptor().update(data)
