# syntax=docker/dockerfile:1
# One image for the operator and the gateway: docker build --tag flotilla:dev .
# Digests are those of the multi-platform indexes. Renew them together with the tags:
#   docker buildx imagetools inspect python:3.13.16-slim-trixie
FROM ghcr.io/astral-sh/uv:0.13.0@sha256:cdc6093146eb3ff6a40107b38f008b789e050e77ad87865e381d9917da55a168 AS uv

FROM python:3.13.16-slim-trixie@sha256:bf44cdfcb76cd3b41e879bc058fc37ec5872002ccfde7fcb765e218cde0cd79c AS build
COPY --from=uv /uv /bin/uv
ENV UV_COMPILE_BYTECODE=1 UV_LINK_MODE=copy UV_PYTHON_DOWNLOADS=never UV_PROJECT_ENVIRONMENT=/opt/flotilla
WORKDIR /src
# Dependencies first: they change less often than the code.
COPY pyproject.toml uv.lock ./
# The lock covers the whole workspace, so uv asks for each member's metadata; nothing else of it is copied or installed.
COPY devcluster/pyproject.toml devcluster/
RUN --mount=type=cache,target=/root/.cache/uv uv sync --locked --extra redis --extra otlp --extra bedrock --extra google --extra jwt --extra buckets --no-dev --no-install-project
COPY README.md LICENSE ./
COPY operator operator
RUN --mount=type=cache,target=/root/.cache/uv uv sync --locked --extra redis --extra otlp --extra bedrock --extra google --extra jwt --extra buckets --no-dev --no-editable

FROM python:3.13.16-slim-trixie@sha256:bf44cdfcb76cd3b41e879bc058fc37ec5872002ccfde7fcb765e218cde0cd79c
LABEL org.opencontainers.image.title="Flotilla" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.source="https://github.com/flotilla-dev/flotilla"
# The base's own pip is of no use here, and one thing less to patch.
RUN python -m pip uninstall --yes --quiet pip && rm -rf /usr/local/lib/python3.13/ensurepip
COPY --from=build /opt/flotilla /opt/flotilla
ENV PATH=/opt/flotilla/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
USER 65532:65532
WORKDIR /tmp
ENTRYPOINT ["flotilla"]
CMD ["operator"]
