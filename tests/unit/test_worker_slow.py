"""The slow log: once for each slow request, with where it is, and nothing done while there is nothing to see."""

import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from fcgimgr.worker.appending import AppendedFile
from fcgimgr.worker.slow import SlowLog
from fcgimgr.worker.watching import Watch
from tests.waiting import eventually


class Scene:
    def __init__(self, directory: Path, after: float) -> None:
        self.log = directory / "slow.log"
        self.watch = Watch()
        self.slow = SlowLog(after, AppendedFile(str(self.log), standard=2), lambda: self.watch.hands)
        self.watch.slow_log = self.slow

    def text(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    def count(self) -> int:
        return self.text().count("has taken")


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path, 0.05)


def waits_here(until: threading.Event) -> None:
    until.wait(20)  # the line that is to be found


def serve(scene: Scene, uri: str, until: threading.Event) -> None:
    scene.watch.begin({"REQUEST_METHOD": "GET", "REQUEST_URI": uri}, time.monotonic())
    waits_here(until)
    scene.watch.end(200, 0, time.monotonic())


def test_a_slow_request_is_written_once_with_the_line_it_is_at(scene: Scene):
    until = threading.Event()
    thread = threading.Thread(target=serve, args=(scene, "/slow?x=1", until))
    thread.start()
    eventually(lambda: scene.count() == 1)
    text = scene.text()
    assert "GET /slow?x=1 has taken 0." in text
    assert "until.wait(20)  # the line that is to be found" in text
    assert "in waits_here" in text
    assert text.index("in serve") < text.index("in waits_here")
    assert text.endswith("\n\n")
    for _ in range(3):
        scene.slow.look()
    assert scene.count() == 1
    until.set()
    thread.join()


def test_each_of_several_and_each_next_one_of_a_thread(scene: Scene):
    for number in range(2):
        until = threading.Event()
        threads = [threading.Thread(target=serve, args=(scene, f"/{number}/{i}", until)) for i in range(3)]
        for thread in threads:
            thread.start()
        eventually(lambda number=number: scene.count() == 3 * (number + 1))
        until.set()
        for thread in threads:
            thread.join()
    assert all(f"GET /{number}/{i} has taken" in scene.text() for number in range(2) for i in range(3))


def test_after_a_pause_in_which_the_watching_thread_slept_it_still_sees(scene: Scene):
    for number in range(2):
        until = threading.Event()
        thread = threading.Thread(target=serve, args=(scene, f"/{number}", until))
        thread.start()
        eventually(lambda number=number: scene.count() == number + 1)
        until.set()
        thread.join()
        eventually(lambda: scene.slow._asleep)


def test_what_is_quick_is_not_written(tmp_path: Path):
    scene = Scene(tmp_path, 30.0)
    for _ in range(100):
        scene.watch.begin({"REQUEST_METHOD": "GET"}, time.monotonic())
        scene.watch.end(200, 0, time.monotonic())
    assert scene.slow.look() is None
    scene.watch.begin({"REQUEST_METHOD": "GET"}, time.monotonic())
    due = scene.slow.look()
    assert due is not None
    assert 29 < due - time.monotonic() <= 30
    assert scene.text() == ""


def test_no_client_can_forge_an_entry(scene: Scene):
    until = threading.Event()
    thread = threading.Thread(target=serve, args=(scene, "/x\n2026-01-01T00:00:00Z shop:shop_00 GET /", until))
    thread.start()
    eventually(lambda: scene.count() == 1)
    assert "GET /x\\x0a2026-01-01T00:00:00Z shop:shop_00 GET / has taken" in scene.text()
    until.set()
    thread.join()


def test_a_request_that_ends_while_it_is_looked_at_is_left_out(tmp_path: Path):
    log = tmp_path / "slow.log"

    class Ends(SimpleNamespace):
        looks = 0

        @property
        def busy(self) -> bool:
            self.looks += 1
            return self.looks == 1

    hand = Ends(thread=threading.get_ident(), number=1, told=0, since=0.0, method="GET", uri="/")
    SlowLog(0.1, AppendedFile(str(log), standard=2), lambda: [hand]).look()
    assert not log.exists()


def test_what_cannot_be_written_down_is_said_once_and_the_others_are(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    class Source:
        """A loader, as of an importer of the application's own."""

        def get_source(self, name: str) -> str:
            raise RuntimeError("no source\x1b[2J")

    code = compile("def elsewhere(until):\n    until.wait(20)\n", "made_by_the_application.py", "exec")
    made: dict[str, object] = {"__name__": "made", "__loader__": Source()}
    exec(code, made)
    until = threading.Event()

    def fails(uri: str) -> None:
        scene.watch.begin({"REQUEST_METHOD": "GET", "REQUEST_URI": uri}, time.monotonic())
        made["elsewhere"](until)
        scene.watch.end(200, 0, time.monotonic())

    threads = [threading.Thread(target=fails, args=(f"/fails/{number}",)) for number in range(3)]
    for thread in threads:
        thread.start()
    eventually(lambda: all(hand.told == hand.number for hand in scene.watch.hands) and len(scene.watch.hands) == 3)
    threads.append(threading.Thread(target=serve, args=(scene, "/shown", until)))
    threads[-1].start()
    eventually(lambda: scene.count() == 1)
    assert "GET /shown has taken" in scene.text()
    until.set()
    for thread in threads:
        thread.join()
    said = capfd.readouterr().err
    assert said.count("\n") == 1
    assert "RuntimeError: no source\\x1b[2J" in said
