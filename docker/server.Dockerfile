# The coordinator: `aiseeme`, with the nginx of its gateway. docs/containers.md shows how it is used.
# Down to "common end" this file is the same for both roles, so that a host with both keeps these layers once.
ARG BASE_IMAGE=python:3.11-slim-bookworm

FROM ${BASE_IMAGE} AS build
# As in the Makefile.
ARG UV_VERSION=0.12.24
# Where packages come from and whom TLS trusts may differ where this is built. Whoever has a mirror passes it as
# secrets, which leave nothing in the image: pip.conf, uv.toml, and ca (a file of certificates).
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    --mount=type=secret,id=ca,target=/etc/ssl/certs/ca-certificates.crt \
    python3 -m venv /opt/uv \
    && /opt/uv/bin/python -m pip install --quiet --no-cache-dir --disable-pip-version-check "uv==${UV_VERSION}" \
    && python3 -m venv --without-pip /opt/aiseeme
ENV UV_LINK_MODE=copy UV_NATIVE_TLS=1 UV_NO_CACHE=1 UV_NO_PROGRESS=1 UV_PYTHON_DOWNLOADS=never
COPY requirements.lock /build/
# Compiled here, as the root file system is read-only later. PyTorch's wheels bring CUDA's libraries along. The uv that
# Flower brings would install what a bundle asks for: that is off everywhere, so it is not needed either.
RUN --mount=type=secret,id=uv.toml,target=/etc/uv/uv.toml \
    --mount=type=secret,id=ca,target=/etc/ssl/certs/ca-certificates.crt \
    /opt/uv/bin/uv pip install --quiet --compile-bytecode --require-hashes --python /opt/aiseeme/bin/python \
        -r /build/requirements.lock \
    && /opt/uv/bin/uv pip uninstall --quiet --python /opt/aiseeme/bin/python uv
COPY pyproject.toml README.md LICENSE /build/source/
COPY aiseeme_models /build/source/aiseeme_models
COPY federation_configs /build/source/federation_configs
COPY client /build/source/client
COPY server /build/source/server
# Built with the setuptools of the lock file: nothing is downloaded that has no hash.
RUN /opt/uv/bin/uv build --quiet --wheel --offline --no-build-isolation --python /opt/aiseeme/bin/python \
        --out-dir /build/wheels /build/source

FROM ${BASE_IMAGE}
COPY --from=build /opt/aiseeme /opt/aiseeme
# uv is lent by the build stage and does not stay. The standard library of some base images is not compiled.
RUN --mount=type=bind,from=build,source=/opt/uv,target=/opt/uv \
    --mount=type=bind,from=build,source=/build/wheels,target=/opt/built \
    /opt/uv/bin/uv pip install --quiet --no-cache --offline --no-deps --compile-bytecode \
        --python /opt/aiseeme/bin/python /opt/built/*.whl \
    && python3 -m compileall -q -x 'lib2to3|/test' \
        "$(python3 -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')" \
    && groupadd --gid 10001 aiseeme \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /var/lib/aiseeme --shell /usr/sbin/nologin aiseeme \
    && install --directory --owner aiseeme --group aiseeme --mode 0700 /var/lib/aiseeme /letters \
    && install --directory --owner aiseeme --group aiseeme --mode 0755 /images
# The root file system is read-only: what has to be kept goes to the volume, what has not to /tmp.
ENV PATH=/opt/aiseeme/bin:$PATH \
    HOME=/var/lib/aiseeme \
    USER=aiseeme \
    LANG=C.UTF-8 \
    TMPDIR=/tmp \
    XDG_CACHE_HOME=/tmp/cache \
    XDG_CONFIG_HOME=/tmp/config \
    MPLCONFIGDIR=/tmp/matplotlib \
    TORCHINDUCTOR_CACHE_DIR=/tmp/torchinductor \
    TRITON_CACHE_DIR=/tmp/triton \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    FLWR_TELEMETRY_ENABLED=0
# No VOLUME: a home in a volume without a name would be lost with its keys. It has to be mounted.
WORKDIR /var/lib/aiseeme
STOPSIGNAL SIGTERM
# common end

LABEL org.opencontainers.image.title="AISEEME coordinator" \
      org.opencontainers.image.description="The coordinator of a federation: SuperLink, gateway and runs" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.licenses="Apache-2.0"

RUN apt-get update -qq \
    && DEBIAN_FRONTEND=noninteractive apt-get install -qq --yes --no-install-recommends nginx-light \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/log/apt /var/log/dpkg.log
COPY --chmod=0555 docker/gateway_health.py /usr/local/bin/gateway-health
ENV AISEEME_HOME=/var/lib/aiseeme/federation \
    AISEEME_RUNS=/var/lib/aiseeme/federation/runs
USER 10001:10001
EXPOSE 8443
HEALTHCHECK --interval=30s --timeout=15s --start-period=120s --retries=3 CMD ["gateway-health"]
ENTRYPOINT ["aiseeme"]
CMD ["serve"]
