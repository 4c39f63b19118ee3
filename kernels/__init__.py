"""Triton kernels of the penalty's two ends. This package and its module `launch` import no Triton; the others do."""
