# One artifact behind HTTP: docker build -t NAME --build-context artifact=FOLDER .
FROM python:3.11-slim AS build
WORKDIR /build
COPY pyproject.toml README.md LICENSE constraints.txt ./
COPY src src
RUN python -m venv /opt/thinned
RUN /opt/thinned/bin/pip install --no-cache-dir --constraint constraints.txt '.[serve]'

FROM python:3.11-slim
COPY --from=build /opt/thinned /opt/thinned
COPY --from=artifact . /artifact
# No home and no cache: the file system may be read-only.
ENV PYTHONDONTWRITEBYTECODE=1 JAX_PLATFORMS=cpu XDG_CACHE_HOME=/tmp/cache
USER 65534:65534
EXPOSE 8000
# It listens once all is compiled.
HEALTHCHECK --start-period=5m CMD ["/opt/thinned/bin/python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/health', timeout=9)"]
ENTRYPOINT ["/opt/thinned/bin/thinned", "serve", "/artifact", "--host", "0.0.0.0"]
