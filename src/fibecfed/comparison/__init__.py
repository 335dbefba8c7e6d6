"""Comparing methods: many runs made in one folder (`runner/`), and what people read of them (`report/`). Nothing below imports it."""
