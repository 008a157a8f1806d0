"""Configs: where YAML files come from, what they may name, how objects are made of them, what is recorded."""
