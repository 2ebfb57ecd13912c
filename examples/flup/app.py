"""A WSGI app and the three lines that serve it over FastCGI with flup."""

import os


def app(environ, start_response):
    """Say who answers, and what was asked."""
    length = int(environ.get("CONTENT_LENGTH") or 0)
    posted = environ["wsgi.input"].read(length).decode() if length else ""
    lines = [
        "Hello from Python",
        f"process {os.environ.get('FCGIMGR_PROCESS', '?')}",
        f"pid {os.getpid()}",
        f"asked {environ['REQUEST_METHOD']} {environ['PATH_INFO']}?{environ['QUERY_STRING']}",
        f"posted {posted}",
    ]
    start_response("200 OK", [("Content-Type", "text/plain; charset=utf-8")])
    return ["".join(line + "\n" for line in lines).encode()]


if __name__ == "__main__":
    from flup.server.fcgi import WSGIServer

    # The listener on fd 0 is shared by all processes of the pool. flup waits in select() and then accepts: of all that
    # wake up for one connection, the losers must get EAGAIN back, not sit in accept() where no SIGTERM reaches them.
    os.set_blocking(0, False)
    WSGIServer(app).run()
