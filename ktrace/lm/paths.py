"""Module paths: where a model keeps the sites that ktrace reads and edits, layer by layer.

A path holds `[LAYER_NUM]` where the layer's number belongs. Those of known architectures are data
(ktrace/lm/families.py), as are those that a config gives.
"""

from dataclasses import dataclass, replace

from torch import nn

from ktrace.errors import KtraceError
from ktrace.terms import HEAD, SITES

LAYER = "[LAYER_NUM]"
# Behind a path: what the module there is called with, in place of what it gives.
INPUT = "@input"


@dataclass(frozen=True)
class LayerKind:
    """What layers of one kind have beside `hidden`, in a model whose layers differ.

    Attributes:
        marks: modules that these layers have, by their paths within the block; `path:Class` where
            layers of another kind have a module of another class there.
        attn: as in `ModulePaths`, but within the block.
        mlp: likewise.
        heads: likewise.
    """

    marks: tuple[str, ...]
    attn: str | None = None
    mlp: str | None = None
    heads: str | None = None

    def holds(self, block: nn.Module) -> bool:
        """Whether a block is of this kind."""
        modules = dict(block.named_modules())
        for mark in self.marks:
            path, _, name = mark.partition(":")
            if path not in modules or name not in ("", type(modules[path]).__name__):
                return False
        return True


@dataclass(frozen=True)
class ModulePaths:
    """Dotted module paths, as `model.get_submodule` takes them.

    Attributes:
        embedding: token embedding; its output receives the noise.
        block: a decoder layer; its output is the hidden state.
        attn: the attention of a layer; its output is what is added to the residual stream. None
            where the architecture has no such point.
        mlp: the MLP of a layer, likewise.
        heads: the output projection of a layer's attention: it is called with what the heads give,
            side by side. None where the architecture has no such module.
        mlp_input: where the MLP's work begins, if that is another module than `mlp`: what an engine
            may call on some positions only.
        kinds: where layers differ, the kinds with more than `hidden`; the first that holds counts.
            Then `attn`, `mlp` and `heads` are None.
        layers: the kind of each layer of a loaded model, None for one with `hidden` alone.
    """

    embedding: str
    block: str
    attn: str | None = None
    mlp: str | None = None
    heads: str | None = None
    mlp_input: str | None = None
    kinds: tuple[LayerKind, ...] = ()
    layers: tuple[LayerKind | None, ...] = ()

    def on(self, model: nn.Module, n_layers: int) -> "ModulePaths":
        """The paths on a loaded model, whose layers say of which kind they are."""
        if not self.kinds:
            return self
        blocks = (model.get_submodule(self.at(self.block, layer)) for layer in range(n_layers))
        kinds = (next((k for k in self.kinds if k.holds(block)), None) for block in blocks)
        return replace(self, layers=tuple(kinds))

    def within(self, prefix: str) -> "ModulePaths":
        """The paths in a larger model, which holds this one's body at `prefix`."""

        def moved(path: str) -> str:
            return f"{prefix}.{path.partition('.')[2]}"

        return replace(
            self,
            embedding=moved(self.embedding),
            block=moved(self.block),
            attn=self.attn and moved(self.attn),
            mlp=self.mlp and moved(self.mlp),
            heads=self.heads and moved(self.heads),
            mlp_input=self.mlp_input and moved(self.mlp_input),
        )

    def sites(self, layer: int) -> dict[str, str]:
        """Paths of one layer's sites: `hidden`, `attn`, `mlp`, as far as there are such."""
        found = {site: self._template(site, layer) for site in SITES}
        return {site: self.at(path, layer) for site, path in found.items() if path}

    def point(self, site: str, layer: int) -> str | None:
        """Where one of a layer's sites is edited, or its heads: as `hooked` takes it."""
        template = self._template(site, layer)
        return template and self.at(template, layer) + (INPUT if site == HEAD else "")

    def _template(self, site: str, layer: int) -> str | None:
        if site == "hidden":
            return self.block
        if not self.layers:
            return {"attn": self.attn, "mlp": self.mlp, HEAD: self.heads}[site]
        kind = self.layers[layer]
        inner = kind and {"attn": kind.attn, "mlp": kind.mlp, HEAD: kind.heads}[site]
        return f"{self.block}.{inner}" if inner else None

    @staticmethod
    def at(path: str, layer: int) -> str:
        """A path with the layer's number in it."""
        return path.replace(LAYER, str(layer))

    def layers_with(self, site: str, n_layers: int) -> list[int]:
        """The layers that have a site, or heads."""
        return [layer for layer in range(n_layers) if self._template(site, layer)]

    def require(self, *sites: str) -> None:
        """Refuse sites that no layer has.

        Raises:
            KtraceError: naming the site and what there is.
        """
        n_layers = len(self.layers) or 1
        have = [site for site in (*SITES, HEAD) if self.layers_with(site, n_layers)]
        for site in sites:
            if site not in have:
                raise KtraceError(
                    f"this model has no site {site!r}: mediators that restore, sever or cut it "
                    f"have no meaning; its sites are {', '.join(have)}"
                )
