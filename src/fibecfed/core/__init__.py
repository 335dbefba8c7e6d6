"""What everything else is written in: named tensors, keys, messages, and the contracts Task and Method.

Nothing here knows a method, a data set or an engine.
"""
