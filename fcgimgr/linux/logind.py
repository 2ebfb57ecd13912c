"""What systemd-logind does to an ordinary user at the logout: /run/user/UID goes, with all that is in it.

It stays for whom it lets linger, of which it keeps a file (loginctl(1), enable-linger); elogind does the same
elsewhere.
"""

import os
import pwd
from typing import Final

_LINGER: Final = ("/var/lib/systemd/linger", "/var/lib/elogind/linger")


def goes_at_logout(path: str) -> bool:
    """Whether `path` lies in what is removed when our user logs out."""
    uid = os.geteuid()
    if uid == 0 or not path.startswith(f"/run/user/{uid}/"):
        return False
    try:
        name = pwd.getpwuid(uid).pw_name
    except KeyError:
        return False
    return not any(os.path.exists(os.path.join(place, name)) for place in _LINGER)
