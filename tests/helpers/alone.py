"""For clients of exports: a process in which this project cannot be imported at all."""

from __future__ import annotations

import sys
from importlib.abc import MetaPathFinder


class _Refusal(MetaPathFinder):
    def find_spec(self, name: str, *_: object) -> None:
        if name.partition(".")[0] in ("nvlm", "megatron"):
            raise ModuleNotFoundError(f"{name} is hidden from this process", name=name)


def hide_project() -> None:
    """From here on `import nvlm` and `import megatron` fail, as where neither is installed."""
    assert not {"nvlm", "megatron"} & {module.partition(".")[0] for module in sys.modules}
    sys.meta_path.insert(0, _Refusal())
