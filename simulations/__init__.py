"""Whole federations on one machine: real models and text, partitions, scenarios, yardsticks."""
