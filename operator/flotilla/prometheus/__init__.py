"""Queries of the installation's Prometheus, through prometheus-api-client.

client       typed queries and answers; imports the library with the first query, because it takes half a second
http_client  the library's session with our limits: time, size, redirects, token
"""
