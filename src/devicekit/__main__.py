"""``python -m devicekit`` is the command ``devicekit``."""

from devicekit.cli.main import main

raise SystemExit(main())
