"""``python -m devicekit.isolation`` is a child: a request on stdin, answers on stdout."""

from devicekit.isolation.child import answer

answer()
