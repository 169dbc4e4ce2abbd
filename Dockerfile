# Two images: `gateway` (no torch) and `worker` (torch with CUDA). Build one with --target.
ARG PYTHON=3.11

FROM python:${PYTHON}-slim AS source
WORKDIR /source
COPY pyproject.toml constraints.txt README.md ./
COPY dispatch dispatch
COPY gateway gateway
COPY worker worker
COPY autoscaler autoscaler
COPY penstock penstock
RUN python -m venv /venv

FROM source AS gateway-build
RUN /venv/bin/pip install --no-cache-dir -c constraints.txt .

FROM source AS worker-build
RUN /venv/bin/pip install --no-cache-dir -c constraints.txt ".[transformers]"

FROM python:${PYTHON}-slim AS runtime
RUN useradd --uid 10001 --create-home penstock
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
USER 10001
WORKDIR /home/penstock
ENTRYPOINT ["penstock"]

FROM runtime AS gateway
COPY --from=gateway-build /venv /venv
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/livez', timeout=2)"]
STOPSIGNAL SIGTERM
CMD ["gateway", "--host", "0.0.0.0", "--port", "8000"]

FROM runtime AS worker
COPY --from=worker-build /venv /venv
# A volume takes its owner from the folder it is first mounted on: without one, root's.
USER root
RUN mkdir -p /home/penstock/.cache/huggingface && chown -R 10001:10001 /home/penstock/.cache
USER 10001
STOPSIGNAL SIGTERM
CMD ["worker"]
