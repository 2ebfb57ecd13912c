"""Connections are kept where that gains time, and not where somebody would wait for it."""

from itertools import cycle, islice

from fcgimgr.worker.keeping import MOST, MOST_IN_ALL, SHED, Keeping


def history(*requests: tuple[float, float], times: int, queued: bool = False) -> list[bool]:
    """(seconds of pause, seconds of request) again and again; whether each one's connection was kept."""
    keeping, now, kept = Keeping(lambda: queued), 1000.0, []
    for pause, taken in islice(cycle(requests), times):
        if pause:
            keeping.busy = False
        keeping.served(now + pause, now + pause + taken)
        now += pause + taken
        kept.append(keeping.keeps("connection"))
    return kept


def test_one_connection_goes_for_so_many_requests_that_waited_for_another() -> None:
    keeping, now, kept = Keeping(lambda: False), 1000.0, []
    for _ in range(10 * SHED):
        for position in range(3):  # that were there at once, after a pause
            keeping.busy = False
            keeping.waited += position > 0
            keeping.served(now, now + 0.00003)
            now += 0.00003
            kept.append(keeping.keeps("connection"))
        now += 0.001
    assert kept.count(False) == 20


def test_short_requests_that_keep_nobody_waiting_keep_their_connections() -> None:
    assert all(history((0.0, 0.00003), times=10 * SHED))


def test_many_threads_let_one_go_now_and_then() -> None:
    """Who waits for whom is not known."""
    keeping, kept = Keeping(lambda: False, threads=2), []
    for _ in range(10 * SHED):
        keeping.served(1000.0, 1000.0)
        kept.append(keeping.keeps("connection"))
    assert kept.count(False) == 10


def test_a_process_with_pauses_keeps_them_all() -> None:
    assert all(history((0.0001, 0.00003), times=10 * SHED))


def test_long_requests_without_a_pause_keep_none() -> None:
    kept = history((0.0001, 0.02), times=1000)
    assert kept[0]
    assert not any(kept[300:])


def test_long_requests_that_are_rare_keep_their_connections() -> None:
    assert all(history((1.0, 0.02), times=1000))


def test_a_few_long_ones_among_many_short_ones_keep_none() -> None:
    short, long = (0.0001, 0.0003), (0.0001, 0.3)
    kept = history(*[short] * 99, long, times=3000)
    assert not any(kept[1000:])


def test_long_requests_keep_none_as_soon_as_somebody_waits() -> None:
    assert not any(history((0.0, 0.02), times=100, queued=True)[4:])
    assert all(history((1.0, 0.0001), times=100, queued=True))


def test_one_slow_beginning_decides_nothing() -> None:
    assert all(history((0.001, 0.3), *[(0.001, 0.0005)] * 50, times=50))


def test_what_was_slow_once_is_forgotten() -> None:
    keeping = Keeping(lambda: False)
    now = 0.0
    for taken in [0.02] * 500 + [0.0001] * 3000:
        keeping.busy = False
        keeping.served(now, now + taken)
        now += taken + 0.0002
    assert keeping.keeps("connection")


def test_few_are_kept_at_once() -> None:
    keeping = Keeping(lambda: False, threads=2)
    assert [keeping.keeps(number) for number in range(3 * MOST)] == [True] * 2 * MOST + [False] * MOST
    keeping.kept.discard(0)
    assert keeping.keeps("another")
    assert keeping.keeps(1)


def test_many_threads_do_not_keep_more_than_a_process_may_have_open() -> None:
    keeping = Keeping(lambda: False, threads=100)
    assert sum(keeping.keeps(number) for number in range(100 * MOST)) == MOST_IN_ALL
