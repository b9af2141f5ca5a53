"""The `dbtunnel` command, one module a subcommand."""
