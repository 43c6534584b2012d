"""Answering the beacon: one opening for each byte that it drew over what the committed state says this node holds.

What is challenged comes from the state, never from the node; so the answers are over the lists as of the delta numbers
that the state names, while clients change the newest ones. Work is a leaf read and two paths an opening, whatever the
node holds. A shard that is gone or damaged gives no row, which is silence; it never stops the other answers.
"""

from __future__ import annotations

import logging

from freehold.protocol.errors import FreeholdError
from freehold.protocol.service import Context
from freehold.protocol.units import Address, Hash
from freehold.services.seam import Files
from freehold.services.storage import shard_tree
from freehold.services.storage.lists import Lists
from freehold.services.storage.proof import pack_list_path
from freehold.services.storage.receiving import in_thread, key_of
from freehold.services.storage.score import StorageJudge
from freehold.services.storage.terms import Opening, ShardEntry, StorageProof

log = logging.getLogger(__name__)


async def prove(context: Context, node: Address, lists: Lists, files: Files) -> list[StorageProof]:
    """This node's answers, in the order of the draws."""
    rows = []
    numbers = {row.lease: row.number for row in context.state}
    for opening in StorageJudge().obligations(context):
        if opening.node != node:
            continue
        try:
            row = await _open(opening, numbers[opening.lease], lists, files)
        except (FreeholdError, OSError) as error:
            log.error("epoch %d, draw %d stays unanswered: %s", opening.epoch, opening.draw, error)
            continue
        if row is not None:
            rows.append(row)
    return rows


async def _open(opening: Opening, number: int, lists: Lists, files: Files) -> StorageProof | None:
    view = await lists.view_at(opening.lease, number)
    if view is None or opening.root != Hash(view.tree.root.hash + b"\x00"):
        log.error("lease %s: delta %d of the committed state is not known here", opening.lease, number)
        return None
    position, within = view.tree.find(opening.offset)
    entry = await lists.entry_at(opening.lease, number, position)
    shard = await lists.shard(opening.lease, entry.root) if entry else None
    if entry is None or shard is None:
        log.error("lease %s: the shard at position %d is not here", opening.lease, position)
        return None
    at = within // shard_tree.LEAF_BYTES
    leaf = await _read_leaf(opening.lease, entry, at, files)
    hashes = [shard.leaves[i : i + 32] for i in range(0, len(shard.leaves), 32)]
    if leaf is None or shard_tree.leaf_hash(leaf) != hashes[at]:
        log.error("lease %s: shard %s is damaged", opening.lease, entry.root)
        await lists.mark_corrupt(opening.lease, entry.root)
        return None
    path = await in_thread(shard_tree.proof, hashes, at)
    return StorageProof(
        epoch=opening.epoch,
        node=opening.node,
        draw=opening.draw,
        lease=opening.lease,
        position=position,
        entry=entry,
        list_path=pack_list_path(view.tree.proof(position)),
        leaf=leaf,
        shard_path=b"".join(path),
    )


async def _read_leaf(lease: Hash, entry: ShardEntry, at: int, files: Files) -> bytes | None:
    length = shard_tree.leaf_size(entry.size, at)
    try:
        leaf = await in_thread(files.read, key_of(lease, entry.root), at * shard_tree.LEAF_BYTES, length)
    except (FreeholdError, OSError):
        return None
    return leaf if len(leaf) == length else None
