"""Kernel numbers as people write them."""

import signal


def signal_name(number: int) -> str:
    """`SIGKILL` for 9; real-time signals, which have no name each, as `signal 40`."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def signal_number(text: str) -> int:
    """9 for `KILL`, `SIGKILL`, `kill` or `9`. ValueError says what is wrong with the text."""
    name = text.upper()
    if name.isascii() and name.isdigit():
        number = int(name)
    else:
        try:
            return signal.Signals["SIG" + name.removeprefix("SIG")].value
        except KeyError:
            raise ValueError(f"no signal is called {text!r}; it may be a name like HUP or USR1, or a number") from None
    if number not in signal.valid_signals():
        raise ValueError(f"there is no signal {number}")
    return number
