"""`fcgimgr` and `python -m fcgimgr`."""

import sys


def main() -> int:
    """The exit code of the command line."""
    from fcgimgr.linux.standard import open_standard_fds

    open_standard_fds()
    try:
        from fcgimgr.cli.main import main as run

        return run()
    except KeyboardInterrupt:
        return 130  # Ctrl-C while Python was still importing.


if __name__ == "__main__":
    sys.exit(main())
