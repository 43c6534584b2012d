"""Compiles every contract (`contracts/*.vy`, and the services' own in `contracts/<service>/`) into
`src/freehold/chain/artifacts/*.json`, the same bytes on every machine.

    python scripts/compile_contracts.py                          write the artifacts
    python scripts/compile_contracts.py --check                  exit 1 if a committed artifact differs from its source
    python scripts/compile_contracts.py --evm-version cancun --out DIR

Invariant: an artifact depends on the sources, the pinned compiler and the EVM version alone, never on paths or time.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import snekmate
import vyper
from vyper.compiler import compile_from_file_input
from vyper.compiler.input_bundle import FilesystemInputBundle
from vyper.compiler.settings import OptimizationLevel, Settings

ROOT = Path(__file__).resolve().parent.parent
CONTRACTS = ROOT / "contracts"
ARTIFACTS = ROOT / "src" / "freehold" / "chain" / "artifacts"
DEFAULT_EVM_VERSION = "prague"


def compile_contract(source: Path, evm_version: str) -> dict[str, Any]:
    """The artifact of one contract: `{name, compiler, evm_version, abi, bytecode}`; bytecode is creation code."""
    packages = Path(next(iter(snekmate.__path__))).parent
    bundle = FilesystemInputBundle([packages, CONTRACTS])
    output = compile_from_file_input(
        bundle.load_file(str(source)),
        input_bundle=bundle,
        settings=Settings(evm_version=evm_version, optimize=OptimizationLevel.GAS),
        output_formats=["abi", "bytecode"],
        no_bytecode_metadata=True,
    )
    return {
        "name": source.stem,
        "compiler": f"vyper {vyper.__version__}",
        "evm_version": evm_version,
        "abi": output["abi"],
        "bytecode": output["bytecode"],
    }


def find_sources() -> list[Path]:
    """Every contract; `modules/` are parts of them."""
    found = [*CONTRACTS.glob("*.vy"), *CONTRACTS.glob("*/*.vy")]
    return sorted((path for path in found if path.parent.name != "modules"), key=lambda path: path.stem)


def compile_all(evm_version: str = DEFAULT_EVM_VERSION) -> dict[str, str]:
    """File name to JSON text, of every contract."""
    return {
        f"{source.stem}.json": json.dumps(compile_contract(source, evm_version), indent=1, sort_keys=True) + "\n"
        for source in find_sources()
    }


def find_differences(built: dict[str, str], folder: Path) -> list[str]:
    """Names of artifacts that are missing, differ, or have no source any more."""
    present = {path.name: path.read_text() for path in folder.glob("*.json")}
    return sorted(name for name in built.keys() | present.keys() if built.get(name) != present.get(name))


def main() -> int:
    parser = argparse.ArgumentParser(description="Compile the contracts.")
    parser.add_argument("--check", action="store_true", help="compare with the files there are, write nothing")
    parser.add_argument("--evm-version", default=DEFAULT_EVM_VERSION)
    parser.add_argument("--out", type=Path, default=ARTIFACTS)
    arguments = parser.parse_args()
    built = compile_all(arguments.evm_version)
    if arguments.check:
        differences = find_differences(built, arguments.out)
        for name in differences:
            print(f"{name} differs from its source: run scripts/compile_contracts.py", file=sys.stderr)
        return 1 if differences else 0
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name in find_differences(built, arguments.out):
        if name in built:
            (arguments.out / name).write_text(built[name])
        else:
            (arguments.out / name).unlink()
        print(f"wrote {name}" if name in built else f"removed {name}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
