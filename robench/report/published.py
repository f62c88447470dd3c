"""Robust accuracies that others published, to compare with. Imports no torch."""

# RobustBench, Linf 8/255, ResNet-18 entries: weakest and best that were adversarially trained, percent under AutoAttack.
ROBUSTBENCH = {"cifar10": (43.21, 58.50), "cifar100": (18.95, 28.88)}
