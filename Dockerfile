# The predictor's image, for CUDA or, with PyTorch's index of CPU wheels as TORCH_INDEX_URL, for CPUs.
# Both the classic builder and BuildKit build it.
ARG BASE_IMAGE=python:3.11-slim-bookworm

FROM ${BASE_IMAGE} AS build
# The system's certificates, so that a base image may bring those of a private package index.
ENV VIRTUAL_ENV=/opt/venv UV_NO_CACHE=1 UV_COMPILE_BYTECODE=1 UV_SYSTEM_CERTS=1 \
    UV_CONSTRAINT=constraints.txt UV_BUILD_CONSTRAINT=constraints.txt
WORKDIR /build
COPY pyproject.toml constraints.txt ./
RUN python3 -m venv --without-pip /opt/venv && python3 -m venv /opt/uv \
    && /opt/uv/bin/pip install --quiet --no-cache-dir --constraint constraints.txt uv
# Empty: the package index's torch, which is built for CUDA and brings NVIDIA's libraries.
ARG TORCH_INDEX_URL=
RUN /opt/uv/bin/uv pip install --no-deps ${TORCH_INDEX_URL:+--index-url "$TORCH_INDEX_URL"} torch
RUN /opt/uv/bin/uv pip install --requirements pyproject.toml --extra s3 --extra tracing
COPY LICENSE README.md ./
COPY predictor predictor
RUN /opt/uv/bin/uv pip install --no-deps --target /opt/predictor . \
    && rm --force /opt/venv/.lock /opt/predictor/.lock

FROM ${BASE_IMAGE}
# Python's own library comes without bytecode, and nobody may write it when the image runs.
RUN python3 -m compileall -q -x site-packages \
    "$(python3 -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')"
COPY --from=build /opt/venv /opt/venv
COPY --from=build /opt/predictor /opt/predictor
COPY examples/demo-model /opt/demo-model
# Any user id may run it, with a root file system that is read-only: whatever is written is in /tmp.
ENV PATH=/opt/predictor/bin:/opt/venv/bin:$PATH PYTHONPATH=/opt/predictor HOME=/tmp \
    HF_HOME=/tmp/huggingface HF_HUB_DISABLE_TELEMETRY=1 TORCHINDUCTOR_CACHE_DIR=/tmp/torchinductor
ARG SOURCE_URL=
LABEL org.opencontainers.image.title="accelerate-predictor" \
      org.opencontainers.image.description="A KServe predictor for Hugging Face models that do not fit the accelerator they are given" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.source="${SOURCE_URL}"
USER 1000:0
EXPOSE 8080 8081
ENTRYPOINT ["predictor"]
CMD ["serve", "--model_name=demo", "--model_dir=/opt/demo-model"]
