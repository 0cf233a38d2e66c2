"""Krylov spaces: the Lanczos step, its runs, restarts, Ritz pairs and their certificates."""
