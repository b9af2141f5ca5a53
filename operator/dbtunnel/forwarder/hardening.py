"""What keeps the private key in the process: nobody dumps its memory, and nobody of its user looks into it."""

import ctypes
import logging
import resource

from dbtunnel.forwarder.logs import event

_LOG = logging.getLogger(__name__)

_PR_SET_DUMPABLE = 4
"""prctl(2)."""


def harden() -> None:
    """No core dumps, and no debugger of the same user (prctl(2), PR_SET_DUMPABLE). Says so where it cannot."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        # by the process's own symbols: looking the C library up by name would start programs
        failed = ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
        problem = f"prctl: error {ctypes.get_errno()}" if failed else ""
    except (OSError, AttributeError) as error:
        problem = str(error)
    if problem:
        event(_LOG, "not hardened", level=logging.WARNING, seen=problem)
