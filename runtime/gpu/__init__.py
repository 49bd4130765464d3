"""The denoising loop on a GPU: buffers, kernels and captured graphs, with the host beside them."""
