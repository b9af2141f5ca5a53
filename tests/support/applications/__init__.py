"""Applications in Python, Node.js and Java, as docs/tls.md has them: what they run on, and where."""
