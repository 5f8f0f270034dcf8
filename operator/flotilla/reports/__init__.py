"""Documents about the fleet that are made from figures: HTML, FOCUS rows, alerts, dashboards. Pure.

findings     recommendations, computed from past spending
cost_report  `flotilla report`: one HTML page with charts
envelope     `flotilla envelope`: a policy's latency, cost, quality, sovereignty and tail
focus        cost as FOCUS 1.2 rows
monitoring/  alerts, recording rules, PodMonitors and Grafana dashboards, the source of manifests/monitoring
"""
