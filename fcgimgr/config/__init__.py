"""A configuration file in, checked and typed settings out."""
