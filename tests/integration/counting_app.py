"""The application behind the fronts under load: it counts each request that it is given, and says it back.

Standard library only, and a module of its own directory: it is copied to where a pool is started.
"""

import os
import time
from pathlib import Path
from urllib.parse import parse_qs

COUNTED = os.open(Path(__file__).with_name("counted"), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)


def application(environ, start_response):
    """`?id=…&pause=MS`: a line "id" into the file `counted`, and after the pause the id, the body, and who it was."""
    asked = {name: values[-1] for name, values in parse_qs(environ["QUERY_STRING"]).items()}
    body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
    os.write(COUNTED, f"{asked['id']}\n".encode())
    time.sleep(int(asked.get("pause", "0")) / 1000)
    start_response("200 OK", [("Content-Type", "application/octet-stream")])
    return [f"{environ['REQUEST_METHOD']} {asked['id']} {os.getpid()}\n".encode(), body]
