"""What can read tiles: `model.vision`, told apart by `kind`.

As with connectors (`nvlm.config.connectors`), settings are here, without torch, with what follows
from them: parameters, products, positions. The modules are in `nvlm/model/encoders`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nvlm.config.encoders.settings import EncoderSettings
from nvlm.config.section_kinds import section_of_kinds

# Kind, which is the module's name -> the class of its settings in there. The first is the default.
KINDS = {
    "internvit": "InternViTConfig",
    "timm": "TimmConfig",
    "side_by_side": "SideBySideConfig",
}

if TYPE_CHECKING:
    Encoder = EncoderSettings
else:
    Encoder = section_of_kinds(__name__, KINDS)
