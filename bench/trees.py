"""The accounts tree beside `@openzeppelin/merkle-tree`, which most distributors use, over the same number of leaves.

Both make a tree of (address, amount) pairs and one proof. OpenZeppelin's sorts leaves and carries no sums, so the roots
differ; what is compared is what a publisher waits for.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from pathlib import Path

import numpy as np

from bench.rates import Figures
from freehold.protocol.merkle import ACCOUNTS, SumTree
from freehold.protocol.state import AccountState, account_leaves
from freehold.protocol.tables import Table

LEAVES = 1_000_000
PEER_LEAVES = 100_000  # the peer takes minutes and gigabytes for a million
PROOFS = 1000
PEER = "@openzeppelin/merkle-tree@1.0.8"
SCRIPT = """
const { StandardMerkleTree } = require("@openzeppelin/merkle-tree");
const values = Array.from({ length: %d }, (_, i) => ["0x" + (i + 1).toString(16).padStart(40, "0"), String(i + 1)]);
const start = process.hrtime.bigint();
const tree = StandardMerkleTree.of(values, ["address", "uint256"]);
const made = process.hrtime.bigint();
for (let i = 0; i < 100; i++) tree.getProof(i);
const proven = process.hrtime.bigint();
console.log(JSON.stringify({ make: Number(made - start) / 1e9, proof: Number(proven - made) / 1e11 }));
"""


def accounts_of(count: int) -> Table[AccountState]:
    """`count` accounts, each with an amount."""
    numbers = np.arange(1, count + 1, dtype="<u8")
    addresses = np.zeros((count, 20), np.uint8)
    addresses[:, 12:] = numbers.astype(">u8").view(np.uint8).reshape(-1, 8)
    amounts = np.zeros((count, 12), np.uint8)
    amounts[:, :8] = numbers.view(np.uint8).reshape(-1, 8)
    columns = {"index": numbers - 1, "account": addresses, "tokens_earned": amounts}
    return Table.from_columns(AccountState, columns | {"credits_earned": 0, "credits_spent": 0}, count)


def measure_ours(count: int) -> tuple[float, float, float]:
    """Seconds for the tree, for one proof, and for the tree after one account in a hundred has changed."""
    accounts = accounts_of(count)
    start = time.perf_counter()
    tree = SumTree(ACCOUNTS, account_leaves(accounts))
    made = time.perf_counter()
    for i in range(PROOFS):
        tree.proof(i * (count // PROOFS))
    proven = time.perf_counter()
    changed = np.arange(0, count, 100)
    leaves = account_leaves(accounts.take(changed))
    before = time.perf_counter()
    tree.update(changed, leaves)
    return made - start, (proven - made) / PROOFS, time.perf_counter() - before


def measure_peer(cache: Path, count: int) -> tuple[float, float] | None:
    """Seconds for the peer's tree and one proof; None where npm is not here."""
    npm, node = shutil.which("npm"), shutil.which("node")
    if npm is None or node is None:
        return None
    folder = cache / "openzeppelin"
    if not (folder / "node_modules").exists():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "package.json").write_text("{}")
        subprocess.run([npm, "install", "--silent", "--ignore-scripts", PEER], cwd=folder, check=True)
    done = subprocess.run([node, "-e", SCRIPT % count], cwd=folder, check=True, capture_output=True, text=True)
    found = json.loads(done.stdout)
    return found["make"], found["proof"]


def measure(cache: Path) -> tuple[Figures, Figures]:
    """Figures and ratios of the trees."""
    make, proof, update = measure_ours(LEAVES)
    figures = {"tree_leaves": LEAVES, "tree_s": make, "proof_ms": 1000 * proof, "tree_one_percent_s": update}
    ratios: Figures = {}
    peer = measure_peer(cache, PEER_LEAVES)
    if peer is not None:
        small = measure_ours(PEER_LEAVES)[0]
        figures |= {"peer_leaves": PEER_LEAVES, "peer_tree_s": peer[0], "peer_proof_ms": 1000 * peer[1]}
        figures["tree_of_peer_leaves_s"] = small
        ratios["tree_vs_openzeppelin"] = peer[0] / small
    return figures, ratios
