"""The FastCGI wire protocol, without I/O: records in, records out; a client on top."""
