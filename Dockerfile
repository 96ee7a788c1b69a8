# The program on NVIDIA's PyTorch image: docker build -t nnunet:latest .
#
# 26.07 holds PyTorch 2.13 (2.13.0a0+9186a08b2c.nv26.07), CUDA 13.3 and Python 3.12, and needs driver 580 or newer.
# Its torch, torchvision and NumPy are compiled for one another and stay as they are, and so does every other package
# that it has, DALI alone excepted. For a build that is the same for ever, append the digest that `docker pull` prints:
# FROM nvcr.io/nvidia/pytorch:26.07-py3@sha256:...
FROM nvcr.io/nvidia/pytorch:26.07-py3

LABEL org.opencontainers.image.title="multitask-nnunet-dali" \
      org.opencontainers.image.description="Multi-task nnU-Net on NVIDIA DALI: segmentation and case-level class" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.base.name="nvcr.io/nvidia/pytorch:26.07-py3"

WORKDIR /workspace/nnunet

# What the image lacks, in the locked versions and with their hashes; `select` prints what is added and what is kept.
# DALI's wheel is named after the CUDA major that the image states in CUDA_VERSION (cuda120 or cuda130); the version is
# the one of requirements.txt, because graphs and compiled twins are tested against each other with it.
# The constraints are the versions of the image itself: pip stops rather than replaces one of them.
COPY requirements-container.txt /tmp/additions/lock.txt
COPY scripts/container_packages.py /tmp/additions/
ARG ADDITIONS=/tmp/additions
RUN python $ADDITIONS/container_packages.py select \
        $ADDITIONS/lock.txt $ADDITIONS/chosen.txt $ADDITIONS/constraints.txt \
    && PIP_CONSTRAINT=$ADDITIONS/constraints.txt python -m pip install \
        --no-cache-dir --no-deps --require-hashes --only-binary :all: -r $ADDITIONS/chosen.txt \
    && python $ADDITIONS/container_packages.py verify $ADDITIONS/lock.txt $ADDITIONS/constraints.txt

# DLLogger prints what the log file holds anyway; it is in no package registry, and a build without a network goes on.
RUN timeout 120 python -m pip install --no-cache-dir --no-deps "git+https://github.com/NVIDIA/dllogger@v1.1.0" \
    || echo "DLLogger could not be fetched; the log file has the same lines without it."

# For any user (--user "$(id -u):$(id -g)"), with or without an entry in /etc/passwd: folders that everyone may write
# to. The compiled kernels lie below XDG_CACHE_HOME in a folder named after their source; NUMBA_CACHE_DIR would take
# that name away and is left unset. torch.compile asks for a user's name.
RUN mkdir -m 1777 /data /results /var/cache/nnunet /home/nnunet
ENV HOME=/home/nnunet \
    USER=nnunet \
    XDG_CACHE_HOME=/var/cache/nnunet \
    MPLCONFIGDIR=/var/cache/nnunet/matplotlib \
    TORCHINDUCTOR_CACHE_DIR=/var/cache/nnunet/inductor \
    TRITON_CACHE_DIR=/var/cache/nnunet/triton \
    OMP_NUM_THREADS=2
# OMP_NUM_THREADS: the loader's threads are its own, and PyTorch has little to do on the processor beside a GPU. To train
# without one: docker run -e OMP_NUM_THREADS=$(nproc) ...

COPY . .
# The scripts' folders results/ and data/ are the mounted ones; byte code is made here, a user may not write it later.
RUN ln -s /results results \
    && ln -s /data data \
    && python -m compileall -q . \
    && python main.py --help > /dev/null \
    && python main.py info --full

# The image's own entry point stays: it prints the banner and runs the command.
CMD ["/bin/bash"]
