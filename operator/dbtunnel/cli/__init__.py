"""The `dbtunnel` command, one module a subcommand."""


class UnusableInputError(ValueError):
    """What was given cannot be used; the text says what, and what to write instead. Exit code 2."""
