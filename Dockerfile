# Two images from one source: `service`, the API, without torch; `worker`, with it and a checkpoint.
#
#     docker build --target service -t pathar-service:0.1.0 .
#     docker build --target worker -t pathar-worker:0.1.0 .
#     docker build --target worker -t pathar-worker:0.1.0-cuda \
#         --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu130 .
#
# Both run as user 10001 and write nothing but /tmp (and the worker Triton's cache on a GPU), so the
# root file system may be read-only. Nothing that compiles or installs is left in them.

# The Python that the tests run on; one digest for building and running, so that they fit.
ARG PYTHON=python:3.11.16-slim-bookworm@sha256:c425d915a89a6dcd3183b1797ad9bd8878caff5a417f6371c8df93c8ea8b727f


# The part of a checkout that is run, with the decode step compiled once for each instruction set.
FROM ${PYTHON} AS checkout
# The compiler is that of the base image's Debian release.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /opt/pathar
COPY pyproject.toml constraints.txt LICENSE README.md ./
COPY model model
COPY runtime runtime
COPY store store
COPY worker worker
COPY service service
COPY pathar pathar
RUN python -m model.native.build \
    && python -m compileall -q . \
    && python -m venv --without-pip .venv
# By this variable, unlike by the option, they hold for what builds a package, too.
ENV PIP_CONSTRAINT=/opt/pathar/constraints.txt


FROM checkout AS service-build
RUN pip --python .venv/bin/python install --no-cache-dir --editable ".[service,traces,s3]"


FROM checkout AS worker-build
# https://download.pytorch.org/whl/cu130 for a GPU with a driver for CUDA 13.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
# constraints.txt pins it.
# hadolint ignore=DL3013
RUN pip --python .venv/bin/python install --no-cache-dir --no-deps \
        --index-url "${TORCH_INDEX}" torch \
    && pip --python .venv/bin/python install --no-cache-dir --editable ".[worker,traces,s3,parquet]"
COPY deploy/triton_driver.py /tmp/
RUN TRITON_CACHE_DIR=/var/cache/triton .venv/bin/python /tmp/triton_driver.py


# What both images stand on.
FROM ${PYTHON} AS base
RUN python -m pip uninstall --yes pip setuptools wheel
# Modules come from /opt/pathar and its environment alone, never from the folder that a process is
# started in.
ENV PATH=/opt/pathar/.venv/bin:${PATH} \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONSAFEPATH=1 \
    PYTHONUNBUFFERED=1 \
    HOME=/tmp
WORKDIR /


FROM base AS service
COPY --from=service-build /opt/pathar /opt/pathar
# Where docker-compose.yml has the first API key written to; a new volume takes this owner over.
RUN install --directory --owner=10001 --group=10001 --mode=0700 /keys
ENV PATHAR_HOST=0.0.0.0 \
    PATHAR_PORT=8000
USER 10001:10001
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
    CMD ["python", "-c", "import http.client, os; c = http.client.HTTPConnection('127.0.0.1', int(os.environ['PATHAR_PORT']), timeout=4); c.request('GET', '/healthz'); raise SystemExit(c.getresponse().status != 200)"]
CMD ["python", "-m", "service"]


FROM base AS worker
COPY --from=worker-build /opt/pathar /opt/pathar
COPY --from=worker-build --chown=10001:10001 /var/cache/triton /var/cache/triton
COPY checkpoints/small /opt/pathar/checkpoints/small
# Probes and Prometheus ask for metrics from elsewhere. Triton looks the driver's library up with
# ldconfig otherwise, whose cache a read-only root may lack.
ENV PATHAR_HOST=0.0.0.0 \
    PATHAR_CHECKPOINT=/opt/pathar/checkpoints/small \
    PATHAR_WORKER_METRICS_PORT=9100 \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    TRITON_CACHE_DIR=/var/cache/triton \
    TRITON_LIBCUDA_PATH=/usr/lib/x86_64-linux-gnu
USER 10001:10001
EXPOSE 9100
# It answers from when the model is warm on; a worker whose loop hangs ends itself.
HEALTHCHECK --interval=10s --timeout=5s --start-period=10m --retries=3 \
    CMD ["python", "-c", "import http.client, os; c = http.client.HTTPConnection('127.0.0.1', int(os.environ['PATHAR_WORKER_METRICS_PORT']), timeout=4); c.request('GET', '/metrics'); raise SystemExit(c.getresponse().status != 200)"]
CMD ["python", "-m", "worker"]
