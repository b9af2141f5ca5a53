"""The process of a tunnel's pod. It knows nothing of Kubernetes.

Its libraries are imported here, without what it has no use for: that would take 2 MiB and a tenth of the time in which
it starts. Who has imported them before has all of them.
"""

import contextlib
import ctypes.util
import os
import sys
import typing
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Any, Never


class _Absent(ModuleType):
    """Stands for a module whose names others import and nobody uses: each is a class of which nothing can be made."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {"__new__": _refuse})


def _refuse(kind: type, *_: object, **__: object) -> Never:
    raise NotImplementedError(f"{kind.__name__}: a forwarder does not import it")


@contextlib.contextmanager
def _standing(modules: Mapping[str, ModuleType | None]) -> Iterator[None]:
    """While it lasts those not imported yet are found to be these; None cannot be imported."""
    new = {name: module for name, module in modules.items() if name not in sys.modules}
    sys.modules.update(new)  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name in new:
            del sys.modules[name]


_UNUSED: Mapping[str, ModuleType | None] = {
    "ssl": None,  # asyncio does without where Python has none; a probe that needs it imports it then
    "asyncssh.crypto.x509": None,  # certificates of a kind that OpenSSH has not; asyncssh does without as well
    "asyncssh.sftp": _Absent("asyncssh.sftp"),
    "asyncssh.scp": _Absent("asyncssh.scp"),
    "typing_extensions": typing,  # of which asyncssh takes what Python has since 3.11
}

# asyncssh looks for two optional C libraries as it is imported. The search runs ldconfig and a compiler, fails where no
# directory is writable, and takes a third of the time to start; what the libraries would add is not offered
_find_library, ctypes.util.find_library = ctypes.util.find_library, lambda name: None  # noqa: ARG005
try:
    with _standing(_UNUSED):
        import asyncio  # noqa: F401

        import asyncssh  # noqa: F401
finally:
    ctypes.util.find_library = _find_library

# asyncssh asks for the local user's name and home and fails where an id has no account; neither is of use here:
# options shut each file that it would read there, and this shuts the folder
os.environ["USER"] = os.environ["LOGNAME"] = "dbtunnel"
os.environ["HOME"] = "/nonexistent"
