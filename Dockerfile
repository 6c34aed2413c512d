# prefine's server (and every other command) in a container without root.
#
# For a GPU:   docker build -t prefine:gpu .
# For a CPU:   docker build -t prefine:cpu --build-arg TORCH_INDEX=ADDRESS .
# where ADDRESS is the index that PyTorch's install page names for "CPU": its builds are a tenth of the size.
FROM python:3.12-slim-bookworm AS build
ARG TORCH_INDEX=""
RUN python -m venv /opt/prefine
ENV PATH=/opt/prefine/bin:$PATH
# pip passes over an empty variable.
RUN PIP_INDEX_URL="$TORCH_INDEX" pip install --no-cache-dir "torch>=2.8,<2.14"
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY prefine ./prefine
RUN pip install --no-cache-dir "/src[quantization]"

FROM python:3.12-slim-bookworm
# The processor's 4-bit and 8-bit kernels and torch's compiled ones need OpenMP's library.
RUN apt-get update \
    && apt-get install -y --no-install-recommends libgomp1=12.* \
    && rm -rf /var/lib/apt/lists/* \
    && groupadd --gid 10001 prefine \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin prefine \
    && mkdir -p /data/runs /data/cache /data/feedback \
    && chown -R 10001:10001 /data
COPY --from=build /opt/prefine /opt/prefine
# The root file system may be read-only: all that is written goes to /data and /tmp. Nothing is fetched.
ENV PATH=/opt/prefine/bin:$PATH \
    HOME=/tmp \
    HF_HUB_OFFLINE=1 \
    PREFINE_CACHE=/data/cache \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
USER 10001:10001
WORKDIR /data
EXPOSE 8000
# Loading a large model takes minutes; until then the server does not listen.
HEALTHCHECK --interval=30s --timeout=5s --start-period=10m --retries=3 \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/health', timeout=4)"]
ENTRYPOINT ["prefine"]
CMD ["--help"]
