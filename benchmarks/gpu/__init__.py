"""Checks on a real GPU, each one command, for machines that are at hand for minutes only.

    python -m benchmarks.gpu look --output DIR       # first: what works here, within a minute
    python -m benchmarks.gpu all --output DIR        # everything that this machine can do

| check | finds out | needs beside cuda-bindings and `make kernels` |
|---|---|---|
| `look` | which backends load and answer | the `export` extra |
| `rtx_loads` | whether a TensorRT-RTX plan loads and runs on this GPU | tensorrt-rtx, the `export` extra |
| `kernels` | every kernel against numpy | the `dev` extra |
| `goldens` | agreement with the authors' outputs in fp16 | a backend, the `export` extra, the golden set |
| `prepare` | how long the real geometry takes to make | the `export` extra, 34 GB of disk |
| `steps` | ms per pass beside the roofline, graph on and off | as `caption`; PyTorch, for the rate of products |
| `caption` | a 128-token caption of a picture, preset `fast` | a backend, what `prepare` made |
| `profile` | what `lladav profile` says: layers and memory | a backend, the `export` extra |
| `forms` | passes in w8, w8a8 and w4 beside fp16, in pairs | a backend, the `export` extra, 100 GB of disk |
| `authors` | the authors' loop, eager and compiled | what `prepare` made; PyTorch for CUDA |
| `soak` | memory and logits over 10,000 steps | a backend |

A backend is onnxruntime-gpu with CUDA's and cuDNN's libraries (`pip install 'onnxruntime-gpu[cuda,cudnn]'`),
tensorrt or tensorrt-rtx; those that do not load are recorded with the reason, and so is a check that cannot run. Each
check writes `DIR/NAME.json` (machine, versions, figures) and `DIR/NAME.md` (the tables). Bundles are made on the
machine itself, in `--work`, and found there by later commands.
"""
