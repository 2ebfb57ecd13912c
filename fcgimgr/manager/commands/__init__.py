"""What can be asked of the manager, by the control socket or a signal, and how each command waits for its outcome."""
