# Database clients, as applications use them, and ssh, by which some did: queries of the demo and the tests run from pods
# of this image.
ARG BASE_IMAGE=docker.io/library/debian:bookworm-slim

FROM ${BASE_IMAGE}
RUN apt-get update -qq \
    && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends \
    python3 python3-venv ca-certificates postgresql-client mariadb-client-core openssh-client autossh \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/*
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_CONFIG_FILE=/run/secrets/pip.conf
COPY requirements-clients.txt /tmp/
RUN --mount=type=secret,id=pip.conf --mount=type=secret,id=ca.crt \
    python3 -m venv /opt/clients \
    && /opt/clients/bin/pip install --quiet --require-hashes -r /tmp/requirements-clients.txt
ENV PATH=/opt/clients/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 HOME=/tmp
# psql asks for the user's name
RUN useradd --uid 65532 --no-create-home client
USER 65532:65532
CMD ["sleep", "infinity"]
