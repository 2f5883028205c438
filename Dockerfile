# One image for launcher, worker and API; docker-compose.dev.yml starts all three from it.
FROM debian:bookworm-slim
COPY pyproject.toml README.md /src/
COPY scripts /src/scripts
COPY policies /src/policies
COPY jobs /src/jobs
COPY api /src/api
COPY worker /src/worker
COPY stockade /src/stockade
RUN /src/scripts/setup --no-dev \
    && install -d -m 0700 /var/lib/stockade/launcher \
    && rm -rf /src /root/.cache /var/lib/apt/lists/*
WORKDIR /
ENTRYPOINT ["/opt/stockade/venv/bin/python", "-I", "-m"]
