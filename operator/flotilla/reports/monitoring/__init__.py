"""Alerts, recording rules, monitors and dashboards as values; `hack/monitoring.py` writes them as files.

rules       the form of rule groups; alerts and recording hold the groups themselves
panels      the building blocks of dashboards; dashboards holds the four boards
monitors    PodMonitors and ServiceMonitors
"""
