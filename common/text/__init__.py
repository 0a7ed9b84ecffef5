"""Text on its way in: files to records, records to the units that are protected."""

from .readers import Record, group_units, read_records

__all__ = ["Record", "group_units", "read_records"]
