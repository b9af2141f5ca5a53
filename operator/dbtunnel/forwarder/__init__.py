"""The forwarder's process: one listening socket, SSH connections behind it, an admin port beside it."""
