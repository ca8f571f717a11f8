"""The control plane, in the words of E2B's API: what there is, its making, its life, its end."""
