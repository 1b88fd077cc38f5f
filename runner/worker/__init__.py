"""One lane's process: a member of a group that does the tasks of a job together.

A family of tasks is a module with a ``TASKS`` table and one entry in :mod:`.tasks`. A task takes the member and its own
plain JSON, and gives back plain JSON. torch is imported where it is used: its affinity must be set before.
"""
