"""The launchers by name. A new one is one new file and one row here; its module is imported when it is asked for.

Never here: which pool uses which (settings).
"""

from collections.abc import Callable, Mapping

from autoscaler.launchers.base import Launcher
from dispatch.errors import PenstockError
from dispatch.scaling import LauncherName
from dispatch.settings import Settings


def _exec(settings: Settings) -> Launcher:
    from autoscaler.launchers.exec import ExecLauncher

    return ExecLauncher(settings)


def _docker(settings: Settings) -> Launcher:
    from autoscaler.launchers.docker import DockerLauncher

    return DockerLauncher(settings)


def _kubernetes(settings: Settings) -> Launcher:
    from autoscaler.launchers.kubernetes import KubernetesLauncher

    return KubernetesLauncher(settings)


BUILDERS: Mapping[LauncherName, Callable[[Settings], Launcher]] = {
    LauncherName.DOCKER: _docker,
    LauncherName.KUBERNETES: _kubernetes,
    LauncherName.EXEC: _exec,
}


def build(name: LauncherName, settings: Settings) -> Launcher:
    """The launcher of that name. Raises PenstockError("bad_setting") if it cannot be built from settings alone."""
    if name not in BUILDERS:
        raise PenstockError(
            "bad_setting",
            f"The launcher {name.value!r} cannot be started here.",
            hint=f"From settings alone these can: {', '.join(sorted(BUILDERS))}.",
            param="autoscaler.launcher",
        )
    return BUILDERS[name](settings)


class Launchers:
    """Launchers by name, each made when it is first asked for: also those that only pools of before had."""

    def __init__(self, make: Callable[[LauncherName], Launcher]) -> None:
        self._make = make
        self._made: dict[LauncherName, Launcher] = {}

    def __getitem__(self, name: LauncherName) -> Launcher:
        """Raises PenstockError if it cannot be made."""
        if name not in self._made:
            self._made[name] = self._make(name)
        return self._made[name]

    async def close(self) -> None:
        """Let go of all that were made."""
        for launcher in self._made.values():
            await launcher.close()
