"""The database tunnel operator: one resource, a private database reachable by a host name."""

__version__ = "0.1.0"
