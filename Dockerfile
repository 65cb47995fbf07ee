# konkyo on a CPU, without root.
#
#   docker build -t konkyo --build-arg TORCH_INDEX=ADDRESS .    the address of PyTorch's CPU wheels (the page "Get started" of PyTorch has it);
#                                                               without it pip takes the build for CUDA: several GB more
#   docker run --rm -v "$PWD:/data" konkyo demo --out demo
#   docker run --rm -v "$PWD:/data" konkyo explain photos/ --model my_models.py:build --report report.html
#   docker run --rm --network host -v "$PWD:/data" konkyo serve     it listens on this machine alone: on Linux, open the address that it prints
#
# The folder that is mounted must be writable for the user 1000, or add --user "$(id -u):$(id -g)".
ARG PYTHON=3.11

FROM python:${PYTHON}-slim AS build
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY src src
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:${PYTHON}-slim
ARG TORCH_INDEX=""
ARG EXTRAS="transformers,timm,medical,fonts,query,app"
RUN pip install --no-cache-dir ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} "torch>=2.10" "torchvision>=0.25"
RUN --mount=type=bind,from=build,source=/wheels,target=/wheels \
    pip install --no-cache-dir "$(echo /wheels/konkyo-*.whl)[$EXTRAS]" && konkyo --help >/dev/null
RUN useradd --create-home --uid 1000 konkyo && mkdir /data && chown konkyo:konkyo /data
USER konkyo
ENV HOME=/home/konkyo MPLCONFIGDIR=/tmp/matplotlib PYTHONUNBUFFERED=1
WORKDIR /data
EXPOSE 7860
ENTRYPOINT ["konkyo"]
CMD ["--help"]
