"""The process: a setting of the runtime's allocator, while the runtime has not started and can still read it."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping

from devicekit.efficient.mode import Here, Steps

__all__ = ["set_allocator"]


def set_allocator(steps: Steps, here: Here) -> None:
    """Have segments of memory grow instead of leaving holes, where the runtime can. What a user has set stays."""
    setting, env = here.backend.expandable_segments(), here.backend.host.env
    if not setting.variables:
        steps.leave(f"allocator: {setting.reason}")
        return
    # The runtime takes the first of them that is set, so a second one would hide what the user has set.
    name = next((variable for variable in setting.variables if variable in env), setting.variables[0])
    before = env.get(name)
    given = {part.partition(":")[0].strip(): part.strip() for part in (before or "").split(",") if part.strip()}
    label, key = f"allocator ({name})", setting.option.partition(":")[0]
    merged = ",".join([*([before] if given and before else []), setting.option])
    clash = next((part for part in given.values() for other in setting.excludes if part.startswith(other)), None)
    if given.get(key) == setting.option:
        steps.leave(f"{label}: {setting.option} is set already")
    elif key in given:
        steps.leave(f"{label}: {given[key]} was set by you, and stays")
    elif clash is not None:
        steps.leave(f"{label}: {clash} was set by you, and rules {setting.option} out")
    elif setting.late:
        steps.leave(f"{label}: {here.backend.name} has started; put {name}={merged} into the environment before that")
    else:
        words = f"{merged}; {here.backend.name} reads it at its first allocation, and segments then grow, without holes"
        words += f"; {setting.reason}" if setting.reason else ""
        steps.switch(label, words, lambda: env.update({name: merged}), _restorer(env, name, before, merged))


def _restorer(env: MutableMapping[str, str], name: str, before: str | None, merged: str) -> Callable[[], object]:
    def restore() -> None:
        if env.get(name) != merged:
            return  # somebody has set it since
        if before is None:
            del env[name]
        else:
            env[name] = before

    return restore
