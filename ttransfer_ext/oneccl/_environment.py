"""What oneCCL and libfabric read from the environment, where the user has said nothing."""

from __future__ import annotations

import os

from ttransfer_ext.oneccl._runtime import Runtime


def prepare(runtime: Runtime) -> dict[str, str]:
    """Set the variables that oneCCL reads when it starts, except those that are set.

    Args:
        runtime: the installed oneCCL.

    Returns:
        What was set.

    Example:
        >>> from ttransfer_ext.oneccl._environment import defaults
        >>> from ttransfer_ext.oneccl._runtime import installed
        >>> defaults(installed())["FI_PROVIDER"]
        'tcp'
    """
    missing = {name: value for name, value in defaults(runtime).items() if name not in os.environ}
    os.environ.update(missing)
    return missing


def defaults(runtime: Runtime) -> dict[str, str]:
    """Return the variables and values that `prepare` would set in an empty environment.

    Args:
        runtime: the installed oneCCL.

    Returns:
        Values by the variables' names.

    Example:
        >>> from ttransfer_ext.oneccl._environment import defaults
        >>> from ttransfer_ext.oneccl._runtime import installed
        >>> defaults(installed())["CCL_YIELD"]
        'sleep'
    """
    return {
        # MPI, the default transport, would need mpirun.
        "CCL_ATL_TRANSPORT": "ofi",
        "FI_PROVIDER": "tcp",
        "FI_PROVIDER_PATH": str(runtime.fabric),
        # Nobody outside this machine is to reach the ranks unless the user names a network.
        "FI_TCP_IFACE": "lo",
        "CCL_KVS_IFACE": "lo",
        # A worker that spins takes the core of a compute thread; benchmarks/ccl_affinity.py has the numbers.
        "CCL_YIELD": "sleep",
        # At its default level oneCCL reports on these very variables.
        "CCL_LOG_LEVEL": "error",
    }
