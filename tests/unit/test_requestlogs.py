"""What is wrong with a log that workers write is told once, whoever finds it, and once that it is over."""

import pytest

from fcgimgr.manager.logs.requestlogs import RequestLogs

PATH = "/var/log/access.log"
FULL = "cannot be written: No space left on device"


@pytest.fixture
def told() -> list[str]:
    return []


@pytest.fixture
def logs(told: list[str]) -> RequestLogs:
    return RequestLogs(told.append)


def shown(logs: RequestLogs) -> list[str]:
    return [trouble.problem for trouble in logs.troubles]


def test_it_is_told_once_and_over_when_it_is_for_all(logs: RequestLogs, told: list[str]) -> None:
    for worker in ("app_00", "app_01"):
        logs.hear(PATH, worker, FULL)
    logs.hear(PATH, "app_00", "")
    assert told == [f"{PATH}: {FULL}"]
    assert shown(logs) == [FULL]
    logs.hear(PATH, "app_01", "")
    assert told[1:] == [f"{PATH}: is written again"]
    assert shown(logs) == []


def test_the_end_of_who_has_found_it_neither_hides_it_nor_tells_it_anew(logs: RequestLogs, told: list[str]) -> None:
    for _ in range(3):
        logs.note(PATH, "app", "")  # the file is there
        logs.hear(PATH, "app_00", FULL)
        logs.ended("app_00", "app")
    logs.note(PATH, "app", "")
    assert told == [f"{PATH}: {FULL}"]
    assert shown(logs) == [FULL]
    logs.hear(PATH, "app_00", "")
    assert told[1:] == [f"{PATH}: is written again"]
    logs.hear(PATH, "app_00", "")
    assert len(told) == 2


def test_it_is_forgotten_with_the_last_that_could_say_more_of_it(logs: RequestLogs, told: list[str]) -> None:
    logs.hear(PATH, "app_00", FULL)
    logs.ended("app_00", "app")
    logs.note(PATH, "app", "cannot be opened: it is a directory")
    logs.forget("app")
    assert shown(logs) == []
    assert told == [f"{PATH}: {FULL}"]
