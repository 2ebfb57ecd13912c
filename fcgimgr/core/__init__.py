"""Every decision: state machines and policies, pure: no clock, no file descriptor, no pid, no I/O."""
