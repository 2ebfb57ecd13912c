"""What a person types: one module a family of commands; no logic of its own."""
