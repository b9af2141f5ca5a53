# The image of operator and forwarders. Every stage starts from one base, so that the virtual environment's python is right.
ARG BASE_IMAGE=docker.io/library/python:3.13-slim

FROM ${BASE_IMAGE} AS dependencies
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_CONFIG_FILE=/run/secrets/pip.conf
WORKDIR /build
RUN python3 -m venv tools && python3 -m venv --without-pip /opt/dbtunnel
COPY requirements.txt requirements-build.txt ./
# The secrets are optional: pip's settings and certificates of a network that has its own. Neither reaches the image.
# Bytecode is never checked against the source's time, which not every builder keeps. The client that is not
# asynchronous is for the command at a terminal: no pod imports it.
RUN --mount=type=secret,id=pip.conf --mount=type=secret,id=ca.crt \
    tools/bin/pip install --quiet --require-hashes -r requirements-build.txt \
    && tools/bin/pip --python /opt/dbtunnel/bin/python install --quiet --no-compile --require-hashes -r requirements.txt \
    && python3 -m compileall -q -x '/kubernetes/client/' --invalidation-mode unchecked-hash /opt/dbtunnel/lib

# The code is a layer of its own above the dependencies: a new version is a small pull.
FROM dependencies AS code
COPY pyproject.toml LICENSE ./
COPY operator operator
RUN tools/bin/pip wheel --quiet --no-deps --no-build-isolation --wheel-dir wheel . \
    && tools/bin/pip --python /opt/dbtunnel/bin/python install --quiet --no-compile --no-deps --no-index \
        --no-warn-script-location --prefix /code wheel/*.whl \
    && python3 -m compileall -q --invalidation-mode unchecked-hash -s /code -p /opt/dbtunnel /code

FROM ${BASE_IMAGE}
# python:*-slim comes without the standard library's bytecode, and a read-only root would compile it at every start
RUN python3 -m compileall -q -x '/(test|idlelib|lib2to3|tkinter|turtledemo|ensurepip|site-packages)/' \
    "$(python3 -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')"
COPY --from=dependencies /opt/dbtunnel /opt/dbtunnel
COPY --from=code /code /opt/dbtunnel
ENV PATH=/opt/dbtunnel/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
LABEL org.opencontainers.image.title="dbtunnel" \
      org.opencontainers.image.description="Private databases behind SSH bastions, by host name in Kubernetes" \
      org.opencontainers.image.licenses="Apache-2.0"
# any other user will do as well, as on OpenShift
USER 65532:65532
ENTRYPOINT ["dbtunnel"]
