FROM python:3.13-slim AS build
WORKDIR /src
COPY constraints.txt .
# The build backend comes from the constraints too, which pip's isolated builds do not read.
RUN pip install --no-cache-dir --constraint constraints.txt hatchling \
    && python -m venv /venv
COPY pyproject.toml README.md LICENSE celeryconfig.py flowerconfig.py ./
COPY app app
COPY sqs_broker sqs_broker
# No compiler and no libcurl from Debian: every dependency has a wheel, and pycurl's brings its own.
RUN pip wheel --no-cache-dir --no-deps --no-build-isolation --wheel-dir /wheel ./sqs_broker . \
    && /venv/bin/pip install --no-cache-dir --only-binary :all: --constraint constraints.txt \
        /wheel/celery_sqs_broker-*.whl "$(echo /wheel/sqs_registrations-*.whl)[api]"

FROM python:3.13-slim
# A small init. Process 1 of a container inherits every process that a task has left behind, and the
# worker does not wait for those: without an init they would stay as zombies.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends tini \
    && rm -rf /var/lib/apt/lists/*
# A user with a name, for Celery takes one without for root; used by number, so that a cluster sees
# without the image's passwd that it is not root.
RUN groupadd --gid 10001 worker \
    && useradd --uid 10001 --gid 10001 --no-create-home --shell /usr/sbin/nologin worker \
    && install --directory --owner 10001 --group 10001 --mode 700 /state
USER 10001:10001
# Not a checkout: `celery -A app` must find the package, and `.env` is read from here.
WORKDIR /srv
COPY --from=build /venv /venv
# Log lines leave at once, also the last ones of a worker that is killed.
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1
# The one place where this user may write, for a volume.
ENV FLOWER_DB=/state/flower.db
# A warm shutdown: what runs is finished and settled, what waits is released.
STOPSIGNAL SIGTERM
# `-s`: it works as well where it is not process 1 (`docker run --init`, `init: true`).
ENTRYPOINT ["tini", "-s", "--"]
# Exec form, so that the signal reaches the worker and not a shell.
CMD ["celery", "-A", "app", "worker"]
