"""Benchmarks, each a table in Markdown or JSON.

``utility`` is what privacy costs in utility; ``step`` what one private step costs in time and
memory (``workload`` says of what, ``engines`` by whom); ``epoch`` what confide's shortcuts bring on
the demo's text. Nothing is exported: each loads libraries that the others do not need.
"""
