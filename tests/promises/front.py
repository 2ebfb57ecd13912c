"""nginx before a pool, on connections that it keeps: `keepalive 16`, as the goal has it, and else its defaults."""

from pathlib import Path
from typing import Final

from tests.integration.servers import Nginx
from tests.promises.programs import Program

_NGINX_CONF: Final = """\
keepalive_requests 1000000;
upstream pool {{
    server {address};
    keepalive 16;
    keepalive_timeout 30s;
}}
server {{
    listen 127.0.0.1:{port};
    {locations}
}}
"""

_HTTP: Final = """\
location / {
            proxy_pass http://pool;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
        }
        location /socket {
            proxy_pass http://pool;
            proxy_http_version 1.1;
            proxy_set_header Upgrade $http_upgrade;
            proxy_set_header Connection upgrade;
        }"""

_FASTCGI: Final = """\
location / {{
            fastcgi_pass pool;
            fastcgi_keep_conn on;
            {params}
        }}"""

_SCRIPT: Final = """\
include fcgimgr/params;
            fastcgi_param SCRIPT_FILENAME {script};
            fastcgi_param REDIRECT_STATUS 200;"""


def front(directory: Path, program: Program, address: str) -> Nginx:
    """To be started: it passes to the pool at `address`; its files are below `directory`."""
    scripts = [name for name in program.files if name.endswith(".php")]
    if program.protocol == "http":
        locations = _HTTP
    elif scripts:
        locations = _FASTCGI.format(params=_SCRIPT.format(script=directory / scripts[0]))
    else:
        locations = _FASTCGI.format(params="include fcgimgr/application_params;")
    return Nginx.below(directory, _NGINX_CONF, address=address, locations=locations)
