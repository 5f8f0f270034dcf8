"""What the operator serves over HTTP: health, metrics, and a read-only page of the fleet.

server   /healthz, /readyz, /metrics and /console/
metrics  the operator's own metrics, and the text format
view     the page's JSON (pure); page.html, page.css and page.js show it
"""
