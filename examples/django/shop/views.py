import os

from django.http import HttpResponse
from django.templatetags.static import static

from shop.models import Order


def orders(request):
    """POST makes an order; both tell how many there are."""
    if request.method == "POST":
        Order.objects.create(item=request.body.decode())
    lines = [
        "Hello from Django",
        f"process {os.environ.get('FCGIMGR_PROCESS', '?')}",
        f"pid {os.getpid()}",
        f"asked {request.method} {request.get_full_path()}",
        f"orders {Order.objects.count()}",
        f"style {static('shop/style.css')}",
    ]
    return HttpResponse("".join(line + "\n" for line in lines), content_type="text/plain; charset=utf-8")


def broken(request):
    raise LookupError("no such order")
