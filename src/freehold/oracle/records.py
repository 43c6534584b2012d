"""What a member writes down before it says it: all that a restarted member needs in order not to contradict itself.

batch        subject                     a batch's bytes; epoch: the last one that an acknowledgement of it named
reserved     client number               which reservation was acknowledged under this number for this epoch
held         subject                     the certificate that is to be observed
observation  epoch anchor                this member's observation over this anchor: the epoch is closed
view         epoch attempt               the highest view entered
manifest     epoch attempt view          the manifest voted for, or published, in this view
seal         epoch attempt view          this member's seal; the vote that it hides is written with it
vote         epoch attempt view          this member's one signature over a report
revoked      epoch                       it was committed here and revoked: attempts below this one are over
equivocation member epoch attempt view   two reports that a peer signed for one view
chain        -                           a snapshot of the chain view
"""

from __future__ import annotations

from typing import NamedTuple

BATCH = "batch"
RESERVED = "reserved"
HELD = "held"
OBSERVATION = "observation"
VIEW = "view"
MANIFEST = "manifest"
SEAL = "seal"
VOTE = "vote"
REVOKED = "revoked"
EQUIVOCATION = "equivocation"
CHAIN = "chain"


class Record(NamedTuple):
    """One row: (kind, key) is its identity; no data means that it is deleted."""

    kind: str
    key: str
    epoch: int
    data: bytes | None
