"""Storage's proofs: what the beacon draws over what the state says a node holds, and whether an opening is good.

Each node owes `challenges` openings an epoch, whatever it holds. Draw j falls on byte
keccak(beacon ‖ node ‖ j) mod (bytes of all its lists), its leases in the order of their ids; that byte lies in one
list, one shard, one 4 KiB leaf. Work and proof size grow with the logarithm of what is held (PDP: a challenge
over the whole range, drawn by a beacon nobody chose; source: FilOzone PDPVerifier).
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable
from itertools import accumulate

from freehold.protocol.beacon import draw
from freehold.protocol.merkle import LISTS, SumNode, is_sum_proof, offset_of
from freehold.protocol.service import Context
from freehold.protocol.units import Address
from freehold.protocol.verdicts import GOOD
from freehold.services.storage import shard_tree
from freehold.services.storage.terms import (
    WRONG_LEAF,
    WRONG_LEASE,
    WRONG_LIST_PATH,
    WRONG_POSITION,
    WRONG_SHARD_PATH,
    ListState,
    Opening,
    StorageProof,
)


def group_lists(context: Context) -> dict[Address, list[ListState]]:
    """The lists that are owed, by node, each node's in the order of their leases."""
    lists: defaultdict[Address, list[ListState]] = defaultdict(list)
    for row in sorted(context.state, key=lambda r: r.lease):
        if row.size and row.lease in context.leases:
            lists[row.node].append(row)
    return dict(sorted(lists.items()))


def draw_openings(context: Context, node: Address, lists: list[ListState]) -> list[Opening]:
    """The openings that one node owes in this epoch."""
    ends = list(accumulate(row.size for row in lists))
    openings = []
    for number in range(context.parameters.challenges):
        offset = draw(context.beacon, node, number, ends[-1])
        at = bisect_right(ends, offset)
        row = lists[at]
        openings.append(
            Opening(
                epoch=context.epoch,
                node=node,
                draw=number,
                lease=row.lease,
                root=row.root,
                count=row.count,
                size=row.size,
                offset=offset - (ends[at] - row.size),
            )
        )
    return openings


def judge_proof(opening: Opening, proof: StorageProof) -> str:
    """GOOD, or the first thing that is wrong with this answer to this opening."""
    if proof.lease != opening.lease:
        return WRONG_LEASE
    siblings = unpack_list_path(proof.list_path)
    root = SumNode(bytes(opening.root[:31]), (opening.size,))
    if siblings is None or not is_sum_proof(LISTS, root, opening.count, proof.position, proof.entry.leaf(), siblings):
        return WRONG_LIST_PATH
    within = opening.offset - offset_of(proof.position, siblings)
    if not 0 <= within < proof.entry.size:
        return WRONG_POSITION
    leaf = within // shard_tree.LEAF_BYTES
    if len(proof.leaf) != shard_tree.leaf_size(proof.entry.size, leaf) or len(proof.shard_path) % 32:
        return WRONG_LEAF
    path = [proof.shard_path[i : i + 32] for i in range(0, len(proof.shard_path), 32)]
    leaves = shard_tree.leaf_count(proof.entry.size)
    if not shard_tree.verify(proof.entry.root, leaves, leaf, proof.leaf, path):
        return WRONG_SHARD_PATH
    return GOOD


def pack_list_path(siblings: Iterable[SumNode]) -> bytes:
    """A list proof's siblings as they travel."""
    return b"".join(LISTS.pack(sibling) for sibling in siblings)


def unpack_list_path(data: bytes) -> list[SumNode] | None:
    """The siblings behind `pack_list_path`'s form; None if the length is wrong."""
    size = LISTS.node_bytes
    if len(data) % size:
        return None
    return [LISTS.unpack(data[i : i + size]) for i in range(0, len(data), size)]
