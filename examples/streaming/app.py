"""Answers that are sent while they are made: events for a browser (SSE), and a CSV file of any length.

A WSGI application streams by returning an iterator: each piece goes to nginx as soon as it is yielded.
"""

import csv
import io
import os
import time
from urllib.parse import parse_qs

#: Seconds between two events.
PACE = float(os.environ.get("PACE", "1"))


def app(environ, start_response):
    answer = {"/events": events, "/numbers.csv": numbers}.get(environ["PATH_INFO"])
    if answer is None:
        start_response("404 Not Found", [("Content-Type", "text/plain")])
        return [b"/events or /numbers.csv?rows=1000000\n"]
    return answer(environ, start_response)


def events(environ, start_response):
    """One event after the other until the browser goes. It holds one thread of the pool for as long."""
    start_response("200 OK", [("Content-Type", "text/event-stream"), ("Cache-Control", "no-store")])
    number = 0
    try:
        while True:
            yield f"id: {number}\ndata: event {number} of pid {os.getpid()}\n\n".encode()
            number += 1
            time.sleep(PACE)
    finally:
        # The server closes the iterator when a piece cannot be sent any more.
        print(f"after {number} events the browser was gone", flush=True)


def numbers(environ, start_response):
    """Rows of a file that never exists as a whole: memory stays what it is, however many there are."""
    rows = int(parse_qs(environ["QUERY_STRING"]).get("rows", ["1000"])[0])
    headers = [("Content-Type", "text/csv"), ("Content-Disposition", 'attachment; filename="numbers.csv"')]
    start_response("200 OK", headers)
    piece = io.StringIO()
    writer = csv.writer(piece)
    writer.writerow(["number", "square"])
    for number in range(rows):
        writer.writerow([number, number * number])
        if piece.tell() > 32768:  # a piece costs a system call and a packet: not one for each row
            yield piece.getvalue().encode()
            piece.seek(0)
            piece.truncate()
    yield piece.getvalue().encode()
