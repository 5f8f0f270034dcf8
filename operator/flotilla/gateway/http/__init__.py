"""HTTP/1.1 on both sides of the gateway, over httptools (llhttp) and asyncio. It knows no API and no policy.

- `message`: a Request as it was read, and the Response to it
- `server`: the side of the clients: HttpServer, ServerConnection, RequestReader, and their bounds
- `client`: the side of the targets: Origin, SystemResolver, UpstreamConnection, and UpstreamPool, which needs a Permit
"""
