# docker build -t videodiff .
# docker run --gpus all --ipc=host --user "$(id -u):$(id -g)" \
#     -v "$PWD/datasets:/work/datasets" -v "$PWD/runs:/work/runs" videodiff train data.root=datasets/mine name=mine
#
# torch brings its own CUDA libraries. There is no compiler in this image: DeepSpeed's optional kernels, which are built
# on first use, need the -devel- image of the same version instead.
FROM nvidia/cuda:13.0.1-runtime-ubuntu24.04

RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends python3.12 python3.12-venv \
    && rm -rf /var/lib/apt/lists/*

ENV PATH=/opt/venv/bin:$PATH \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PYTHONUNBUFFERED=1

# torch is several GB and changes rarely: a layer of its own.
WORKDIR /src
COPY constraints.txt ./
RUN python3.12 -m venv /opt/venv \
    && pip install -c constraints.txt torch

COPY pyproject.toml README.md LICENSE ./
COPY conf conf
COPY videodiff videodiff
COPY data_prep data_prep
COPY hydra_plugins hydra_plugins
COPY launch/slurm launch/slurm
RUN pip install -c constraints.txt ".[prep,latent,track,launch]"

# HOME and USER are set for those who run it under their own number, which has neither here.
RUN useradd --create-home --uid 10001 videodiff \
    && install -d -o videodiff -g videodiff -m 0777 /work /work/datasets /work/runs
ENV HOME=/tmp \
    USER=videodiff
USER videodiff
WORKDIR /work
ENTRYPOINT ["videodiff"]
CMD ["--help"]
