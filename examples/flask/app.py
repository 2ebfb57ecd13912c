"""A Flask application: what it is asked, and a form that takes a file."""

import hashlib
import os

from flask import Flask, request, url_for

app = Flask(__name__)


@app.get("/")
def hello():
    lines = ["Hello from Flask", f"process {os.environ.get('FCGIMGR_PROCESS', '?')}", f"pid {os.getpid()}"]
    lines.append(f"asked {request.method} {request.full_path}")
    lines.append(f"from {request.remote_addr} by {request.scheme}, to {url_for('upload', _external=True)}")
    return "".join(line + "\n" for line in lines), {"Content-Type": "text/plain; charset=utf-8"}


@app.post("/upload")
def upload():
    """How long the file is, and its hash: Werkzeug has put it into a temporary file, a piece at a time."""
    digest, length = hashlib.sha256(), 0
    stream = request.files["file"].stream
    while piece := stream.read(1 << 16):
        digest.update(piece)
        length += len(piece)
    return {"bytes": length, "sha256": digest.hexdigest()}
