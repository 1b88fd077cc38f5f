"""Lanes apart from each other and from the host: control groups for time and memory, namespaces for links."""
