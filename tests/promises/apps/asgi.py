"""ASGI: for uvicorn, hypercorn, daphne and gunicorn's uvicorn worker. A WebSocket has its messages sent
back, with the pid before them."""

import asyncio
import os

from posted import asked, halves, log


async def app(scope, receive, send):
    await {"http": post, "websocket": echo, "lifespan": lifespan}[scope["type"]](receive, send)


async def post(receive, send):
    body = b""
    more = True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    name, before, between = asked(body)
    log("begun", name)
    await asyncio.sleep(before)
    first, second = halves(name)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": first, "more_body": True})
    await asyncio.sleep(between)
    log("done", name)
    await send({"type": "http.response.body", "body": second})


async def echo(receive, send):
    while True:
        message = await receive()
        if message["type"] == "websocket.connect":
            await send({"type": "websocket.accept"})
        elif message["type"] == "websocket.receive":
            await send({"type": "websocket.send", "text": f"{os.getpid()} {message['text']}"})
        else:
            return


async def lifespan(receive, send):
    while True:
        event = (await receive())["type"]
        await send({"type": f"{event}.complete"})
        if event == "lifespan.shutdown":
            return
