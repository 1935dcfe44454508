"""Ask in a child process, so that a runtime that hangs or aborts cannot take us down.

The parent writes one JSON request to a child's stdin and reads one JSON object a line. Before each step the child says
which one it begins, so a child that dies or falls silent names its culprit; a new child goes on with the rest. The
child may start the runtimes (``describe``, ``verify``, ``try``); the parent never does.

The steps, in order: ``torch`` (import it), ``probe N`` for every row of the registry by its position, ``decision``,
then for what is usable ``versions N``, ``describe N I``, ``verify N I``, ``try N I FORMAT`` for every number format,
and at last ``machine``.

By hand: ``echo '{"backends": [0, 5], "describe": true}' | python -m devicekit.isolation``
"""
