"""Rules, scrape configuration and dashboards for a Prometheus and a Grafana, as values that `make generate` writes."""
