"""The one exception that means: what the user gave is at fault, not the program."""


class UserError(Exception):
    """Bad input. The message is one line naming the file, the field, and what was expected.

    The command line prints it and exits with code 2.
    """
