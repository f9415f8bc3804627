"""The layers below the first that sees memory: what they put out is kept, and put in place of running them again.

They see the template and the row, and both are causal: what they made of the beginning of a row stays true when the
row grows, whatever memory the layers above them read (golden spec 4.6). Shapes: B rows, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from msa_plugin.backbone.families import decoder_layers

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class LowerLayers:
    """What one forward does with the layers below `depth`, of which there is at least one.

    Without `hidden` [B, T, hidden] they run, and it is what they put out afterwards. With it they do not run: it takes
    the place of their output.
    """

    def __init__(self, depth: int, hidden: Tensor | None = None) -> None:
        """`depth` is the first layer that runs in any case."""
        self.depth, self.hidden = depth, hidden

    @contextmanager
    def installed(self, model: PreTrainedModel) -> Iterator[None]:
        """`model` runs that way inside, and is as it was afterwards, whatever happens."""
        layers = decoder_layers(model)[: self.depth]
        if self.hidden is None:
            handle = layers[-1].register_forward_hook(self._keep)
            try:
                yield
            finally:
                handle.remove()
            return
        with ExitStack() as undo:
            for layer in layers:
                undo.enter_context(standing_in(layer, lambda *_, **__: self.hidden))
            yield

    def _keep(self, module: nn.Module, given: tuple[Any, ...], output: Tensor) -> None:
        self.hidden = output


@contextmanager
def standing_in(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """`module` computes `forward` inside; its weights stay in place, for hashes that another thread may take."""
    own = vars(module)
    before = own.get("forward")
    own["forward"] = forward
    try:
        yield
    finally:
        del own["forward"]
        if before is not None:
            own["forward"] = before
