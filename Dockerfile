# The command in an image, for CPUs: `docker build -t embedding-pipeline .`, then
#   docker run --rm --user "$(id -u)" -v ~/corpus:/data embedding-pipeline embed /data/run.yaml
# For GPUs torch comes from the index of a CUDA release:
#   docker build --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu128 -t embedding-pipeline:cuda .
ARG DEBIAN=bookworm

FROM debian:${DEBIAN}-slim AS build
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ARG EXTRAS=s3,gs,az,delta,iceberg,documents,search,html,postgres,openvino,metrics,lineage
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates python3 python3-venv \
    && rm -rf /var/lib/apt/lists/*
RUN python3 -m venv /opt/venv
COPY constraints.txt fast-tokenizers.txt /src/
# What torch needs is on PyPI, and is installed with all else.
RUN /opt/venv/bin/pip install -c /src/constraints.txt --no-deps --index-url "$TORCH_INDEX" torch
RUN /opt/venv/bin/pip install --no-deps --target /opt/venv/fast-tokenizers -r /src/fast-tokenizers.txt
COPY pyproject.toml README.md LICENSE /src/
COPY jobs /src/jobs
COPY pipeline /src/pipeline
# Ray's own command line submits jobs, and its dashboard takes them: nodes of a cluster run this image, too.
RUN /opt/venv/bin/pip install -c /src/constraints.txt "/src[$EXTRAS]" "ray[default]"

FROM debian:${DEBIAN}-slim
# KubeRay asks nodes by wget how they are.
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates python3 wget \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 10001 embedding \
    && install -d -o embedding -g embedding /data
COPY --from=build /opt/venv /opt/venv
COPY conf /app/conf
# Login shells, by which KubeRay starts Ray, set PATH anew.
RUN echo 'PATH=/opt/venv/bin:$PATH' > /etc/profile.d/embedding-pipeline.sh
ENV PATH=/opt/venv/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
USER 10001
WORKDIR /app
ENTRYPOINT ["embedding-pipeline"]
CMD ["--help"]
