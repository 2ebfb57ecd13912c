"""What a child is to be, and how to say why it could not become that."""

import errno
import os
import resource
from typing import Final, NoReturn

import msgspec

from fcgimgr.linux.accounts import Account
from fcgimgr.linux.errors import LinuxError
from fcgimgr.linux.executables import why_not_executed

#: The names a recipe's rlimits may have.
RLIMITS: Final = {name[7:].lower(): getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_")}


class Recipe(msgspec.Struct, frozen=True, kw_only=True):
    """What a child is to be. None leaves a thing as the manager has it.

    executable: absolute (behind a chroot: as seen inside). environment: all of it. directory: absolute, inside the
    chroot if there is one. rlimits: name without RLIMIT_ in lower case → (soft, hard), resource.RLIM_INFINITY for none.
    soft_nofile: the soft limit of open files where rlimits has none, for the manager raises its own.
    """

    argv: tuple[str, ...]
    executable: str
    environment: dict[str, str]
    directory: str | None = None
    umask: int | None = None
    account: Account | None = None
    nice: int | None = None
    rlimits: dict[str, tuple[int, int]] = {}
    no_new_privs: bool = False
    oom_score_adj: int | None = None
    chroot: str | None = None
    soft_nofile: int | None = None


def nofile(recipe: Recipe) -> tuple[int | None, int | None]:
    """The (soft, hard) limit of open files the child gets; None: as we have it."""
    return recipe.rlimits.get("nofile", (recipe.soft_nofile, None))


def is_us(account: Account) -> bool:
    """Whether that is who we are already, so that there is nothing to drop (and nothing an ordinary user could)."""
    if os.getresuid() != (account.uid,) * 3 or os.getresgid() != (account.gid,) * 3:
        return False
    return account.uid != 0 or set(account.groups) == {account.gid, *os.getgroups()}


def refuse_step(recipe: Recipe, step: str, code: int | None) -> NoReturn:
    """Raise the LinuxError for a step of the way to the child that failed with the errno `code`."""
    code = code or errno.EINVAL
    program = recipe.executable
    reason = os.strerror(code).lower()
    if code in (errno.EAGAIN, errno.ENOMEM) and step in ("fork", "exec"):
        refusal = f"{program}: cannot fork: {reason}; too many processes (ulimit -u, pids.max) or too little memory"
    elif step == "exec":
        who = recipe.account.name if recipe.account else f"uid {os.geteuid()}"
        refusal = f"{program}: {why_not_executed(program, code, who, recipe.chroot)}"
    elif step == "directory":
        refusal = f"directory {recipe.directory}: {reason}; create it, or name another"
    elif step == "chroot":
        refusal = f"chroot {recipe.chroot}: {reason}" + ("; only root may do that" if code == errno.EPERM else "")
    elif step == "user" and recipe.account:
        refusal = f"user {recipe.account.name}: {reason}; only root may start a child as another user"
    elif step in ("nice", "oom_score_adj"):
        refusal = f"{step} {getattr(recipe, step)}: {reason}; only root may go below what the manager has"
    elif step.startswith("rlimit_"):
        limit = recipe.rlimits.get(step[7:], recipe.soft_nofile)
        refusal = f"{step} {limit}: {reason}; only root (CAP_SYS_RESOURCE) may raise a hard limit"
    elif code in (errno.EMFILE, errno.ENFILE):
        refusal = f"{program}: {reason}; raise minfds"
    else:
        refusal = f"{program}: {step}: {reason}"
    raise LinuxError(refusal)
