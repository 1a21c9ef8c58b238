# MRRN on a CPU:     docker build -t mrrn .
# on NVIDIA GPUs:    docker build -t mrrn --build-arg BASE=nvidia/cuda:13.0.1-base-ubuntu24.04 --build-arg WHEELS= .
# PyTorch's usual wheels bring their own CUDA libraries; the base need not have them. BASE is a Debian or Ubuntu, with Python 3.11 to 3.14 or without.
ARG BASE=python:3.13-slim
FROM ${BASE}
# Where PyTorch without CUDA is (WHEELS= takes the one with it), and what is installed beside the runtime (setup.cfg).
ARG WHEELS=https://download.pytorch.org/whl/cpu
ARG EXTRAS=ray,s3
# Triton compiles its launchers with gcc and Python's headers where there is a GPU. KubeRay asks Ray how it is by wget.
RUN python3 -c 'import ensurepip' 2>/dev/null || python="python3 python3-venv python3-dev"; \
    [ -n "${WHEELS}" ] || compiler="gcc libc6-dev"; \
    apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends wget ${python} ${compiler} && \
    rm -rf /var/lib/apt/lists/*
WORKDIR /mrrn
COPY . .
RUN python3 -m venv /venv && PIP_EXTRA_INDEX_URL="${WHEELS}" /venv/bin/pip install --no-cache-dir -c constraints.txt ".[${EXTRAS}]"
ENV PATH=/venv/bin:$PATH
# Login shells, in which KubeRay before 1.4 starts Ray, set PATH anew.
RUN echo 'PATH=/venv/bin:$PATH' > /etc/profile.d/venv.sh
CMD ["mrrn", "--help"]
