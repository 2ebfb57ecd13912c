"""The control socket: its messages, their coding, and the client."""
