"""Starts the real parts that tests and the demo use: Kubernetes, sshd, databases, images."""
