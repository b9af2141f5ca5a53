"""The process of a tunnel's pod. It knows nothing of Kubernetes."""

import ctypes.util
import os
import sys

# asyncssh looks for two optional C libraries as it is imported. The search runs ldconfig and a compiler, fails where no
# directory is writable, and takes a third of the time to start; what the libraries would add is not offered.
# Nor are X.509 certificates of hosts and users, whose module takes long to import.
sys.modules["asyncssh.crypto.x509"] = None  # type: ignore[assignment]
_find_library, ctypes.util.find_library = ctypes.util.find_library, lambda name: None  # noqa: ARG005
try:
    import asyncssh  # noqa: F401
finally:
    ctypes.util.find_library = _find_library

# asyncssh asks for the local user's name and home and fails where an id has no account; neither is of use here:
# options shut each file that it would read there, and this shuts the folder
os.environ["USER"] = os.environ["LOGNAME"] = "dbtunnel"
os.environ["HOME"] = "/nonexistent"
