"""Benchmarks, each a table in Markdown or JSON.

``utility`` is what privacy costs in utility; ``step`` what one private step costs in time and
memory (``workload`` says of what, ``engines`` and ``rivals`` by whom, ``memory`` how the peak is
taken); ``epoch`` what confide's shortcuts bring on the demo's text. Nothing is exported: each
loads libraries that the others do not need.
"""
