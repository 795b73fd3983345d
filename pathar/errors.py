"""The errors that end a command. Their text is the one line that the user reads."""


class CommandError(Exception):
    """The command failed: exit code 1."""


class UsageError(Exception):
    """The command was asked for something that it cannot do as asked: exit code 2."""
