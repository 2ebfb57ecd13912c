"""What runs inside a WSGI child; standard library only, so that it loads in the application's own virtualenv."""
