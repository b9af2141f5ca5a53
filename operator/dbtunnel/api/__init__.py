"""The resource as people see it, and the documents that operator and forwarder exchange."""
