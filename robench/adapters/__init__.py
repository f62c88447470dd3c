"""The only importers of torchattacks, pyautoattack and robustbench; each imports its library when an attack runs."""
