"""A process that has ended leaves its number to others: whoever has it then is not signalled."""

import json
import subprocess
import sys
from pathlib import Path

from tests.hostile.users import need_root
from tests.integration.scenes import scene
from tests.integration.servers import CHECKOUT, need

# A request: leaves a child behind that will not go, asks for the end of its own process, and dies with the request in
# hand when it is told that nobody else waits.
APPLICATION = """
import os, signal, socket
def app(environ, start_response):
    if os.fork() == 0:
        os.setsid()
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        os.execv("/bin/sleep", ["sleep", "1000"])
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.sendto(b"X_RECYCLE=please", os.environ["NOTIFY_SOCKET"])
    with open(os.environ["DIE"]) as fifo:
        fifo.read()
    os.kill(os.getpid(), signal.SIGKILL)
"""
# In a pid namespace of its own, where the next number can be chosen: what becomes of an innocent process that has the
# dead one's.
SCENARIO = """
import json, os, subprocess, sys
from pathlib import Path
from tests.integration.commands import words
from tests.integration.running import RunningManager
from tests.waiting import eventually

config = Path(sys.argv[1])
with RunningManager(config, config.with_suffix(".control")) as manager:
    (pid,) = manager.pids("app")
    request = subprocess.Popen(words("request", f"{config.parent}/app.sock", "/"), stdout=subprocess.DEVNULL)
    eventually(lambda: "app:app_00: STOPPING" in manager.output())
    Path(config.parent, "die").write_text("")
    eventually(lambda: not os.path.exists(f"/proc/{pid}"))

    def innocent():
        Path("/proc/sys/kernel/ns_last_pid").write_text(str(pid - 1))
        process = subprocess.Popen(["sleep", "1000"])
        if process.pid == pid:
            return process
        process.kill()
        process.wait()

    process = eventually(innocent)
    # Until the stop is over, past request_timeout.
    eventually(lambda: manager.output().count("app:app_00: RUNNING") == 2, within=20)
    print(json.dumps({"ended": process.poll(), "log": manager.output()}))
    process.kill()
    process.wait()
    request.wait()
"""


def test_an_overdue_request_of_a_process_that_is_gone_kills_nobody(place: Path) -> None:
    need_root()
    need("unshare")
    (place / "reused.py").write_text(APPLICATION)
    (place / "scenario.py").write_text(SCENARIO)
    config = scene(
        place,
        f"""
        [pool.app]
        socket = "{place}/app.sock"
        wsgi = "reused:app"
        server = "native"
        directory = "{place}"
        environment = {{ DIE = "{place}/die" }}
        request_timeout = 1
        stopwaitsecs = 2.5
        """,
    )
    subprocess.run(["mkfifo", str(place / "die")], check=True)
    inside = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]
    done = subprocess.run(
        [*inside, sys.executable, str(place / "scenario.py"), str(config)],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=CHECKOUT,
        env={"PYTHONPATH": str(CHECKOUT), "PATH": "/usr/bin:/bin"},
    )
    assert done.returncode == 0, done
    said = json.loads(done.stdout)
    assert said["ended"] is None, said["log"]
    assert "recycling: please" in said["log"]
