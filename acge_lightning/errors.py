"""The one exception type that means "the input is wrong, and here is how to mend it"."""


class InputError(ValueError):
    """Bad data, a bad configuration value or an unreadable file.

    The message names what is wrong, where it stands (file and line, or key) and the remedy. The command line prints it
    without a traceback.
    """
