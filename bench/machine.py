"""What a run was made on."""

import os
import platform
import re
import subprocess
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from tests.support.databases import postgres_program
from tests.support.processes import run

_MODEL = re.compile(r"^model name\s*: (.*)$", re.MULTILINE)


def machine() -> dict[str, str]:
    """Day, processor, kernel and its congestion control, and the versions of what takes part."""
    processors = _MODEL.findall(Path("/proc/cpuinfo").read_text())
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "processor": f"{processors[0] if processors else platform.machine()} ({len(processors)})",
        "kernel": platform.release(),
        "TCP": Path("/proc/sys/net/ipv4/tcp_congestion_control").read_text().strip(),
        "load before": f"{os.getloadavg()[0]:.1f}",
        "OpenSSH": _openssh(),
        "asyncssh": version("asyncssh"),
        "Python": platform.python_version(),
        "PostgreSQL": run([postgres_program("pgbench"), "--version"]).split()[2],
    }


def machine_line() -> str:
    """The same in one line."""
    return "; ".join(f"{name} {value}" for name, value in machine().items()) + "."


def _openssh() -> str:
    # it writes its version as an error
    said = subprocess.run(["ssh", "-V"], capture_output=True, text=True, check=True).stderr
    return said.split(",")[0].split()[0].removeprefix("OpenSSH_")
