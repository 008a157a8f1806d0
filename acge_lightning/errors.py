"""Define InputError: the input is wrong, and here is how to mend it."""


class InputError(ValueError):
    """Bad data, a bad configuration value or an unreadable file.

    The message names what is wrong, where it stands (file and line, or key) and the remedy. The command line prints it
    without a traceback.
    """


def check_unicode(text: str, name: str) -> None:
    r"""Raise an InputError if a text has half of a surrogate pair, as cut JSON escapes and bytes that are not UTF-8 give it.

    It is no character, and no tokenizer and no file of ours takes it; only the user knows what it should be.

    >>> check_unicode("caf\udce9", "texts[3]")
    Traceback (most recent call last):
    acge_lightning.errors.InputError: texts[3] has half a surrogate pair at 3 of 'caf\udce9': mend it, or leave it out
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        problem = f"half a surrogate pair at {error.start} of {text!r:.60}"
        raise InputError(f"{name} has {problem}: mend it, or leave it out") from None
