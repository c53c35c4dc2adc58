"""Which source classes help, and which hurt, a downstream task: the logic behind the workflow.

Rooms, in the order the data flows; a room may import only from rooms to its left:
``config`` → ``datasets`` → ``models`` → ``training`` → ``subsets`` → ``outcomes`` → ``influence``
→ ``counterfactual`` → ``applications`` → ``figures``. The single-file modules ``errors``,
``seeds``, ``files``, ``locks``, ``claims``, ``provenance``, ``progress`` and ``vision`` are the
ground they stand on and import no room; ``job`` imports ``config``.
"""

__version__ = "0.1.0"
