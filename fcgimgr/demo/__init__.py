"""What `fcgimgr demo` shows: a WSGI application that says which process answered, and an HTTP front for development."""
