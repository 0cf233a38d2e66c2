"""Estimates from random probes, with what a Krylov space already knows of the operator."""
