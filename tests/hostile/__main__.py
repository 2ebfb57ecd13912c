"""What whoever is not attacked notices of each attack: the slowest of some tens of pings and respawns beside it.

python -m tests.hostile [--seconds N] [NAME…]
"""

import argparse
import time

from tests.hostile.stage import ATTACKS_KNOWN, staged


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="which attacks; else all")
    parser.add_argument("--seconds", type=float, default=7)
    asked = parser.parse_args()
    print(f"{'attack':20}{'ping, ms':>12}{'respawn, ms':>14}{'manager, % of a processor':>28}")
    for attack in ATTACKS_KNOWN:
        if asked.names and attack.name not in asked.names:
            continue
        with staged(attack) as stage:
            pings, respawns = [0.0], [0.0]
            begun, used = time.monotonic(), stage.cpu()
            try:
                while time.monotonic() < begun + asked.seconds:
                    pings.append(stage.ping())
                    respawns.append(stage.respawn())
                    time.sleep(0.1)
                share = (stage.cpu() - used) / (time.monotonic() - begun)
                print(f"{attack.name:20}{max(pings) * 1000:12.1f}{max(respawns) * 1000:14.1f}{share * 100:28.0f}")
            except Exception as error:  # noqa: BLE001 - it is the result
                print(f"{attack.name:20} after {time.monotonic() - begun:.1f} s: {error!r}")


if __name__ == "__main__":
    main()
