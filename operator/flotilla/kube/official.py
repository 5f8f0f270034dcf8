"""The asynchronous half of the official client, without the synchronous one.

`import kubernetes` loads both: requests, oauthlib, websocket and more, a tenth of the operator's memory that nothing
here uses. The package is therefore put into place without running its `__init__`, and only `kubernetes.aio` is
imported. A process that has imported all of it before (a script, a test) keeps what it has.
"""

import sys
from importlib.util import find_spec, module_from_spec

if "kubernetes" not in sys.modules and (_spec := find_spec("kubernetes")) is not None:
    sys.modules["kubernetes"] = module_from_spec(_spec)

from kubernetes.aio.client.configuration import Configuration
from kubernetes.aio.client.rest import RESTClientObject
from kubernetes.aio.config import ConfigException, load_incluster_config, load_kube_config

__all__ = ["ConfigException", "Configuration", "RESTClientObject", "load_incluster_config", "load_kube_config"]
