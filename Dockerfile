# The worker alone: without a compiler, a package manager's cache, or the embedded stack.

FROM python:3.12-slim AS build
WORKDIR /src
COPY requirements/image.txt requirements/worker.txt requirements/
# The environment has no pip of its own: the image's pip installs into it, and does not leave this stage.
RUN python -m venv --without-pip /opt/simplu-worker \
    && pip --python /opt/simplu-worker/bin/python install --no-cache-dir --require-hashes --only-binary :all: \
        -r requirements/worker.txt \
    && pip install --no-cache-dir --require-hashes --only-binary :all: -r requirements/image.txt
COPY pyproject.toml README.md LICENSE ./
COPY simplu_worker simplu_worker
RUN pip wheel --no-cache-dir --no-deps --no-build-isolation --wheel-dir /dist . \
    && pip --python /opt/simplu-worker/bin/python install --no-cache-dir --no-deps --no-index /dist/*.whl \
    && cyclonedx-py environment --output-reproducible -o /opt/simplu-worker/sbom.cdx.json /opt/simplu-worker

FROM python:3.12-slim
ARG VERSION=unknown
ARG REVISION=unknown
LABEL org.opencontainers.image.title="simplu-worker" \
      org.opencontainers.image.description="Applies resource operations from Kinesis and SQS to the right Postgres shard" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.base.name="python:3.12-slim" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=build /opt/simplu-worker /opt/simplu-worker
ENV PATH=/opt/simplu-worker/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
# A number, so that Kubernetes can verify that the user is not root.
USER 65532:65532
EXPOSE 8080
# For Docker; Kubernetes has probes of its own. The worker is live, or a restart helps.
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-m", "simplu_worker.status.tls"]
# Exec form: the worker is process 1 and gets SIGTERM itself.
ENTRYPOINT ["simplu-worker"]
CMD ["run"]
