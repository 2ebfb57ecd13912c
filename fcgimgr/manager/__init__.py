"""The daemon: one event loop that turns what happens into core events, and core actions into system calls."""
