"""Classical means: the kernel search, its judge, deconvolution with a known kernel."""
