"""What descends from a process ends with it: a stop is over when all of it has gone, a crash leaves nothing behind."""

from pathlib import Path

import pytest

from tests.integration.running import strays
from tests.integration.scenes import kill, managing, scene
from tests.waiting import eventually

# A session of its own, which does not heed TERM, with a child that is seen by nobody but its parent.
HIDDEN = "setsid sh -c 'trap \"\" TERM; while :; do sleep 2003; done' & "


def program(script: str, *more: str) -> str:
    keys = [f'command = ["sh", "-c", """{script}"""]', "startsecs = 0", "stopwaitsecs = 0.3"]
    return "\n".join(["[program.app]", *keys, *more]) + "\n"


def test_a_stop_is_over_when_all_descendants_have_gone(tmp_path: Path) -> None:
    with managing(scene(tmp_path, program(HIDDEN + "exec sleep 2000", "numprocs = 8"))) as manager:
        for _ in range(6):
            eventually(lambda: len(strays(manager.mark)) >= 1 + 8 * 3)
            assert manager.halt("app").ok
            assert [stray for stray in strays(manager.mark) if f"{manager.pid} " not in stray] == []
            assert manager.start("app").ok


@pytest.mark.parametrize("end", ["kill -SEGV $$", "exit 3"])
def test_what_a_process_that_crashed_has_left_in_sessions_of_its_own_does_not_pile_up(tmp_path: Path, end: str) -> None:
    script = f"setsid sleep 2007 & setsid sh -c 'trap \"\" TERM; sleep 2008; :' & sleep 0.05; {end}"
    table = program(script, "startretries = -1", "backoff_initial = 0.05", "backoff_max = 0.1")
    with managing(scene(tmp_path, table), ready=False) as manager:
        eventually(lambda: manager.pool("app").processes[0].restarts >= 12)
        assert sum("sleep 200" in stray for stray in strays(manager.mark)) < 20
        assert manager.halt("app").ok
        assert not [stray for stray in strays(manager.mark) if "sleep 200" in stray]


def test_a_daemon_of_the_process_that_came_after_a_crash_is_left_alone(tmp_path: Path) -> None:
    script = "(setsid sleep 2009 &); echo $$ > pid.new; mv pid.new pid; exec sleep 2000"
    table = program(script, f'directory = "{tmp_path}"', "stopwaitsecs = 0.3").replace("stopwaitsecs = 0.3\n", "", 1)
    with managing(scene(tmp_path, table)) as manager:
        (first,) = eventually(lambda: sleeping(manager.mark, 2009))
        before = eventually((tmp_path / "pid").read_text)
        kill(int(before))
        (second,) = eventually(lambda: [pid for pid in sleeping(manager.mark, 2009) if pid != first])
        eventually(lambda: sleeping(manager.mark, 2009) == [second])
        # And with the next one it ends.
        eventually(lambda: (tmp_path / "pid").read_text() != before)
        kill(int((tmp_path / "pid").read_text()))
        eventually(lambda: len(sleeping(manager.mark, 2009)) == 1 and second not in sleeping(manager.mark, 2009))


def sleeping(mark: str, seconds: int) -> list[int]:
    return [int(stray.split()[0]) for stray in strays(mark) if f"sleep {seconds}" in stray and "sh -c" not in stray]
