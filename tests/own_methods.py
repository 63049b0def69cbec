"""xattn's own methods as tests run each of them: those that run the network many times with settings that make them quick."""

from __future__ import annotations

from xattn.explainers import Need, methods

QUICK = {
    "greedy": "greedy:grid=2",
    "integrated-gradients": "integrated-gradients:steps=2",
    "occlusion": "occlusion:window=16",
    "opti-cam": "opti-cam:iterations=2",
    "rise": "rise:masks=12",
    "smooth-grad": "smooth-grad:samples=2",
}
LAYERS = {Need.LAYERS, Need.LAYER_GRADIENTS}
OF_LAYERS = [name for name, entry in sorted(methods.entries.items()) if entry.metadata.needs & LAYERS]
"""Methods that follow the attention of a transformer's own layers."""
OF_STEPS = [name for name, entry in sorted(methods.entries.items()) if Need.STEPS in entry.metadata.needs]
"""Methods that show a step of a two-stream network."""
OWN = [QUICK.get(name, name) for name in sorted(methods.entries) if name not in OF_LAYERS + OF_STEPS]
OF_ANY_HEAD = [spec for spec in OWN if spec != "raw-attention"]
