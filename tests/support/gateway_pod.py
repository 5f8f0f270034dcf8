"""A pod that the operator takes for a gateway: it says how many requests it holds, and serves none."""

from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

from flotilla.constants import GATEWAY_COMPONENT, LABEL_COMPONENT, LABEL_MANAGED_BY, MANAGER
from flotilla.devcluster.nodeagent.nodes import local_address
from flotilla.telemetry.demand import GATEWAY_PORT, METRIC
from tests.support.models import Models


class GatewayPod:
    """`requests` are what the next read of its metrics shows."""

    def __init__(self, address: str, model: str) -> None:
        self.requests = 0
        gateway = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = f'# TYPE {METRIC} gauge\n{METRIC}{{modeldeployment="{model}"}} {gateway.requests}\n'.encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                """Nothing."""

        self.server = ThreadingHTTPServer((address, GATEWAY_PORT), Handler)
        Thread(target=self.server.serve_forever, daemon=True).start()


@contextmanager
def gateway_pod(models: Models, model: str) -> Iterator[GatewayPod]:
    """The node agent plays the pod by a timer; its address is ours to answer at."""
    labels = {LABEL_COMPONENT: GATEWAY_COMPONENT, LABEL_MANAGED_BY: MANAGER}
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "gateway", "labels": labels},
        "spec": {"containers": [{"name": "gateway", "image": "registry.example.com/played:1"}]},
    }
    models.stack.plane.api.request("POST", models.path("Pod"), pod)
    address = models.wait(lambda: (models.get("Pod", "gateway") or {})["status"].get("podIP"), "the gateway's address")
    double = GatewayPod(local_address(address), model)
    try:
        yield double
    finally:
        double.server.shutdown()
        double.server.server_close()
        models.delete("Pod", "gateway")
