"""24 users' requests fail at once, and Sentry is told; prints what it was told, as JSON.

In a process of its own, for sentry-sdk patches Django.
"""

import asyncio
import gzip
import json
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import django
import sentry_sdk
from asgiref.sync import sync_to_async
from django.core.management import call_command
from django.http import HttpRequest, HttpResponse
from django.urls import path

NUMBERS = range(24)
received: dict[str, list[dict[str, Any]]] = {"event": [], "transaction": []}


class Envelopes(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers["Content-Encoding"] == "gzip":
            body = gzip.decompress(body)
        _, _, rest = body.partition(b"\n")
        while rest.strip():
            line, _, rest = rest.partition(b"\n")
            header = json.loads(line)
            length = header.get("length", rest.find(b"\n"))
            payload, rest = rest[:length], rest[length + 1 :]
            if header["type"] in received:
                received[header["type"]].append(json.loads(payload))
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, format: str, *args: Any) -> None:
        pass


everybody = asyncio.Barrier(len(NUMBERS))


async def fail(request: HttpRequest) -> HttpResponse:
    await sync_to_async(str)(request.user)
    # None ends before all of them have begun.
    await everybody.wait()
    raise ArithmeticError("on purpose")


# A route for each request, so that each has a transaction's name of its own.
urlpatterns = [path(f"fail/{number}/", fail) for number in NUMBERS]


async def main() -> None:
    from django.contrib.auth.models import User
    from django.test import AsyncClient
    from onloop.asgi import get_asgi_application

    from tests.onloop.conftest import fetch

    cookies = []
    for number in NUMBERS:
        client = AsyncClient()
        await client.aforce_login(await User.objects.acreate(username=f"user{number}"))
        cookies.append(f"sessionid={client.cookies['sessionid'].value}")
    application: Any = await asyncio.to_thread(get_asgi_application)
    answers = await asyncio.gather(
        *(
            fetch(application, f"/fail/{number}/", headers={"cookie": cookie})
            for number, cookie in enumerate(cookies)
        )
    )
    assert {answer.status for answer in answers} == {500}
    await application.threads.shutdown()
    await asyncio.to_thread(sentry_sdk.flush, 10)


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", 0), Envelopes)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    sentry_sdk.init(
        dsn=f"http://key@127.0.0.1:{server.server_port}/1",
        traces_sample_rate=1.0,
        data_collection={"user_info": True},
    )
    os.environ["DJANGO_SETTINGS_MODULE"] = "tests.onloop.settings"
    from django.conf import settings

    settings.ROOT_URLCONF = "tests.onloop.sentry_project"
    django.setup()
    call_command("migrate", verbosity=0)
    asyncio.run(asyncio.wait_for(main(), 60))
    print(json.dumps(received))
