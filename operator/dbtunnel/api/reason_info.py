"""What is declared of a reason, and the times that reasons share."""

from dataclasses import KW_ONLY, dataclass

from dbtunnel.api.conditions import LAYERS, ConditionType

SUPPLY_GRACE = 300
"""Seconds in which a person, or a sync that applies the pieces in any order, may still supply what is missing."""

OUTAGE_GRACE = 60
"""Seconds in which an outage of the bastion, the network or the database may still mend by itself."""

PASSING_SECONDS = 5
"""Seconds for which a forwarder's failure that may mend by itself (one with OUTAGE_GRACE) changes no condition: an sshd
that restarts is back within that, and clients wait for it."""

SLOW = 60
"""Seconds between attempts where a retry makes it worse: sshd penalises the source address, which neighbours share."""

TURNED_AWAY = 15
"""Seconds between attempts where a server turns connections away: the shortest that sshd's PerSourcePenalties last, and
short enough for clients that wait `parking.maxSeconds` to be served after the next one."""


@dataclass(frozen=True)
class ReasonInfo:
    """What a reason means for the machine and for the person."""

    type: ConditionType
    """The condition that carries it."""
    grace_seconds: int | None
    """How long the tunnel is Reconciling before it is Stalled. 0: Stalled at once. None: never Stalled."""
    meaning: str
    """What is the case, for the documentation."""
    message: str
    """The template of the condition's message: what was seen at which hop, and what to do."""
    retry_seconds: int = 0
    """The least time between two attempts, before jitter. 0: the usual backoff."""
    _: KW_ONLY
    cause: str
    """What most often brings it about, for the documentation."""
    example: str = ""
    """What is seen, for instance: from it the documentation's example of a message is made."""
    behind: str = ""
    """The template for an SSH server to which a jump host opens the connection, where it is another."""

    @property
    def may_pass(self) -> bool:
        """Whether it is told only after PASSING_SECONDS: one of a forwarder's layers, and it may mend by itself."""
        return self.type in LAYERS and self.grace_seconds == OUTAGE_GRACE
