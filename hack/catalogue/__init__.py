"""The tool that keeps operator/flotilla/catalog/data/models.json; see __main__.py."""
