"""Work on one message after the other until told to stop; the message in hand is always finished.

    python3 consumer.py FILE

SIGTERM and SIGINT are blocked for good and asked for between two messages with sigtimedwait(2): no handler can then
cut into the work, and no flag can be read a moment too early. The same call is the pause while the queue is empty, so
that a stop is answered at once there too.
"""

import os
import signal
import sys
import time

import messages

STOP = {signal.SIGTERM, signal.SIGINT}
LOOK_AGAIN = 0.2  # seconds between two looks into an empty queue


def work(body):
    """What is to be done with a message: here it takes a while and is written to the log."""
    time.sleep(float(os.environ.get("WORK_SECONDS", "0.5")))
    print(f"worked on {body}", flush=True)


def main(path):
    """Consume until told to stop."""
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP)
    slot = os.environ.get("FCGIMGR_PROCESS") or f"pid-{os.getpid()}"
    queue = messages.connect(path)
    while True:
        message = messages.take(queue, slot)
        if message:
            message_id, body = message
            work(body)
            messages.finish(queue, message_id)
        if signal.sigtimedwait(STOP, 0 if message else LOOK_AGAIN):
            return


if __name__ == "__main__":
    main(sys.argv[1])
