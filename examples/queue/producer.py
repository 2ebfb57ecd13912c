"""Put messages into the queue, or count them.

python3 producer.py FILE N     add N messages
python3 producer.py FILE       say how many wait, are in hand, are done
"""

import sys

import messages


def main(path, number=0):
    """Add `number` messages to the queue in the file `path`, then say how it stands."""
    queue = messages.connect(path)
    if number:
        messages.put(queue, [f"message {n}" for n in range(1, number + 1)])
    waiting, taken, done = messages.counts(queue)
    print(f"{waiting} waiting, {taken} in hand, {done} done")


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:3]))
