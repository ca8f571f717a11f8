"""Tests of pools: the limits alone, a pool of fakes, pools of stand-in sandboxes."""
