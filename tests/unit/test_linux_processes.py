"""Reaping and signalling real children; what a manager does to itself is tried in a process of its own."""

import os
import resource
import signal
import subprocess
import sys
import textwrap

import pytest

from fcgimgr.linux.pidfd import PidFd
from fcgimgr.linux.processes import Death, reap, set_name
from tests.waiting import eventually


def may_raise_limits() -> bool:
    with open("/proc/self/status") as status:
        effective = next(line.split()[1] for line in status if line.startswith("CapEff:"))
    return bool(int(effective, 16) >> 24 & 1)


def child(script: str) -> int:
    return os.posix_spawn("/bin/sh", ["sh", "-c", script], os.environ, setsid=True)


def deaths(*pids: int) -> dict[int, Death]:
    """Of these children at least."""
    found: dict[int, Death] = {}

    def look() -> bool:
        found.update({death.pid: death for death in reap()})
        return found.keys() >= set(pids)

    eventually(look)
    return found


def outcome(script: str, **more: str) -> str:
    """What a fresh interpreter prints, with `script` run in it."""
    prelude = "import os, resource, signal, sys\nfrom fcgimgr.linux.processes import *\n"
    done = subprocess.run(
        [sys.executable, "-c", prelude + textwrap.dedent(script)],
        capture_output=True,
        text=True,
        env={**os.environ, **more},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_each_death_is_told_once_with_how_it_ended() -> None:
    exits, dies = child("exit 7"), child("kill -TERM $$")
    found = deaths(exits, dies)
    assert (found[exits].code, found[exits].signal, found[exits].dumped_core) == (7, None, False)
    assert (found[dies].code, found[dies].signal, found[dies].dumped_core) == (None, signal.SIGTERM, False)
    assert os.waitstatus_to_exitcode(found[exits].status) == 7
    assert os.waitstatus_to_exitcode(found[dies].status) == -signal.SIGTERM
    assert list(reap()) == []


def test_a_core_dump_is_told() -> None:
    assert Death(1, signal.SIGSEGV | 0x80).dumped_core
    assert Death(1, signal.SIGSEGV | 0x80).signal == signal.SIGSEGV
    assert (
        outcome(
            "print(signal.SIGABRT.value, __import__('fcgimgr.linux.processes').linux.processes._wait_status("
            "os.CLD_DUMPED, signal.SIGABRT))"
        )
        == f"6 {6 | 0x80}"
    )


def test_living_children_are_not_waited_for() -> None:
    pid = child("exec sleep 1000")
    assert list(reap()) == []
    os.kill(pid, signal.SIGKILL)
    assert deaths(pid)[pid].signal == signal.SIGKILL


def test_the_rest_of_a_dead_leaders_group_can_be_killed_before_the_pid_is_freed() -> None:
    reader, writer = os.pipe2(os.O_CLOEXEC)
    pid = os.posix_spawn(
        "/bin/sh",
        ["sh", "-c", "sleep 1000 & exit 3"],
        os.environ,
        setsid=True,
        file_actions=[(os.POSIX_SPAWN_DUP2, writer, 1)],
    )
    os.close(writer)

    def look() -> bool:
        for death in reap():
            assert death.pid == pid
            with PidFd(pid) as leader:
                assert leader.signal(0), "still a zombie: the pid is not free yet"
                assert leader.signal_group(signal.SIGKILL)
            return True
        return False

    eventually(look)
    assert os.read(reader, 1) == b"", "the grandchild is dead: nobody holds the pipe"
    os.close(reader)
    with pytest.raises(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


def test_a_caller_that_fails_loses_no_zombie() -> None:
    pid = child("exit 0")

    def fail_at_it() -> bool:
        for _ in reap():
            raise RuntimeError
        return False

    with pytest.raises(RuntimeError):
        eventually(fail_at_it)
    with pytest.raises(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


def test_orphans_come_to_a_subreaper() -> None:
    said = outcome(
        """
        set_subreaper()
        reader, writer = os.pipe()
        middle = os.fork()
        if middle == 0:
            if os.fork() == 0:
                os.close(writer)
                os.read(reader, 1)
                os._exit(42)
            os._exit(0)
        os.waitpid(middle, 0)
        os.close(writer)
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)
        print([death.code for death in reap()])
        """
    )
    assert said == "[42]"


def test_the_name_is_shown_by_ps() -> None:
    assert outcome("set_name('fcgimgr'); print(open('/proc/self/comm').read())") == "fcgimgr"
    assert outcome("set_name('much-longer-than-that'); print(open('/proc/self/comm').read())") == "much-longer-tha"
    assert set_name.__doc__


def test_our_own_limit_of_open_files_is_raised_and_the_old_one_told() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    said = outcome(
        f"""
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, {hard}))
        print(raise_nofile(1024), *resource.getrlimit(resource.RLIMIT_NOFILE))
        """
    )
    assert said == f"256 {min(hard, 1 << 20)} {hard}"


@pytest.mark.skipif(may_raise_limits(), reason="needs a process without CAP_SYS_RESOURCE")
def test_too_few_open_files_are_refused() -> None:
    said = outcome(
        """
        resource.setrlimit(resource.RLIMIT_NOFILE, (100, 512))
        try:
            raise_nofile(1024)
        except LinuxError as refusal:
            print(refusal)
        """
    )
    assert said.startswith("minfds: 1024 open files are asked for, the limit is 512; raise it (systemd: LimitNOFILE=")


@pytest.mark.skipif(not may_raise_limits(), reason="needs CAP_SYS_RESOURCE, which root lacks in many a container")
def test_root_gets_as_many_open_files_as_asked() -> None:
    said = outcome(
        """
        resource.setrlimit(resource.RLIMIT_NOFILE, (100, 512))
        print(raise_nofile(1024), *resource.getrlimit(resource.RLIMIT_NOFILE))
        """
    )
    assert said == "100 1024 1024"


def test_inherited_fds_are_closed_but_for_those_kept() -> None:
    said = outcome(
        """
        for fd in (10, 11, 12):
            os.dup2(1, fd)
        close_inherited({11})
        print([fd for fd in range(4, 20) if os.path.exists(f"/proc/self/fd/{fd}")], os.get_inheritable(11))
        """
    )
    assert said == "[11] False"


def test_signals_ignored_by_whoever_started_us_are_reset() -> None:
    said = outcome(
        """
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.signal(signal.SIGRTMIN, signal.SIG_IGN)
        signal.signal(signal.SIGUSR1, lambda *_: None)
        reset_ignored_signals()
        for name in ("SIGHUP", "SIGRTMIN", "SIGPIPE", "SIGXFSZ"):
            print(signal.getsignal(getattr(signal, name)).name)
        print(callable(signal.getsignal(signal.SIGUSR1)))
        """
    )
    assert said.split() == ["SIG_DFL", "SIG_DFL", "SIG_IGN", "SIG_IGN", "True"]
