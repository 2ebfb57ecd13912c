"""An ASGI app: it says who answers, and what was asked."""

import os


async def app(scope, receive, send):
    """Answer HTTP requests; accept the server's start and end (lifespan); refuse anything else."""
    if scope["type"] == "lifespan":
        while True:
            event = (await receive())["type"]
            await send({"type": f"{event}.complete"})
            if event == "lifespan.shutdown":
                return
    if scope["type"] != "http":
        raise ValueError(f"this app does not speak {scope['type']}")

    posted = bytearray()
    while True:
        message = await receive()
        posted += message.get("body", b"")
        if not message.get("more_body"):
            break
    lines = [
        "Hello from ASGI",
        f"process {os.environ.get('FCGIMGR_PROCESS', '?')}",
        f"pid {os.getpid()}",
        f"asked {scope['method']} {scope['path']}?{scope['query_string'].decode()}",
        f"posted {posted.decode()}",
        f"scheme {scope['scheme']}",
    ]
    content_type = (b"content-type", b"text/plain; charset=utf-8")
    await send({"type": "http.response.start", "status": 200, "headers": [content_type]})
    await send({"type": "http.response.body", "body": "".join(line + "\n" for line in lines).encode()})
