"""One small module for each facility of the Linux kernel."""
