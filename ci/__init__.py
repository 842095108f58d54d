"""How pykcm is run and tested where the host's kernel has no KCM: kernels, guests, the matrix."""
