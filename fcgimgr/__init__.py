"""fcgimgr: a process manager for FastCGI and other socket-sharing servers on Linux."""

__version__ = "0.1.0"
