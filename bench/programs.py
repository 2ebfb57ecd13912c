"""The children: two C programs as small as can be, so that what is measured is the manager and not them."""

import shutil
import subprocess
from pathlib import Path
from typing import Final

# Dies of SIGTERM at once, as every program that does not handle it. Waits for a connection, if its fd 0 is a socket, as
# that is what a manager may wait to see.
PAUSE: Final = """
#include <sys/socket.h>
#include <unistd.h>
int main(void) { for (;;) if (accept(0, 0, 0) < 0) pause(); }
"""

# Writes lines of 100 bytes, 64 KiB a write(2), as stdio does with a full buffer, and marks its first write by a file.
WRITER: Final = """
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
int main(int argc, char **argv) {
    static char lines[65500];
    if (argc != 3) return 2;
    long long left = atoll(argv[1]);
    memset(lines, 'x', sizeof lines);
    for (size_t i = 99; i < sizeof lines; i += 100) lines[i] = '\\n';
    close(open(argv[2], O_CREAT | O_WRONLY, 0600));
    while (left > 0) {
        ssize_t n = write(1, lines, left < (long long) sizeof lines ? (size_t) left : sizeof lines);
        if (n < 0) return 1;
        left -= n;
    }
    for (;;) pause();
}
"""


def build(source: str, directory: Path, name: str) -> str:
    """Compile `source` into `directory`; the program's path. RuntimeError when there is no compiler, or it fails.

    Static: a dynamic loader would be most of such a child's start.
    """
    if shutil.which("gcc") is None:
        raise RuntimeError("gcc is not installed; the children are small C programs: apt-get install gcc libc6-dev")
    program = directory / name
    command = ["gcc", "-O2", "-static", "-x", "c", "-", "-o", str(program)]
    compiled = subprocess.run(command, input=source, text=True, capture_output=True, timeout=60)
    if compiled.returncode != 0:
        raise RuntimeError(f"gcc cannot compile {name}: {compiled.stderr.strip()}")
    return str(program)
