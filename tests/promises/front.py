"""nginx before a pool, on connections that it keeps: `keepalive 16`, as the goal has it, and else its defaults."""

import shutil
from pathlib import Path
from typing import Final

from tests.integration.ports import free_port
from tests.integration.servers import CHECKOUT, Nginx, as_user
from tests.promises.programs import Program

_NGINX_CONF: Final = """\
daemon off;
pid nginx.pid;
error_log stderr;
worker_processes 1;
{user}
events {{ worker_connections 512; }}
http {{
    access_log off;
    keepalive_requests 1000000;
    client_body_temp_path temp;
    proxy_temp_path temp;
    fastcgi_temp_path temp;
    uwsgi_temp_path temp;
    scgi_temp_path temp;
    upstream pool {{
        server {address};
        keepalive 16;
        keepalive_timeout 30s;
    }}
    server {{
        listen 127.0.0.1:{port};
        {locations}
    }}
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
    prefix = directory / "nginx"
    shutil.copytree(CHECKOUT / "nginx" / "fcgimgr", prefix / "fcgimgr")
    scripts = [name for name in program.files if name.endswith(".php")]
    if program.protocol == "http":
        locations = _HTTP
    elif scripts:
        locations = _FASTCGI.format(params=_SCRIPT.format(script=directory / scripts[0]))
    else:
        locations = _FASTCGI.format(params="include fcgimgr/application_params;")
    port = free_port()
    conf = prefix / "nginx.conf"
    conf.write_text(_NGINX_CONF.format(user=as_user(), port=port, address=address, locations=locations))
    return Nginx(prefix, conf, port)
