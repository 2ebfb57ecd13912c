"""Signals by name and by number, as people write them."""

import signal


def signal_name(number: int) -> str:
    """`SIGKILL` for 9; `signal 40` for a real-time signal, which has no name."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def signal_number(text: str) -> int:
    """9 for `KILL`, `SIGKILL`, `kill` or `9`. ValueError says what is wrong with the text."""
    name = text.strip().upper()
    if name.isascii() and name.isdigit() and len(name) <= 3:
        if int(name) not in signal.valid_signals():
            raise ValueError(f"there is no signal {text}")
        return int(name)
    found = signal.Signals.__members__.get("SIG" + name.removeprefix("SIG"))
    if found is None:
        raise ValueError(f"no signal is called {text!r}; it may be a name like HUP or USR1, or a number")
    return int(found)
