"""The report of a run: a page for people, and tables for spreadsheets and papers."""
