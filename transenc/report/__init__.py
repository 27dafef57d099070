"""The report of a run: facts read from its directory, and one document of them as HTML and as Markdown."""
