"""What runs inside a WSGI child; standard library only, so that it loads in the application's own virtualenv.

The manager starts it by path (`MAIN`), with the application's interpreter, which need have neither fcgimgr nor flup:

    PYTHON …/fcgimgr/worker/start.py --server flup [--threads N] module:callable

start        the script that an interpreter is given; any version can read it
main         the command line: where modules are found, which application, which engine
zygote       with `preload`: the application is imported once, and the workers are forked
loading      `module:callable` → the application, or a message for its author
listening    the sockets that were handed over, and which peers may use them
accepting    the loop in front of every engine: accept when a thread is free, drain on TERM
solo         the same for a process that serves one request at a time, in its main thread
forked       how a child ends that the application has forked
patched      an application that has replaced Python's threads and sockets
leaving      what keeps a worker from ending
saying       what a worker tells of itself, on its standard error
asking       how a log names a request
observing    what an engine tells of its requests, and to whom
watching     who is told: keeps the scoreboard
board        the scoreboard, as the worker writes it
retiring     when a worker has served enough
accesslog    a line a request
slow         where a request is that takes long
appending    the files that both are written to
flup_engine  flup's FastCGI server, mended
native_engine  fcgimgr's own; for it
    keeping    whether a connection is kept
answering    what both do with an answer, and with its connection behind that
parting      how a kept connection is ended
environ      what an application gets of a request, with either engine
exchange     one request through the application
body         its input, while that is still coming
patience     how long a web server is waited for
notify       READY=1 to the manager
"""

import os
from typing import Final

#: What to give to a Python interpreter to run a worker.
MAIN: Final = os.path.join(os.path.dirname(os.path.abspath(__file__)), "start.py")
#: The environment variable that names the directory which holds fcgimgr's own `flup` package.
FLUP_VARIABLE: Final = "FCGIMGR_FLUP"
