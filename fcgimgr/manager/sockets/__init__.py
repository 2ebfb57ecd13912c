"""What a generation listens on: opened together, steered together, left with systemd."""
