# Not in tests/: `uv run pytest home` reads this one too.
pytest_plugins = ["tests.postgresql"]
