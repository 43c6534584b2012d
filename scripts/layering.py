"""Holds the direction of imports: downward only, and what is pure stays pure. Part of `make lint`.

LAYERS is the rule: which part of the package may import which others. FORBIDDEN is what pure code (protocol, and
the judging half of every service) may not touch: no I/O, no clock, no environment, no randomness, no float. Imports
are read from the source, wherever they stand in a file (inside functions, under TYPE_CHECKING, by import_module with
a literal name), so nothing is executed.

Invariant: a module that no row of the table names is an error, so the table cannot fall behind the tree.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

PACKAGE = "freehold"
SOURCE = Path(__file__).resolve().parent.parent / "src"

BASE = ("protocol",)
JUDGED = (*BASE, "seam", "judging registry")
LOWER = (*JUDGED, "market", "net", "store", "chain")
WORKED = (*LOWER, "working registry")
EVERYTHING = (*WORKED, "client", "node", "oracle", "gateway", "web", "twin", "judging", "working")

# Top to bottom. A layer may always import itself; "judging" and "working" only within one service (see is_allowed).
LAYERS: dict[str, tuple[str, ...]] = {
    "cli": (*EVERYTHING, "local"),
    "local": EVERYTHING,
    "gateway": (*WORKED, "client", "working"),  # what a body is put from is storage's
    "job": (*WORKED, "client"),  # freehold.job: the typed face of the SDK's jobs
    "web": (*BASE, "net"),  # speaks HTTP to the others, imports none of them
    "twin": (*JUDGED, "market"),
    "node": WORKED,
    "oracle": LOWER,  # judges, and never loads a provider
    "client": (*WORKED, "judging", "working"),  # buckets are storage's: the SDK calls its client half by name
    "working registry": (*LOWER, "working"),
    "working": (*LOWER, "judging"),
    "market": (*BASE, "net", "store", "chain"),
    "net": BASE,
    "store": BASE,
    "chain": BASE,
    "judging registry": (*BASE, "seam", "judging"),
    "judging": (*BASE, "seam"),
    "seam": BASE,  # services/__init__.py, seam.py and explaining.py
    "protocol": (),
}

JUDGING_FILES = {"__init__", "terms", "proof", "score", "court", "explain", "explain_text", "shard_tree"}
SEAM_FILES = {"__init__", "explaining", "seam"}
PURE = {"protocol", "judging", "judging registry", "seam"}

FORBIDDEN_MODULES = {
    # input and output
    *("aiohttp", "asyncio", "fcntl", "ftplib", "glob", "http", "mmap", "multiprocessing", "pathlib", "requests"),
    *(
        "select",
        "selectors",
        "shutil",
        "signal",
        "smtplib",
        "socket",
        "sqlite3",
        "ssl",
        "subprocess",
        "sys",
        "tempfile",
    ),
    *("threading", "concurrent", "urllib", "web3", "logging"),
    # clock, environment, chance
    *("datetime", "getpass", "locale", "os", "platform", "platformdirs", "random", "secrets", "time", "uuid"),
}
# Judging is loaded where neither coding nor transport is installed (replay, the twin).
FORBIDDEN_IN_JUDGING = {"cryptography", "ecies", "pyeclib", "Crypto"}
# hash() of text and id() of anything differ from process to process.
FORBIDDEN_CALLS = {"print", "input", "eval", "exec", "float", "hash", "id", "__import__"}


def get_layer(module: str) -> str | None:
    """The layer of a module's dotted name, as LAYERS calls it; None where no row names it."""
    parts = module.split(".")[1:]
    if not parts:
        return "root"
    if parts == ["__main__"]:
        return "cli"
    if parts[0] != "services":
        return parts[0] if parts[0] in LAYERS else None
    if len(parts) == 1 or (len(parts) == 2 and parts[1] in SEAM_FILES):
        return "seam"
    if parts[1] in ("judging", "working"):
        return f"{parts[1]} registry"
    return "judging" if len(parts) == 2 or parts[2] in JUDGING_FILES else "working"


def get_service(module: str) -> str | None:
    parts = module.split(".")
    return parts[2] if get_layer(module) in ("judging", "working") else None


def is_allowed(importer: str, imported: str) -> bool:
    source, target = get_layer(importer), get_layer(imported)
    if target == "root":
        return True  # freehold/__init__.py: the version, and nothing that imports
    if source is None or target is None or source == "root":
        return False
    service = get_service(importer)
    if service is not None and get_service(imported) not in (None, service):
        return False  # no service imports another
    return target == source or target in LAYERS[source]


def get_module_name(path: Path, source: Path) -> str:
    parts = path.relative_to(source).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def get_imports(tree: ast.AST, modules: set[str]) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of everything imported; `from package import module` names the module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                yield node.lineno, f"{PACKAGE}.<relative import>"
                continue
            for alias in node.names:
                member = f"{node.module}.{alias.name}"
                yield node.lineno, member if member in modules else str(node.module)
        elif isinstance(node, ast.Call) and get_call_name(node) == "import_module" and node.args:
            argument = node.args[0]
            if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                yield node.lineno, argument.value


def get_call_name(node: ast.Call) -> str:
    if isinstance(node.func, ast.Name):
        return node.func.id
    return node.func.attr if isinstance(node.func, ast.Attribute) else ""


def get_impurities(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, what is wrong) for each float, true division and forbidden call in pure code."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, float | complex):
            yield node.lineno, f"float literal {node.value!r}"
        elif isinstance(node, ast.BinOp | ast.AugAssign) and isinstance(node.op, ast.Div):
            yield node.lineno, "true division gives a float: use //"
        elif isinstance(node, ast.Call):
            name = get_call_name(node)
            if name == "open" or (isinstance(node.func, ast.Name) and name in FORBIDDEN_CALLS):
                yield node.lineno, f"call of {name}()"


def check_file(path: Path, source: Path, modules: set[str]) -> list[str]:
    module = get_module_name(path, source)
    layer = get_layer(module)
    tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
    if layer is None:
        return [f"{path}:1: {module} is in no layer: add it to LAYERS in scripts/layering.py"]
    found = []
    forbidden: set[str] = set()
    if layer in PURE:
        forbidden = FORBIDDEN_MODULES | (set() if layer == "protocol" else FORBIDDEN_IN_JUDGING)
        found = list(get_impurities(tree))
    for line, name in get_imports(tree, modules):
        top = name.partition(".")[0]
        if top == PACKAGE:
            if not is_allowed(module, name):
                found.append((line, f"{layer} ({module}) may not import {name}"))
        elif top in forbidden:
            found.append((line, f"{layer} ({module}) is pure and may not import {top}"))
    return [f"{path}:{line}: {what}" for line, what in sorted(set(found))]


def check_tree(source: Path) -> list[str]:
    """Every breach under `source`, as `file:line: what`."""
    files = sorted((source / PACKAGE).rglob("*.py"))
    modules = {get_module_name(path, source) for path in files}
    return [breach for path in files for breach in check_file(path, source, modules)]


if __name__ == "__main__":
    breaches = check_tree(SOURCE)
    print("\n".join(breaches) or "layering: ok")
    sys.exit(bool(breaches))
