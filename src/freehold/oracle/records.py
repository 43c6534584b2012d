"""What a member writes down before it says it: all that a restarted member needs in order not to contradict itself.

batch        subject            a batch's bytes; epoch: the last one that an acknowledgement of it named
reserved     client number      which reservation was acknowledged under this number for this epoch
held         subject            the certificate that is to be observed
observation  epoch              this member's observation: the epoch is closed
view         epoch              the highest view entered
manifest     epoch view         the manifest voted for, or published, in this view
vote         epoch view         this member's one signature over a report
equivocation member epoch view  two reports that a peer signed for one view
chain        -                  a snapshot of the chain view
"""

from __future__ import annotations

from typing import NamedTuple

BATCH = "batch"
RESERVED = "reserved"
HELD = "held"
OBSERVATION = "observation"
VIEW = "view"
MANIFEST = "manifest"
VOTE = "vote"
EQUIVOCATION = "equivocation"
CHAIN = "chain"


class Record(NamedTuple):
    """One row: (kind, key) is its identity; no data means that it is deleted."""

    kind: str
    key: str
    epoch: int
    data: bytes | None
