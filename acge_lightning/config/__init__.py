"""Read configs: where YAML files come from, what they may name, how objects are built from them, what is recorded."""
