# docker build -t videodiff .
# docker run --gpus all --ipc=host --ulimit memlock=-1 --user "$(id -u):$(id -g)" \
#     -v "$PWD/datasets:/work/datasets" -v "$PWD/runs:/work/runs" videodiff train data.root=datasets/mine name=mine
#
# torch brings its own CUDA libraries and NCCL. DeepSpeed's kernels for offload and fused steps are compiled here, for the
# GPUs of ARCHITECTURES, as the image that runs has no compiler. docs/cluster.md says what EFA needs besides.
FROM nvidia/cuda:13.0.1-devel-ubuntu24.04 AS build

# hadolint ignore=DL3008
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
        g++ libaio-dev ninja-build python3.12 python3.12-dev python3.12-venv \
    && rm -rf /var/lib/apt/lists/*

ENV PATH=/opt/venv/bin:$PATH \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1

# torch is several GB and changes rarely: a layer of its own.
WORKDIR /src
COPY constraints.txt ./
RUN python3.12 -m venv /opt/venv \
    && pip install -c constraints.txt torch setuptools

# Against the torch that is installed, not one of its own; one kernel after the other fits the memory of a small machine.
ARG ARCHITECTURES="8.0 9.0 10.0"
RUN TORCH_CUDA_ARCH_LIST="$ARCHITECTURES" DS_BUILD_FUSED_ADAM=1 DS_BUILD_CPU_ADAM=1 DS_BUILD_AIO=1 \
    DS_BUILD_PIN_MEMORY=1 MAX_JOBS=4 \
    pip install -c constraints.txt --no-build-isolation deepspeed

COPY pyproject.toml README.md LICENSE ./
COPY conf conf
COPY videodiff videodiff
COPY data_prep data_prep
COPY hydra_plugins hydra_plugins
COPY launch/slurm launch/slurm
RUN pip install -c constraints.txt ".[prep,latent,track,launch]"

FROM nvidia/cuda:13.0.1-runtime-ubuntu24.04

# libaio is for offload to NVMe, the others let NCCL talk over InfiniBand and RoCE.
# hadolint ignore=DL3008
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
        ibverbs-providers libaio1t64 libibverbs1 librdmacm1t64 python3.12 \
    && rm -rf /var/lib/apt/lists/*

COPY --from=build /opt/venv /opt/venv

# HOME and USER are set for those who run it under their own number, which has neither here.
RUN useradd --create-home --uid 10001 videodiff \
    && install -d -o videodiff -g videodiff -m 0777 /work /work/datasets /work/runs
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    HOME=/tmp \
    USER=videodiff
USER 10001
WORKDIR /work
ENTRYPOINT ["videodiff"]
CMD ["--help"]
