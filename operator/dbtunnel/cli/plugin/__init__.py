"""`kubectl dbtunnel`, with the user's own credentials: one module a subcommand; `*_text.py` render and ask nobody."""
