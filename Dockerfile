# Holdfast in a container, for the runs that a Pod launches; any of its commands may be started instead.
#
# Nothing is fetched while it is built: everything lies in build/wheels by then.
#
#   python -m pip wheel --wheel-dir build/wheels .
#   docker build --tag holdfast .
#
# An image with plugins begins with this one, and copies them into /plugins, or installs them.
ARG PYTHON=python:3.11-slim

FROM ${PYTHON} AS installed
COPY build/wheels /wheels
RUN ["python3", "-m", "pip", "install", "--no-index", "--find-links=/wheels", "--no-cache-dir", \
     "--root-user-action=ignore", "--no-warn-script-location", "--prefix=/installed", "holdfast"]

FROM ${PYTHON}
COPY --from=installed /installed /usr/local
ENV HOLDFAST_HOME=/run/holdfast PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
WORKDIR /plugins
# Whoever launches it says as whom it runs; where nobody does, it is nobody.
USER 65534:65534
CMD ["run_plugin", "--read_args_from_env"]
